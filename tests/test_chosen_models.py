import dataclasses
import json

import pytest

from reangle_jax import checkpoints, chosen_models, config, tiny
from reangle_jax.backbones import registry
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.nn.execution import Execution

TABLE = {"use_learned": True, "sample_frames": 17, "sample_height": 32, "sample_width": 48, "patch_size_t": None}


def settings(**changes):
    return config.parse(config.get_default().to_dict() | {"video": "clip.mp4"} | changes)


def test_learned_positions_allow_one_size_only():
    def check(fields=TABLE, **changes):
        chosen_models.backbone(settings(model="tiny", **changes)).check("transformer", fields)

    check(num_frames=17, height=128, width=192)
    with pytest.raises(
        InputError, match=r"config\.num_frames=49.*17 frames of 128x192 only: set config\.num_frames=17"
    ):
        check(height=128, width=192)
    with pytest.raises(InputError, match=r"set config\.width=192"):
        check(num_frames=17, height=128, width=208)
    check(TABLE | {"use_learned": False}, num_frames=21, height=64, width=64)


def test_the_bundled_weights_are_the_small_familys():
    vae = checkpoints.load_config(tiny.WEIGHTS / "vae", VAEConfig)
    assert dataclasses.replace(vae, scaling_factor=1.0) == dataclasses.replace(VAEConfig.tiny(), scaling_factor=1.0)
    assert checkpoints.load_config(tiny.WEIGHTS / "transformer", TransformerConfig) == TransformerConfig.tiny()
    grid = registry.ENTRIES["tiny"].grid
    assert grid.pixels == vae.spatial_compression_ratio
    assert grid.multiple == grid.pixels * TransformerConfig.tiny().patch_size


def test_the_choice_of_execution_reaches_the_networks():
    choice = {"attention": "xla", "remat": "none", "dtype": "bfloat16"}
    model = chosen_models.backbone(settings(model="tiny", num_frames=17, height=128, width=192, execution=choice))
    assert model.transformer.execution == Execution("xla", remat="none", dtype="bfloat16")
    assert (model.dtype, model.vae.execution.dtype) == ("bfloat16", "bfloat16")
    usual = chosen_models.backbone(settings(model="tiny", num_frames=17, height=128, width=192))
    assert usual.transformer.execution == Execution("mapped", remat="matmuls")  # the tests' devices are CPUs


def test_folders(tmp_path):
    assert chosen_models.folder(settings(model="tiny"), "vae") == tiny.WEIGHTS / "vae"
    assert str(chosen_models.folder(settings(), "vae")) == "weights/cogvideox-5b-i2v/vae"
    s = settings(weights=str(tmp_path), depth_weights="tiny")
    assert chosen_models.folder(s, "transformer") == tmp_path / "transformer"
    assert chosen_models.folder(s, "depth") == tiny.WEIGHTS / "depth"


def test_the_classes_are_the_models_own():
    """The names are spelled out so that a check needs no import of the models; here they are compared."""
    from reangle_jax.models.cogvideox.vae_config import VAEConfig
    from reangle_jax.models.depth_anything import DepthAnythingConfig
    from reangle_jax.models.text.t5 import T5Config

    classes = {
        "depth": DepthAnythingConfig,
        "transformer": TransformerConfig,
        "vae": VAEConfig,
        "text_encoder": T5Config,
    }
    assert {part: cls.__name__ for part, cls in classes.items()} == chosen_models.parts(settings())


def write(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # whole, though it holds nothing


def describe(published):
    return {"class": "TransformerConfig", **vars(published)}


def test_missing_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError,
        match=r"config\.weights: cogvideox-5b-i2v needs .* set config\.weights .*or make it: `python -m "
        r"converters cogvideox-5b-i2v --source SOURCE --out weights/cogvideox-5b-i2v`$",
    ):
        chosen_models.check(settings(), ["vae"])
    with pytest.raises(InputError, match=r"config\.weights: cogvideox-5b-i2v needs .* there is no .*/w/transformer: "):
        chosen_models.check(settings(weights=str(tmp_path / "w")), ["transformer"])
    with pytest.raises(InputError, match=r"config\.depth_weights: .*none/config\.json is missing"):
        chosen_models.check(settings(depth_weights=str(tmp_path / "none")), ["depth"])


def test_weights_of_another_model(tmp_path):
    write(tmp_path / "transformer", **describe(TransformerConfig.cogvideox_5b_i2v()))
    s = settings(weights=str(tmp_path))
    chosen_models.check(s, ["transformer"])
    with pytest.raises(
        InputError, match=r"num_frames=17: cogvideox-5b-i2v has learned positions for 49 frames of 480x720"
    ):
        chosen_models.check(settings(weights=str(tmp_path), num_frames=17), ["transformer"])
    write(tmp_path / "transformer", **describe(TransformerConfig.cogvideox1_5_5b_i2v()))
    with pytest.raises(InputError, match=r"another model than cogvideox-5b-i2v \(patch_size_t is 2, not None\)"):
        chosen_models.check(s, ["transformer"])
    newer = settings(weights=str(tmp_path), model="cogvideox1.5-5b-i2v", num_frames=81)
    chosen_models.check(newer, ["transformer"])
    write(tmp_path / "transformer", **{"class": "VAEConfig"})
    with pytest.raises(
        InputError, match="holds VAEConfig, not TransformerConfig: give the weights of cogvideox-5b-i2v"
    ):
        chosen_models.check(s, ["transformer"])
    finer = dataclasses.replace(VAEConfig.tiny(), block_out_channels=(16, 32, 48))
    write(tmp_path / "vae", **{"class": "VAEConfig"} | vars(finer))
    with pytest.raises(InputError, match=r"another model than cogvideox-5b-i2v \(a latent is 4 pixels a side, not 8\)"):
        chosen_models.check(s, ["vae"])
    (tmp_path / "transformer" / "config.json").write_text('{"class": "Trans')
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        chosen_models.check(s, ["transformer"])
