"""FLUX.1 (Black Forest Labs, 2024), with its inpainting ControlNet or as Fill."""
