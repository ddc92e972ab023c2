"""FLUX's autoencoder and CLIP between our weights and what diffusers and transformers write and open themselves."""

import json

import numpy as np
import pytest
from flax import nnx

from converters import command
from converters.tables import flux_transformer
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.flux.transformer import FluxTransformer
from tests.conversion import revert
from tests.networks import fill_randomly
from tests.parity import test_clip, test_flux_autoencoder, test_flux_transformer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


ORIGINALS = {
    "transformer": lambda: test_flux_transformer.original(test_flux_transformer.SMALL),
    "vae": lambda: test_flux_autoencoder.pair("three levels")[0],
    "text_encoder": lambda: test_clip.original(2),
}


@pytest.mark.parametrize("part", ORIGINALS)
def test_from_theirs_to_ours_and_back(tmp_path, part):
    """Their folder, converted, brought back, opened again: every tensor as it was, every name known."""
    theirs = ORIGINALS[part]()
    theirs.save_pretrained(tmp_path / "in" / part)
    name, ours, back = f"flux.1-dev/{part}", str(tmp_path / "ours"), str(tmp_path / "back")
    assert command.main([name, "--source", str(tmp_path / "in"), "--out", ours, "--dtype=float32"]) == 0
    assert command.main([name, "--source", ours, "--out", back, "--to-torch"]) == 0
    opened, info = type(theirs).from_pretrained(tmp_path / "back" / part, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tensors = opened.state_dict()
    assert tensors.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(tensors[key], tensor), key
    before, after = (json.loads((tmp_path / at / part / "config.json").read_text()) for at in ("in", "back"))
    known = {key for key in after if not key.startswith("_") and key in before}
    assert {key: after[key] for key in known} == {key: before[key] for key in known}


def test_the_single_file_is_what_diffusers_takes_it_for(monkeypatch):
    """One network in both layouts by our tables; diffusers' own conversion of the one gives the other."""
    from diffusers.loaders import single_file_utils

    config = test_flux_transformer.SMALL
    model = abstract(lambda: FluxTransformer(config, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    arrays = {path: np.array(variable[...]) for path, variable in parameter_paths(model).items()}
    single = {name: torch.from_numpy(x) for name, x in revert(arrays, flux_transformer.original(config)).items()}
    assert single["single_blocks.0.linear1.weight"].shape == (7 * config.inner_dim, config.inner_dim)
    split = torch.split

    def narrower(x, sizes, dim):  # the published width, 3072, is written into their code
        return split(x, [size * config.inner_dim // 3072 for size in sizes], dim)

    monkeypatch.setattr(torch, "split", narrower)
    got = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(single)
    want = revert(arrays, flux_transformer.transformer(config))
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name].numpy(), array, err_msg=name)
