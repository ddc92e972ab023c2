"""Cameras, trajectories, point splatting, depth and visibility masks: pure functions over arrays."""
