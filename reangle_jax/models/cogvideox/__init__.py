"""CogVideoX's networks: the transformer and its causal 3D autoencoder."""
