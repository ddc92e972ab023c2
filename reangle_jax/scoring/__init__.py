"""Image and video metrics."""
