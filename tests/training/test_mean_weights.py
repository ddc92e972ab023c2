"""The mean of networks, and what is no mean."""

import numpy as np
import pytest

from reangle_jax import checkpoints
from reangle_jax.data import weights_folder
from reangle_jax.errors import InputError
from reangle_jax.models.dino import DinoConfig
from training import mean_weights


def folder(tmp_path, name, value, width=8):
    config = DinoConfig(width=width, depth=1, heads=1, patch_size=8, native_grid=4)
    weights_folder.save_arrays(tmp_path / name, {"a": np.full((2, 3), value, np.float16)})
    checkpoints.save_config(tmp_path / name, config)
    return str(tmp_path / name)


def test_the_mean_of_two_keeps_names_and_dtypes(tmp_path, monkeypatch):
    first, second, out = folder(tmp_path, "a", 1), folder(tmp_path, "b", 2), tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["mean_weights", first, second, "--out", str(out)])
    mean_weights.main()
    found = weights_folder.open_arrays(out)["a"].read(())
    np.testing.assert_array_equal(found, np.full((2, 3), 1.5, np.float16))
    assert found.dtype == np.float16
    assert weights_folder.read_config(out) == weights_folder.read_config(first)


def test_networks_of_two_kinds_have_no_mean(tmp_path):
    with pytest.raises(InputError, match="of another network"):
        mean_weights.mean([folder(tmp_path, "a", 1), folder(tmp_path, "b", 2, width=16)])
