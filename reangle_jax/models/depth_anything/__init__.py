"""Depth Anything V2: a DINOv2 backbone with a DPT head."""
