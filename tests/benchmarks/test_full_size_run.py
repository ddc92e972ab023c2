"""The full-size programs executed, at a small size."""

import dataclasses

import pytest

from benchmarks import full_size_run
from benchmarks.full_size_programs import Case
from reangle_jax import checkpoints, plan
from reangle_jax.backbones.cogvideox import needs
from tests.networks import TRANSFORMER_SMALL, VAE_SMALL


class Small(Case):
    """Very small networks in the place of CogVideoX-5B-I2V."""

    @property
    def transformer(self):
        small = dataclasses.replace(
            TRANSFORMER_SMALL, patch_size=2, sample_height=8, sample_width=8, lora_rank=self.rank, lora_alpha=1.0,
            param_dtype="bfloat16",
        )  # fmt: skip
        return checkpoints.as_kept(small, self.base)

    @property
    def vae(self):
        return dataclasses.replace(VAE_SMALL, block_out_channels=(8, 8, 8, 8), param_dtype="bfloat16")


@pytest.fixture
def on_host(monkeypatch):
    """How much is drawn on the host: so little that the device draws the largest arrays."""
    monkeypatch.setattr(full_size_run, "_ON_HOST", 1700)


@pytest.mark.usefixtures("optax_promotion", "on_host")
@pytest.mark.parametrize(("name", "base"), [("finetune", "int8"), ("sample", "auto"), ("decode", "auto")])
def test_steps_are_taken_and_timed(name, base, monkeypatch, capsys):
    monkeypatch.setitem(plan.CHIPS, "cpu", (1e9, 1.0))
    case = Small(base, "matmuls", rank=4, short=True)
    prepared = full_size_run.prepare(name, case)
    said = capsys.readouterr().err.splitlines()  # at once: what comes next may take minutes
    assert [line.split()[0] for line in said] == [f"{name}:", "compiling,"]
    assert prepared.values.made
    found = full_size_run.execute(prepared, 3)
    assert [line.split(" took")[0] for line in capsys.readouterr().err.splitlines()] == [
        "drawing the weights", *(f"step {k}" for k in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert found["finite"]
    assert len(found["steps_s"]) == 3
    assert 0 < sorted(found["steps_s"])[1] == found["step_s"]
    forward = needs.transformer_flops(case.transformer, case.tokens)
    expected = {"finetune": 2.75 * forward, "sample": 2 * forward}.get(name)
    if expected:
        assert expected <= full_size_run.flops(name, case)
    assert found["share_of_peak"] == pytest.approx(full_size_run.flops(name, case) / found["step_s"] / 1e9, rel=0.1)
    # A peak that leaves the temporaries out, as XLA's for CPUs does, is none.
    assert found["peak_planned_gib"] is None or found["peak_planned_gib"] >= found["temporaries_gib"]
    assert found["plan_gib"] is None  # the plan is of the full size
