"""FLUX's autoencoder and text encoders through the command: both layouts in, the published one out again."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from converters import command, registry
from converters.families.flux import read_autoencoder, write_autoencoder
from reangle_jax.checkpoints import load_config
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.text.clip import CLIPConfig
from reangle_jax.models.text.t5 import T5Config
from tests.clip_files import write_clip_tokenizer
from tests.conversion import revert
from tests.published import write_small
from tests.spiece import write_spiece

MODEL = "flux.1-dev"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder, configs and parameters of a small pipeline."""
    folder = tmp_path_factory.mktemp("published")
    tokens = write_clip_tokenizer(folder / "tokenizer")
    write_spiece(folder / "tokenizer_2/spiece.model")
    configs = {
        "vae": AutoencoderConfig((4, 8, 8), layers_per_block=1, norm_num_groups=2, shift_factor=-0.25),
        "text_encoder": CLIPConfig(tokens, width=16, mlp_width=24, num_layers=2, num_heads=2),
        "text_encoder_2": T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    }
    return folder, configs, write_small(folder, MODEL, configs)


def convert(part, source, out):
    assert command.main([f"{MODEL}/{part}", "--source", str(source), "--out", str(out), "--dtype=float32"]) == 0
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore((out / part / "params").absolute())


def check_equal(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


EXTRAS = {"vae": [], "text_encoder": ["vocab.json", "merges.txt"], "text_encoder_2": ["spiece.model"]}


@pytest.mark.parametrize("part", EXTRAS)
def test_parts_there_and_back(published, tmp_path, part):
    folder, configs, wanted = published
    check_equal(convert(part, folder, tmp_path / "ours"), wanted[part])
    config = load_config(tmp_path / "ours" / part, type(configs[part]))
    assert config == configs[part]
    assert all((tmp_path / "ours" / part / name).is_file() for name in EXTRAS[part])
    arguments = ["--source", str(tmp_path / "ours"), "--out", str(tmp_path / "theirs"), "--to-torch"]
    assert command.main([f"{MODEL}/{part}", *arguments]) == 0
    stem = registry.find(f"{MODEL}/{part}")[1][0].stems[0]
    check_equal(*(load_file(root / part / f"{stem}.safetensors") for root in (tmp_path / "theirs", folder)))
    back, there = (json.loads((root / part / "config.json").read_text()) for root in (tmp_path / "theirs", folder))
    assert {**back, "torch_dtype": None} == {**there, "torch_dtype": None}
    tokenizer = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}.get(part)
    for name in EXTRAS[part]:
        assert (tmp_path / "theirs" / tokenizer / name).read_bytes() == (folder / tokenizer / name).read_bytes()


def test_the_single_file_gives_the_same_autoencoder(published, tmp_path, capsys):
    folder, configs, wanted = published
    _, (part,) = registry.find(f"{MODEL}/vae")
    save_file(revert(wanted["vae"], part.layouts[1].table(configs["vae"])), tmp_path / "ae.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "vae/config.json").read_bytes())
    check_equal(convert("vae", tmp_path / "ae.safetensors", tmp_path / "ours"), wanted["vae"])
    assert "single file layout: converting" in capsys.readouterr().out


def test_a_damaged_clip_tokenizer_is_found_first(published, tmp_path, capsys):
    folder, configs, _ = published
    write_small(tmp_path, MODEL, {"text_encoder": configs["text_encoder"]})
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).write_bytes((folder / "tokenizer" / name).read_bytes())
    arguments = [f"{MODEL}/text_encoder", "--source", str(tmp_path), "--check"]
    assert command.main(arguments) == 0
    (tmp_path / "tokenizer/merges.txt").write_text("nothing")
    capsys.readouterr()
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/tokenizer/merges.txt cannot be read ('nothing' is no pair)")


@pytest.mark.parametrize(("shift", "ours"), [(None, 0.0), (0.0, 0.0), (-0.1, -0.1)])
def test_a_shift_may_be_absent_nothing_or_negative(shift, ours):
    fields = {**write_autoencoder(AutoencoderConfig.flux1()), "shift_factor": shift}
    assert read_autoencoder(fields)["shift_factor"] == ours


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("vae", {"scaling_factor": -1.0}, "scaling_factor is '-1.0'"),
        ("vae", {"use_quant_conv": True}, "use_quant_conv is True"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("text_encoder", {"eos_token_id": 7}, "eos_token_id is 7"),
        ("text_encoder", {"num_attention_heads": 5}, "5 heads do not divide"),
    ],
)
def test_configs_of_other_networks_are_refused(published, tmp_path, capsys, part, change, words):
    _, configs, _ = published
    write_small(tmp_path, MODEL, {part: configs[part]})
    file = tmp_path / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert command.main([f"{MODEL}/{part}", "--source", str(tmp_path), "--check"]) == 2
    assert words in capsys.readouterr().err.splitlines()[0]
