"""A run's views as a data set. See `reangle_jax.export.command` and --help."""

import sys

from reangle_jax import commands
from reangle_jax.stopping import Stop, run


def _main() -> int:
    with Stop().installed():  # the imports take seconds
        from reangle_jax.export.command import main
    return main(sys.argv[1:])


if __name__ == "__main__":
    run(lambda: commands.answer(_main, stopped="nothing was written"))
