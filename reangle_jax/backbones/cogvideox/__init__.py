"""CogVideoX (Yang et al., 2024, arXiv 2408.06072), image to video and text to video."""
