"""LoRAs given for sampling: they join what finetune learnt, and a run notices when one changes."""

import dataclasses

import numpy as np
import pytest

from reangle_jax import checkpoints, config
from reangle_jax.backbones.cogvideox import lora
from reangle_jax.data import files
from reangle_jax.run import Ledger, Stage, run_stage
from reangle_jax.stages import generate
from tests import networks
from tests.backbones.test_lora_files import published, write
from tests.networks import TRANSFORMER_SMALL


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "style.safetensors", published(), r=3, lora_alpha=6.0)


def settings(weights="none", **changes):
    changes = {"video": "v.mp4", "weights": str(weights), "views": ("left:8",), **changes}
    values = config.get_tiny().to_dict() | changes
    values["finetune"] |= {"rank": 4, "alpha": 2.0, "steps": changes.get("steps", 5)}
    values["evaluate"] = {"untuned": True}
    values.pop("steps", None)
    return config.parse(values)


def do(ledger):
    """Generates, as far as the ledger is concerned; gives what was done."""
    done = []

    def pretend(_, folder, work):
        for unit in work:
            done.append(unit.name)
            for output in unit.outputs:
                files.atomic_write_bytes(folder / output, b"video")

    run_stage(Stage("generate", 1, generate.units, pretend), ledger)
    return done


def test_a_run_notices_another_file_weight_or_choice(file, tmp_path, caplog):
    def again(**changes):
        return do(Ledger(tmp_path / "run", settings(**changes)))

    assert again() == ["left:8", "left_8 untuned"]
    assert again() == []
    assert again(loras=(str(file),)) == ["left:8"]  # the untuned video has no adapters
    assert again(loras=(str(file),)) == []
    write(file, published(1), r=3, lora_alpha=6.0)
    caplog.set_level("INFO", logger="reangle_jax")
    assert again(loras=(str(file),)) == ["left:8"]
    assert "redo generate/left_8: the content of config.loras changed" in caplog.text
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')  # what says the alpha counts too
    assert again(loras=(str(file),)) == ["left:8"]
    assert again(loras=(str(file),)) == []
    assert again(loras=(f"{file}:0.5",)) == ["left:8"]
    assert f"config.loras changed from ['{file}'] to ['{file}:0.5']" in caplog.text
    assert again() == ["left:8"]
    assert again() == []


@pytest.mark.parametrize("steps", [5, 0])
def test_they_add_to_what_was_learnt(file, tmp_path, small_weights, steps):
    tuned_config = dataclasses.replace(TRANSFORMER_SMALL, lora_rank=4, lora_alpha=2.0)
    learnt = lora.read(write(tmp_path / "learnt.safetensors", published(7, rank=4), r=4, lora_alpha=2.0), tuned_config)
    (tmp_path / "run/lora").mkdir(parents=True)
    lora.save_folder(tmp_path / "run/lora", lora.to_state(learnt, tuned_config), tuned_config)
    backbone = networks.backbone(small_weights, rank=4, alpha=2.0)
    learnt_in = tmp_path / "run/lora" if steps else None
    wider, state = backbone.load_adapters(learnt_in, [(file, -0.5), (file, 1.0)])
    network = wider.transformer
    given = lora.read(file, TRANSFORMER_SMALL)
    parts = [(given, -0.5), (given, 1.0)]
    want = lora.combine([(learnt, 1.0), *parts] if steps else parts)
    assert (network.config.lora_rank, network.config.lora_alpha) == (want.rank, want.alpha)
    assert want.rank == (10 if steps else 6)
    for path, variable in checkpoints.parameter_paths(state).items():
        np.testing.assert_array_equal(variable[...], want.arrays[path])
