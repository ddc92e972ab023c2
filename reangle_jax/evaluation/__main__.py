"""The figures of many outputs of many methods. See `reangle_jax.evaluation.command` and --help."""

from reangle_jax import commands

if __name__ == "__main__":
    commands.start("reangle_jax.evaluation.command", stopped="the same command continues")
