"""The command as it is typed: exit codes, reports, and what lies where afterwards."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from converters import command, registry, stream
from reangle_jax import tiny
from reangle_jax.backbones.registry import ENTRIES
from tests.manifests import manifest
from tests.published import SMALL, write_small, write_sparse
from tests.spiece import write_spiece

CONTROLNET_ADDRESS = "https://huggingface.co/alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta"
MODEL = "cogvideox-5b-i2v"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_small(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/spiece.model").write_bytes(b"pieces")
    return folder


def error(capsys, *arguments):
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    first, *rest = captured.err.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("  ") for line in rest)
    return first, rest


def test_a_pipeline_becomes_a_weights_folder(published, tmp_path, capsys):
    out = tmp_path / "weights"
    assert command.main([MODEL, "--source", str(published), "--out", str(out)]) == 0
    assert sorted(os.listdir(out)) == ["text_encoder", "transformer", "vae"]
    for part, dtype in (("transformer", "bfloat16"), ("vae", "float32"), ("text_encoder", "bfloat16")):
        config = json.loads((out / part / "config.json").read_text())
        assert config["class"] == ENTRIES[MODEL].parts[part]
        assert config["param_dtype"] == dtype
    assert (out / "text_encoder/spiece.model").read_bytes() == b"pieces"
    printed = capsys.readouterr().out
    assert "cogvideox-5b-i2v/transformer: 65 tensors, 0.00 GB, float32, diffusers layout: converting" in printed
    assert f"wrote {out}/vae" in printed
    # Again: everything is there.
    assert command.main([MODEL, "--source", str(published), "--out", str(out)]) == 0
    assert capsys.readouterr().err.count("is finished already") == 3


def test_a_broken_tokenizer_is_found_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SMALL, "text_encoder", dataclasses.replace(SMALL["text_encoder"], vocab_size=184))
    write_small(tmp_path)
    spiece = tmp_path / "tokenizer/spiece.model"
    spiece.parent.mkdir()
    spiece.write_bytes(b"pieces")
    arguments = [MODEL, "--source", str(tmp_path), "--check"]
    first, _ = error(capsys, *arguments)
    assert f"{spiece} cannot be read" in first
    write_spiece(spiece)
    assert command.main(arguments) == 0


def test_one_part(published, tmp_path):
    out = tmp_path / "weights"
    arguments = [f"{MODEL}/vae", "--source", str(published / "vae"), "--out", str(out), "--dtype=bfloat16"]
    assert command.main(arguments) == 0
    assert os.listdir(out) == ["vae"]
    assert json.loads((out / "vae/config.json").read_text())["param_dtype"] == "bfloat16"


def test_check_writes_nothing(published, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([MODEL, "--source", str(published), "--check"]) == 0
    assert capsys.readouterr().out.count(": fits") == 3
    assert os.listdir(tmp_path) == []


def test_check_reports_every_fault(tmp_path, capsys):
    tensors = dict(manifest("cogvideox-5b-i2v.vae")["tensors"])
    names = sorted(tensors)
    del tensors[names[3]]
    tensors[names[7]] = {**tensors[names[7]], "dtype": "float16"}
    file = write_sparse(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    first, rest = error(capsys, f"{MODEL}/vae", "--source", str(file), "--check")
    assert "does not fit cogvideox-5b-i2v/vae" in first
    assert "and 1 more" in first
    assert rest == [f"  {names[3]}: missing", f"  {names[7]}: is float16, the others are float32"]


def test_a_fault_in_one_part_stops_all(published, tmp_path, capsys):
    import shutil

    shutil.copytree(published, tmp_path / "in")
    (tmp_path / "in/text_encoder/model.safetensors").write_bytes(b"nothing")
    shutil.rmtree(tmp_path / "in/vae")
    first, rest = error(capsys, MODEL, "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert "has no vae/" in first
    assert len(rest) == 1
    assert "7 bytes are no safetensors file" in rest[0]
    assert not (tmp_path / "out").exists()


def test_list(capsys):
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for model in registry.models().values():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{model.name} ")]
        assert model.licence in line
        assert line.endswith(model.address)
    lines = [line.split() for line in printed.splitlines()]
    assert ["flux.1-dev/transformer", "23.80", "bfloat16"] in lines
    (line,) = [line for line in lines if line[0] == "flux.1-dev-controlnet-inpainting-beta"]
    assert line[1:7] == ["4.28", "bfloat16", "FLUX.1", "[dev]", "non-commercial", CONTROLNET_ADDRESS]
    assert ["flux.1-dev/text_encoder", "0.25", "bfloat16", "MIT"] in lines
    assert ["flux.1-dev/text_encoder_2", "9.52", "bfloat16", "Apache-2.0"] in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give NAME"),
        (["cogvideo"], "'cogvideo' is no model: there are cogvideox-5b-i2v,"),
        ([f"{MODEL}/encoder"], "is no part: cogvideox-5b-i2v has transformer, vae, text_encoder"),
        ([MODEL], "--source is not set: give the folder or file, or --source=THUDM/CogVideoX-5b-I2V"),
        ([MODEL, "--source=x"], "--out is not set"),
        ([MODEL, "--source=nowhere", "--check"], "--source=nowhere: no such file or folder"),
        ([MODEL, f"--source={'x' * 300}", "--check"], "--source: xxxx"),
        (
            [f"{MODEL}/vae", "--source=/dev/null", "--check"],
            "/dev/null: is neither a file nor a folder; check --source",
        ),
        ([MODEL, "--source=x", "--out=y", "--dtype=int4"], "--dtype=int4"),
        ([MODEL, "--source=x", "--out=gs://bucket/y"], "--out: gs://bucket/y is an address"),
        ([MODEL, "--sauce=x"], "unrecognized arguments: --sauce=x (see --help)"),
        ([MODEL, "--source"], "expected one argument (see --help)"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    first, rest = error(capsys, *arguments)
    assert words in first
    assert rest == []


def test_an_output_that_cannot_be_made(published, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    first, _ = error(capsys, f"{MODEL}/vae", "--source", str(published), "--out", str(tmp_path / "file/x"))
    assert "--out" in first


def test_a_signal_keeps_what_is_done(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream.Writer, "_finish", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    arguments = [f"{MODEL}/transformer", "--source", str(published), "--out", str(tmp_path)]
    assert command.main(arguments) == 143
    assert "the same command continues" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["transformer.partial"]
    monkeypatch.undo()
    assert command.main(arguments) == 0
    assert "continuing: 65 of 65 tensors are there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder"])
def test_to_torch_gives_the_published_file_back(published, tmp_path, name):
    from safetensors.numpy import load_file

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    part = f"{MODEL}/{name}"
    assert command.main([part, "--source", str(published), "--out", str(ours), "--dtype=float32"]) == 0
    assert command.main([part, "--source", str(ours), "--out", str(theirs), "--to-torch"]) == 0
    (file,) = (published / name).glob("*.safetensors")
    want, got = load_file(file), load_file(theirs / name / file.name)
    assert got.keys() == want.keys()
    for key, x in want.items():
        np.testing.assert_array_equal(got[key], x)
    config, back = (json.loads((folder / name / "config.json").read_text()) for folder in (published, theirs))
    assert config == back
    assert command.main([part, "--source", str(theirs), "--check"]) == 0
    # What is there is never overwritten.
    assert command.main([part, "--source", str(ours), "--out", str(theirs), "--to-torch"]) == 2


def test_to_torch_in_shards(published, tmp_path, monkeypatch, capsys):
    from converters import to_torch

    monkeypatch.setattr(to_torch, "SHARD_BYTES", 40_000)
    source = tiny.WEIGHTS
    assert command.main([f"{MODEL}/text_encoder", "--source", str(source), "--out", str(tmp_path), "--to-torch"]) == 0
    files = sorted(os.listdir(tmp_path / "text_encoder"))
    assert "model.safetensors.index.json" in files
    assert len(files) > 4
    assert command.main([f"{MODEL}/text_encoder", "--source", str(tmp_path), "--check"]) == 0
    assert "is no" not in capsys.readouterr().err


def test_to_torch_of_what_is_not_there(tmp_path, capsys):
    first, _ = error(capsys, f"{MODEL}/vae", "--source", str(tmp_path), "--out", str(tmp_path / "o"), "--to-torch")
    assert "config.json is missing" in first
    first, _ = error(
        capsys, "depth-anything-v2-small", "--source", str(tmp_path), "--out", str(tmp_path / "o"), "--to-torch"
    )
    assert "--to-torch is not offered" in first


@pytest.mark.slow
def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "converters", "--list"], capture_output=True, text=True, check=True)
    assert "cogvideox-2b" in done.stdout
