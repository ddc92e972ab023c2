"""What is in a camera file? See `reangle_jax.cameras.command` and --help."""

import sys

from reangle_jax import commands
from reangle_jax.stopping import Stop, run


def _main() -> int:
    with Stop().installed():  # the imports take seconds
        from reangle_jax.cameras.command import main
    return main(sys.argv[1:])


if __name__ == "__main__":
    run(lambda: commands.answer(_main, stopped="nothing was written"))
