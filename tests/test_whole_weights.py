"""Weights that are cut short are found before any work, by the sizes of files alone; so are LoRAs that do not fit."""

import dataclasses
import shutil

import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints, chosen_models, config
from reangle_jax.data import lora_files, safetensors
from reangle_jax.data.weights_folder import check_whole
from reangle_jax.errors import InputError
from reangle_jax.models.text.t5 import T5Encoder
from tests.networks import TEXT_SMALL, TRANSFORMER_SMALL, fill_randomly, save_sharded
from tests.spiece import write_spiece


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same small encoder as the small family keeps it, and in chunks as the converters write it."""
    root = tmp_path_factory.mktemp("forms")
    model = checkpoints.abstract(lambda: T5Encoder(TEXT_SMALL, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    checkpoints.save_model(root / "safetensors", model, TEXT_SMALL)
    save_sharded(root / "orbax", model, TEXT_SMALL)
    return root


@pytest.fixture(params=["safetensors", "orbax"])
def folder(forms, request, tmp_path):
    return shutil.copytree(forms / request.param, tmp_path / "part")


def arrays_of(folder):
    """Files that hold values."""
    small = ("config.json", "manifest.json", "_METADATA", ".zarray")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in small)


def test_whole(folder):
    check_whole(folder)


def test_every_file_counts(folder):
    paths = arrays_of(folder)
    for path in paths[:3] + paths[-3:]:
        content = path.read_bytes()
        for damaged in (content[:-1], content[: len(content) // 2], content + b"x", b""):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"^/.* is damaged \(.*\): .*convert .* again"):
                check_whole(folder)
        path.unlink()
        with pytest.raises(InputError, match="missing"):
            check_whole(folder)
        path.write_bytes(content)
    check_whole(folder)


@pytest.mark.parametrize("name", ["manifest.json", "params/_METADATA"])
def test_descriptions_count(forms, tmp_path, name):
    folder = shutil.copytree(forms / "orbax", tmp_path / "part")
    (folder / name).write_bytes(b'{"tens')
    with pytest.raises(InputError, match="manifest or metadata cannot be read"):
        check_whole(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        check_whole(folder)


def test_a_header_that_is_none(forms, tmp_path):
    folder = shutil.copytree(forms / "safetensors", tmp_path / "part")
    contents = {b"\xff" * 64: "is no safetensors file", b"\x04" + bytes(7) + b"nope": "its header is damaged"}
    for content, words in contents.items():
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=words):
            check_whole(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing, and so is params/"):
        check_whole(folder)


def test_check_looks_at_every_part(forms, tmp_path):
    settings = config.parse(config.get_default().to_dict() | {"video": "v.mp4", "weights": str(tmp_path)})
    folder = shutil.copytree(forms / "safetensors", tmp_path / "text_encoder")
    chosen_models.check(settings, ["text_encoder"])
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"text_encoder/model\.safetensors is damaged"):
        chosen_models.check(settings, ["text_encoder"])


def test_a_broken_tokenizer_is_found_before_any_work(tmp_path):
    settings = config.parse(config.get_default().to_dict() | {"video": "v.mp4", "weights": str(tmp_path)})
    folder = tmp_path / "text_encoder"

    def save(rows):
        larger = dataclasses.replace(TEXT_SMALL, vocab_size=rows)
        model = checkpoints.abstract(lambda: T5Encoder(larger, rngs=nnx.Rngs(0)))
        fill_randomly(model)
        checkpoints.save_model(folder, model, larger)

    save(183)
    for prepare, words in (
        (lambda: None, r"spiece\.model is missing; copy it from"),
        (lambda: (folder / "spiece.model").write_bytes(b"broken"), r"spiece\.model cannot be read .* copy it again"),
        (lambda: write_spiece(folder / "spiece.model"), "84 pieces and 100 marks, the text encoder beside it only 183"),
    ):
        prepare()
        with pytest.raises(InputError, match=words):
            chosen_models.check(settings, ["text_encoder"])
    save(184)
    chosen_models.check(settings, ["text_encoder"])


class TestLoras:
    def settings(self, **changes):
        return config.parse(config.get_tiny().to_dict() | {"video": "v.mp4"} | changes)

    def test_choices(self, tmp_path):
        file = tmp_path / "style.safetensors"
        with pytest.raises(InputError, match=r"config\.loras: .*no such file: .*style\.safetensors; give a LoRA's"):
            self.settings(loras=(str(file),))
        file.touch()
        assert self.settings(loras=(str(file), f"{file}:-0.5")).loras == (str(file), f"{file}:-0.5")
        assert lora_files.choice(str(file)) == (file, 1.0)
        assert lora_files.choice(f"{file}:0.5") == (file, 0.5)
        with pytest.raises(InputError, match="no such file"):
            lora_files.choice(f"{file}:inf")
        with pytest.raises(InputError, match="holds no lora"):
            lora_files.choice(str(tmp_path))
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora/lora.safetensors").touch()
        assert lora_files.choice(f"{tmp_path}:2") == (tmp_path / "lora/lora.safetensors", 2.0)

    def test_one_that_does_not_fit_is_found_before_any_work(self, small_weights, tmp_path):
        file = tmp_path / "other.safetensors"
        name = "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"
        file.write_bytes(safetensors.to_bytes({name: np.zeros((4, 3072), np.float32)}))
        settings = self.settings(loras=(str(file),), weights=str(small_weights), num_frames=5, height=64, width=64)
        words = rf"config\.loras: .*other.*shape \[4, 3072\], expected \[4, {TRANSFORMER_SMALL.inner_dim}\]"
        with pytest.raises(InputError, match=words):
            chosen_models.check(settings, ["transformer"])
