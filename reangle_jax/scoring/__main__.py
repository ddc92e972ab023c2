"""How consistent are images or videos of one scene? See `reangle_jax.scoring.command` and --help."""

import sys

from reangle_jax.stopping import Stop, Stopped

if __name__ == "__main__":
    try:
        with Stop().installed():  # the imports take seconds
            from reangle_jax.scoring.command import main
    except Stopped as stopped:
        print(f"stopped by {stopped}: no report was written", file=sys.stderr)
        sys.exit(stopped.exit_code)
    sys.exit(main(sys.argv[1:]))
