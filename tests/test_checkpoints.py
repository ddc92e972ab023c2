"""Weights folders: written, read back, and refused when something is wrong."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load

from reangle_jax import checkpoints
from reangle_jax.data import safetensors, weights_folder
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from tests.networks import TEXT_SMALL, fill_randomly


def abstract_encoder():
    return checkpoints.abstract(lambda: T5Encoder(TEXT_SMALL, rngs=nnx.Rngs(0)))


@pytest.fixture
def folder(tmp_path):
    model = abstract_encoder()
    fill_randomly(model)
    checkpoints.save_model(tmp_path, model, TEXT_SMALL)
    return tmp_path


def test_round_trip_is_bitwise(folder):
    config = checkpoints.load_config(folder, T5Config)
    assert config == TEXT_SMALL
    model, again = abstract_encoder(), checkpoints.load_into(abstract_encoder(), folder)
    fill_randomly(model)
    ids = jnp.arange(8)[None] + 3
    np.testing.assert_array_equal(model(ids), again(ids))


def test_configs_of_before_that_said_how_to_compute_are_read(folder):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    assert not fields.keys() & {"attention_impl", "remat", "dtype"}
    path.write_text(json.dumps({**fields, "attention_impl": "xla", "remat": True, "dtype": "bfloat16"}))
    assert checkpoints.load_config(folder, T5Config) == TEXT_SMALL
    path.write_text(json.dumps({**fields, "rematerialised": True}))
    with pytest.raises(InputError, match="unknown fields rematerialised"):
        checkpoints.load_config(folder, T5Config)


def test_half_precision_is_stored_and_widened(tmp_path):
    model = abstract_encoder()
    fill_randomly(model)
    checkpoints.save_model(tmp_path, model, TEXT_SMALL, dtype=np.float16)
    stored = weights_folder.open_arrays(tmp_path)
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    again = checkpoints.parameter_paths(checkpoints.load_into(abstract_encoder(), tmp_path))
    for path, value in checkpoints.parameter_paths(model).items():
        assert again[path].dtype == jnp.float32
        # float16 keeps 11 bits; below 6e-5 it keeps fewer.
        np.testing.assert_allclose(again[path][...], value[...], rtol=2**-11, atol=6e-8)


def test_damage_is_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        checkpoints.load_into(abstract_encoder(), folder)
    weights.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        checkpoints.load_into(abstract_encoder(), folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        checkpoints.load_into(abstract_encoder(), folder)


def test_every_misfit_is_named(folder):
    arrays = {path: stored.read(()) for path, stored in weights_folder.open_arrays(folder).items()}
    names = sorted(arrays)
    arrays["stranger"] = arrays.pop(names[0])
    arrays[names[1]] = np.zeros((1, 2, 3), np.float32)
    (folder / "model.safetensors").write_bytes(safetensors.to_bytes(arrays))
    with pytest.raises(InputError) as caught:
        checkpoints.load_into(abstract_encoder(), folder)
    for word in (f"{names[0]}: missing", "stranger: unknown", f"{names[1]}: shape (1, 2, 3)"):
        assert word in str(caught.value)


def test_another_models_config_is_refused(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "class": "VAEConfig"}))
    with pytest.raises(InputError, match="describes VAEConfig, not T5Config"):
        checkpoints.load_config(folder, T5Config)
    (folder / "config.json").write_text(json.dumps({**fields, "colour": 3}))
    with pytest.raises(InputError, match="unknown fields colour"):
        checkpoints.load_config(folder, T5Config)


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (T5Config, "num_layers", "three"),
        (T5Config, "num_layers", -3),
        (T5Config, "num_layers", 2.5),
        (T5Config, "num_layers", True),
        (T5Config, "num_layers", None),
        (T5Config, "num_layers", 10**9),
        (VAEConfig, "block_out_channels", "wide"),
        (VAEConfig, "block_out_channels", [8, "8"]),
        (VAEConfig, "block_out_channels", 8),
        (VAEConfig, "scaling_factor", float("nan")),
    ],
)
def test_a_value_that_no_network_has_is_told_in_a_line(tmp_path, config_class, field, value):
    checkpoints.save_config(tmp_path, config_class.tiny())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"no such network .{field} is .*convert the weights again"):
        checkpoints.load_config(tmp_path, config_class)


def test_equal_content_gives_equal_bytes_in_every_process():
    program = (
        "import numpy as np, hashlib; from reangle_jax.data.safetensors import to_bytes as f;"
        "print(hashlib.sha256(f({'a': np.zeros(3), 'b': np.ones(2)}, {c: c for c in 'pqrstuvw'})).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1
    content = load(safetensors.to_bytes({"a": np.zeros(3), "b": np.ones(2)}, {"p": "q"}))
    np.testing.assert_array_equal(content["b"], np.ones(2))
