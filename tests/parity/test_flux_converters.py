"""FLUX's autoencoder and CLIP between our weights and what diffusers and transformers write and open themselves."""

import json

import pytest

from converters import command
from tests.parity import test_clip, test_flux_autoencoder

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_from_theirs_to_ours_and_back(tmp_path, part):
    """Their folder, converted, brought back, opened again: every tensor as it was, every name known."""
    theirs = test_flux_autoencoder.pair("three levels")[0] if part == "vae" else test_clip.original(2)
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
