"""A run's views as a data set. See `reangle_jax.export.command` and --help."""

from reangle_jax import commands

if __name__ == "__main__":
    commands.start("reangle_jax.export.command", stopped="nothing was written")
