"""XLA's settings for files whose time goes to compiling what runs once: a quarter of it, without LLVM's optimisation.

Meant for files that compare with tolerances, or programs of one size: without it, what is equal to the bit at one size
may not be at another. On the newest interpreter they run with XLA's own settings.
"""

import contextlib
import importlib.metadata
from collections.abc import Iterator
from unittest import mock

import jax
from jax._src import compiler

OPTIONS: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,  # of the two ways to emit a fused loop, the one without MLIR
    "xla_cpu_parallel_codegen_split_count": 1,
}
# XLA refuses an option that it does not know: from jaxlib 0.11 on there is MLIR's emitter alone.
if not importlib.metadata.version("jaxlib").startswith("0.10."):
    OPTIONS = {}
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
"""For a process of its own: its XLA_FLAGS."""


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Compiles with it; programs made here are not met outside, nor the other way round."""
    plain = compiler.get_compile_options

    def options(*arguments, env_options_overrides=None, **others):
        return plain(*arguments, env_options_overrides=OPTIONS | dict(env_options_overrides or {}), **others)

    if not OPTIONS:
        yield
        return
    jax.clear_caches()
    with mock.patch.object(compiler, "get_compile_options", options):
        yield
    jax.clear_caches()
