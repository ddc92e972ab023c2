"""How consistent are images or videos of one scene? See `reangle_jax.scoring.command` and --help."""

import sys

from reangle_jax.stopping import Stop, Stopped, run


def _run() -> int:
    try:
        with Stop().installed():  # the imports take seconds
            from reangle_jax.scoring.command import main
    except Stopped as stopped:
        print(f"stopped by {stopped}: no report was written", file=sys.stderr)
        return stopped.exit_code
    return main(sys.argv[1:])


if __name__ == "__main__":
    run(_run)
