"""One module for each format, each with what `reangle_jax.cameras.registry.Format` names."""
