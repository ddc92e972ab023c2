"""How consistent are images or videos of one scene? See `reangle_jax.scoring.command` and --help."""

from reangle_jax import commands

if __name__ == "__main__":
    commands.start("reangle_jax.scoring.command", stopped="no report was written")
