"""Shared set-up: eight fake CPU devices, strict promotion rules, warnings as errors (see pyproject.toml)."""

import gc
import os

from tests import quick_compilation

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] += f" {quick_compilation.FLAGS}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiled programs are kept between test runs, those of subprocesses too: most of the suite's time is compilation.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.path.dirname(os.path.dirname(__file__)), ".cache", "jax")
# Of subprocesses nearly all: many are killed and started again. JAX's own is a second.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import jaxtyping
import numpy as np
import pytest

# Imported for pytest, and for what importing them does: nothing here calls them.
import tests.checker  # noqa: F401
from tests.no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from tests.slow_first import pytest_collection_modifyitems  # noqa: F401

# Every annotated function and dataclass of ours checks its arguments and results while the tests run.
jaxtyping.install_import_hook(["reangle_jax", "converters", "training"], "tests.checker.check")

# Tracing makes many objects and few cycles: looked through at Python's own pace, they take a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def unchecked():
    """Without the check of annotations: for what a function itself says to a call that breaks them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """A weights folder of very small random networks (see tests/networks.py)."""
    from tests.networks import write_weights

    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def optax_promotion():
    """Dtype promotion as optax needs it: its Adam raises a float32 to the power of an int32 count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def cudnn(monkeypatch):
    """Programs for GPUs can be traced without one: JAX asks for the installed cuDNN's version while it traces."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
