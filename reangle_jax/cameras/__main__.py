"""What is in a camera file? See `reangle_jax.cameras.command` and --help."""

from reangle_jax import commands

if __name__ == "__main__":
    commands.start("reangle_jax.cameras.command", stopped="nothing was written")
