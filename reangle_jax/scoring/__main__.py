"""How consistent are images or videos of one scene? See `reangle_jax.scoring.command` and --help."""

import sys

from reangle_jax.scoring.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
