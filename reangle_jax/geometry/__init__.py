"""Cameras, trajectories, point splatting and visibility masks: pure functions over arrays."""
