"""Which kernels take a program's time."""

import jax
import jax.numpy as jnp

from benchmarks import kernels


def test_the_dearest_comes_first_and_says_where_it_is_from():
    @jax.jit
    def step(x):
        with jax.named_scope("dear"):
            x = jax.lax.fori_loop(0, 30, lambda _, x: jnp.linalg.cholesky(x @ x.T + jnp.eye(400)), x)
        with jax.named_scope("cheap"):
            return jnp.sin(x[:4])

    x = jnp.eye(400)
    compiled = step.lower(x).compile()
    jax.block_until_ready(compiled(x))
    found = kernels.slowest(lambda: compiled(x), compiled.as_text(), 3)
    assert 1 <= len(found) <= 3
    assert sorted(found, key=lambda kernel: -kernel.seconds) == found
    assert all(kernel.seconds >= 0 for kernel in found)
    assert "dear" in found[0].source
    assert sum(kernel.calls for kernel in found) >= 30
    assert len(kernels.in_words(found).splitlines()) == len(found)
