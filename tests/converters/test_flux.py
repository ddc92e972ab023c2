"""FLUX's networks through the command: both layouts in, the published one out again."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from converters import check, command, registry, stream
from converters.families.flux import read_autoencoder, read_transformer, write_autoencoder
from converters.sources.folder import open_part
from reangle_jax.checkpoints import load_config
from reangle_jax.data import weights_folder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.models.text.clip import CLIPConfig
from reangle_jax.models.text.t5 import T5Config
from tests.clip_files import write_clip_tokenizer
from tests.conversion import revert
from tests.manifests import manifest
from tests.published import write_small, write_sparse
from tests.spiece import write_spiece

MODEL, CONTROLNET = "flux.1-dev", "flux.1-dev-controlnet-inpainting-beta"
_SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "axes_dims_rope": (2, 2, 4),
    "text_embed_dim": 6,
    "pooled_embed_dim": 5,
    "in_channels": 12,
}
TRANSFORMER = FluxConfig(num_layers=2, num_single_layers=3, out_channels=12, **_SIZES)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder, configs and parameters of a small pipeline."""
    folder = tmp_path_factory.mktemp("published")
    tokens = write_clip_tokenizer(folder / "tokenizer")
    write_spiece(folder / "tokenizer_2/spiece.model")
    configs = {
        "transformer": TRANSFORMER,
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


EXTRAS = {
    "transformer": [],
    "vae": [],
    "text_encoder": ["vocab.json", "merges.txt"],
    "text_encoder_2": ["spiece.model"],
}


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


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_the_single_file_gives_the_same(published, tmp_path, capsys, part):
    file = single_file(published, tmp_path, part)
    check_equal(convert(part, file, tmp_path / "ours"), published[2][part])
    assert "single file layout: converting" in capsys.readouterr().out
    made = json.loads((tmp_path / "ours" / part / "manifest.json").read_text())["tensors"]
    if part == "transformer":  # where a parameter has come from is said, to the row
        assert made["single.layers.heads.to_k.bias"]["from"][2] == "single_blocks.2.linear1.bias[16:32]"


def single_file(published, folder, part):
    folder.mkdir(exist_ok=True)
    source, configs, wanted = published
    _, (entry,) = registry.find(f"{MODEL}/{part}")
    save_file(revert(wanted[part], entry.layouts[1].table(configs[part])), folder / "one.safetensors")
    (folder / "config.json").write_bytes((source / part / "config.json").read_bytes())
    return folder / "one.safetensors"


@pytest.mark.parametrize("count", [1, 20, 50])
def test_an_interruption_between_parameters_of_one_tensor_is_continued(published, tmp_path, monkeypatch, count):
    file = single_file(published, tmp_path, "transformer")
    _, (entry,) = registry.find(f"{MODEL}/transformer")
    opened = open_part(file, entry, alone=True)
    plan = check.plan(MODEL, entry, opened)
    assert len(plan.moves) == len(opened.source.tensors) + 2 * 2 * 2 * 2 + 3 * 2 * 3
    monkeypatch.setattr(weights_folder, "REPORT_BYTES", 1)
    monkeypatch.setattr(weights_folder, "GATHER_BYTES", 0)
    written, put = [], weights_folder.ParamsWriter.put

    def counted(self, path, index, values, tag):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(tag)
        put(self, path, index, values, tag)

    def run():
        return stream.Writer(MODEL, plan, opened, tmp_path / "out", np.dtype(np.float32)).run()

    monkeypatch.setattr(weights_folder.ParamsWriter, "put", counted)
    with pytest.raises(KeyboardInterrupt):
        run()
    there = (tmp_path / "out/transformer.partial/journal.jsonl").read_text().splitlines()[1:]
    written, count = [], -1
    assert run()
    # Every piece once, those that were on the disk not again.
    assert sorted(written + [json.loads(name) for name in there]) == sorted(move.name for move in plan.moves)
    with ocp.PyTreeCheckpointer() as checkpointer:
        check_equal(checkpointer.restore((tmp_path / "out/transformer/params").absolute()), published[2]["transformer"])


def test_the_controlnet_there_and_back(tmp_path):
    config = ControlNetConfig(num_layers=2, num_single_layers=0, condition_channels=16, base_layers=3, **_SIZES)
    wanted = write_small(tmp_path / "in", CONTROLNET, {"controlnet": config})["controlnet"]
    arguments = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "ours"), "--dtype=float32"]
    assert command.main([CONTROLNET, *arguments]) == 0
    with ocp.PyTreeCheckpointer() as checkpointer:
        check_equal(checkpointer.restore((tmp_path / "ours/controlnet/params").absolute()), wanted)
    assert load_config(tmp_path / "ours/controlnet", ControlNetConfig) == config
    arguments = ["--source", str(tmp_path / "ours"), "--out", str(tmp_path / "theirs"), "--to-torch"]
    assert command.main([CONTROLNET, *arguments]) == 0
    file = "diffusion_pytorch_model.safetensors"
    check_equal(load_file(tmp_path / "theirs/controlnet" / file), load_file(tmp_path / "in" / file))


def test_fill_is_told_from_dev(tmp_path, capsys):
    """By its tensors where there is no config.json, and by that where there is one."""
    facts = manifest("flux.1-fill-dev.transformer")
    write_sparse(tmp_path / "diffusion_pytorch_model.safetensors", facts["tensors"])
    for config in (False, True):
        if config:
            (tmp_path / "config.json").write_text(json.dumps(facts["config"]))
        assert command.main([f"{MODEL}/transformer", "--source", str(tmp_path), "--check"]) == 2
        assert "this looks like flux.1-fill-dev, not flux.1-dev" in capsys.readouterr().err.splitlines()[0]
    assert command.main(["flux.1-fill-dev/transformer", "--source", str(tmp_path), "--check"]) == 0


def test_channels_out_are_those_in_where_nothing_is_said():
    fields = manifest("flux.1-dev.transformer")["config"]
    assert "out_channels" not in fields
    assert read_transformer({**fields, "in_channels": 32})["out_channels"] == 32


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
        ("transformer", {"patch_size": 2}, "patch_size is 2"),
        ("transformer", {"guidance_embeds": False}, "guidance_embeds is False, not True"),
        ("transformer", {"axes_dims_rope": [2, 2, 2]}, "do not add up to 8"),
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
