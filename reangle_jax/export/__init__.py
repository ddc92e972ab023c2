"""Data sets out: a run's synchronised views in the layouts that tools for 3D and 4D reconstruction read.

``python -m reangle_jax.export RUN --format NAME --out DIR``; `registry` knows the formats, `clip` reads a run.
"""
