"""Mends and names that several errors share."""

import pytest

from reangle_jax import checkpoints, errors
from reangle_jax.models.cogvideox.vae_config import VAEConfig


def test_a_wider_type_is_no_mend_of_the_widest():
    assert errors.wider("bfloat16") == "set config.execution.dtype=float32 (it is bfloat16), "
    assert errors.wider("float32") == ""


def test_a_folder_of_weights_is_told_by_the_flag_that_named_it(tmp_path):
    folder = tmp_path / "none"
    with pytest.raises(errors.InputError, match=rf"^{folder}/config\.json is missing"):
        checkpoints.load_config(folder, VAEConfig)
    with pytest.raises(errors.InputError, match=rf"^--init: {folder}/config\.json is missing"), errors.about("--init"):
        checkpoints.load_config(folder, VAEConfig)


def test_a_report_is_kept_by_whoever_names_the_flag():
    with pytest.raises(errors.InputError) as caught, errors.about("--source"):
        raise errors.InputError("x: two faults", ["one", "another"])
    assert (str(caught.value), caught.value.report) == ("--source: x: two faults", ("one", "another"))


def test_a_flag_of_a_commands_own_is_named_in_place_of_the_setting():
    line = "config.mesh='x' is no config.mesh_of; not config.execution.dtype"
    with pytest.raises(errors.InputError) as caught, errors.called(mesh="--mesh", execution__dtype="--dtype"):
        raise errors.InputError(line, ["more"])
    assert (str(caught.value), caught.value.report) == ("--mesh='x' is no config.mesh_of; not --dtype", ("more",))


def test_a_line_names_one_setting_that_which_is_to_be_mended():
    with pytest.raises(errors.InputError, match=r"^config\.base_dtype=float32: x"), errors.about("config.weights"):
        raise errors.InputError("config.base_dtype=float32: x")
    with pytest.raises(errors.InputError, match=r"^--out: x"), errors.about("--source"), errors.about("--out"):
        raise errors.InputError("x")
    with pytest.raises(errors.InputError, match=r"^config\.weights: config\.json: x"), errors.about("config.weights"):
        raise errors.InputError("config.json: x")
    with pytest.raises(errors.InputError, match=r"^--source: config\.json: x"), errors.about("--source"):
        raise errors.InputError("config.json: x")
