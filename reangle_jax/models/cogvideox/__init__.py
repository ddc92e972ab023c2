"""CogVideoX: the image-to-video transformer and its causal 3D autoencoder."""
