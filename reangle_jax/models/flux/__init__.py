"""FLUX.1 (Black Forest Labs, 2024): pictures by flow matching on the latents of a 16-channel autoencoder."""
