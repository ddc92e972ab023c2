"""The whole fine-tuning step and the guided sampling step against diffusers and peft, as the benchmark compares them.

Three steps each, so that gradients, their clip and AdamW are in it. Losses and latents agree to float32 round-off; the
adapters' change is compared as a whole, since Adam's first steps are as large where a gradient is all rounding.
"""

import jax
import pytest

from reangle_jax import mesh
from tests.networks import TRANSFORMER_SMALL, VAE_SMALL

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("optax_promotion")]
pytest.importorskip("diffusers")
pytest.importorskip("peft")
benchmark = pytest.importorskip("benchmarks.against_diffusers")

LOSS, CHANGE, LATENTS = 1e-5, 1e-3, 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_equal_losses_adapters_and_latents(tmp_path):
    case = benchmark.Case(TRANSFORMER_SMALL, VAE_SMALL, rank=4)
    with jax.set_mesh(mesh.make_mesh("data:1")):
        pair = benchmark.Pair(case, tmp_path)
        found = pair.differences()
        assert found["loss"] < LOSS
        assert found["adapters"] < CHANGE
        assert found["latents"] < LATENTS
        # A side that trains otherwise is noticed: half of PyTorch's rate is half of the change.
        for group in pair.theirs.optimiser.param_groups:
            group["lr"] /= 2
        assert pair.differences()["adapters"] > 0.1
