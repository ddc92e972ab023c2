"""Where everything random comes from."""

import zlib

import jax
from jaxtyping import Array


def named_key(seed: int, *names: str) -> Array:
    """A key for a named purpose: the same for the same seed and names, whatever else is done before."""
    key = jax.random.key(seed)
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key
