"""Camera files of many tools in: recognised by what is in them, read, and placed about a video's source camera.

``python -m reangle_jax.cameras FILE`` says what is in one. Each format has a module in `formats`; `registry` knows
them all.
"""
