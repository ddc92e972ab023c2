"""Reangle-A-Video in JAX: synchronised multi-view videos from one monocular video."""

__version__ = "0.1.0"
