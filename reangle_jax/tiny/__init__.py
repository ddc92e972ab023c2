"""The small family: procedural scenes, its training, its weights."""
