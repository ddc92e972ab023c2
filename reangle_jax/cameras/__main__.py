"""What is in a camera file? See `reangle_jax.cameras.command` and --help."""

import sys

from reangle_jax.stopping import Stop, Stopped, run


def _run() -> int:
    try:
        with Stop().installed():  # the imports take seconds
            from reangle_jax.cameras.command import main

            return main(sys.argv[1:])
    except Stopped as stopped:
        print(f"stopped by {stopped}: nothing was written", file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    run(_run)
