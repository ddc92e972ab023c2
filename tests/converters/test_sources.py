"""Folders, links, downloads and PyTorch files: what is found, and what is refused before anything is believed."""

import http.server
import json
import os
import pickle
import re
import struct
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from converters import registry
from converters.sources import hub
from converters.sources.folder import open_part
from converters.sources.torch_file import TorchSource
from reangle_jax.errors import InputError
from tests.published import write_small

MODEL = "cogvideox-5b-i2v"


def part(name="transformer"):
    return registry.find(f"{MODEL}/{name}")[1][0]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_small(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/spiece.model").write_bytes(b"pieces")
    return folder


def test_a_part_is_found_in_its_pipeline_by_itself_and_as_a_file(published):
    file = published / "text_encoder/model.safetensors"
    text = part("text_encoder")
    for path in (published, file.parent, file):
        opened = open_part(path, text, alone=True)
        assert opened.source.files == (file,)
        assert opened.config == json.loads((file.parent / "config.json").read_text())
    assert open_part(published, text, alone=True).extras == {"spiece.model": published / "tokenizer/spiece.model"}
    assert open_part(file.parent, text, alone=True).extras == {"spiece.model": published / "tokenizer/spiece.model"}


def test_what_is_missing_is_named(published, tmp_path):
    with pytest.raises(InputError, match="has no transformer/"):
        open_part(tmp_path, part(), alone=False)
    with pytest.raises(InputError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        open_part(tmp_path, part(), alone=True)
    with pytest.raises(InputError, match="is one file; give the pipeline's folder"):
        open_part(published / "vae/diffusion_pytorch_model.safetensors", part("vae"), alone=False)
    for name in "ab":
        save_file({"x": np.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"several files of weights \(a.safetensors, b.safetensors\)"):
        open_part(tmp_path, part(), alone=True)


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-00001-of-00001.safetensors: no such file"):
        open_part(tmp_path, part(), alone=True)


@pytest.mark.parametrize("content", ["{", "[]", "1" * 10_000, "\ud800"])
def test_damaged_config(tmp_path, content):
    save_file({"x": np.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"config.json"):
        open_part(tmp_path, part(), alone=True)


def test_links_out_of_the_folder(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "in/transformer"
    outside.mkdir()
    inside.mkdir(parents=True)
    save_file({"x": np.zeros(1)}, outside / "secret")
    link = inside / "diffusion_pytorch_model.safetensors"
    link.symlink_to(outside / "secret")
    for path, alone in ((tmp_path / "in", False), (inside, True)):
        with pytest.raises(InputError, match="is a link out of the folder"):
            open_part(path, part(), alone=alone)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(InputError):
        open_part(tmp_path / "in", part(), alone=False)
    link.unlink()
    save_file({"x": np.zeros(1)}, link)
    (inside / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="is a link out of the folder"):
        open_part(tmp_path / "in", part(), alone=False)


def test_links_of_the_hubs_cache(tmp_path):
    """A snapshot links to blobs beside it, and to nothing else."""
    repository = tmp_path / "models--a--b"
    inner = repository / "snapshots/0123/transformer"
    inner.mkdir(parents=True)
    (repository / "blobs").mkdir()
    save_file({"x": np.zeros(1)}, repository / "blobs/abc")
    link = inner / "diffusion_pytorch_model.safetensors"
    link.symlink_to("../../../blobs/abc")
    for path, alone in ((inner.parent, False), (inner, True)):
        assert open_part(path, part(), alone=alone).source.tensors.keys() == {"x"}
    link.unlink()
    save_file({"x": np.zeros(1)}, tmp_path / "secret")
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link out of the folder"):
        open_part(inner.parent, part(), alone=False)


# Downloads.


def test_paths_come_before_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").mkdir()
    assert hub.resolve("a/b", []).samefile(tmp_path / "a/b")
    for name in ("nowhere", "/a/b/c", "a/b/c", "../a/d", "https://huggingface.co/a/b", "a/b c"):
        with pytest.raises(InputError, match="no such file or folder"):
            hub.resolve(name, [])


def test_only_the_files_that_are_needed(tmp_path, monkeypatch):
    import fnmatch

    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id, *, allow_patterns, local_files_only):
        asked.update(repo_id=repo_id, patterns=allow_patterns, cached=local_files_only)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    patterns = [pattern for each in registry.find(MODEL)[1] for pattern in each.patterns]
    assert hub.resolve("THUDM/CogVideoX-5b-I2V", patterns) == tmp_path
    assert asked["repo_id"] == "THUDM/CogVideoX-5b-I2V"
    assert asked["cached"] is False

    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in asked["patterns"])

    assert wanted("transformer/diffusion_pytorch_model-00001-of-00003.safetensors")
    assert wanted("transformer/diffusion_pytorch_model.safetensors.index.json")
    assert wanted("vae/diffusion_pytorch_model.safetensors")
    assert wanted("vae/config.json")
    assert wanted("text_encoder/model-00002-of-00002.safetensors")
    assert wanted("tokenizer/spiece.model")
    for name in ("model.safetensors", "vae/diffusion_pytorch_model.bin", "README.md", "vae/x.py", "assets/a.mp4"):
        assert not wanted(name)


def test_a_check_downloads_nothing(tmp_path, monkeypatch, capsys):
    """The client itself, with an empty cache, and then with one that holds the repository."""
    from huggingface_hub import constants

    from converters import command

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert command.main(["depth-anything-v2-small", "--source", "a/b", "--check"]) == 2
    assert capsys.readouterr().err == (
        "error: --source=a/b: no such folder here, nor in the Hub's cache, and --check downloads nothing: give --out, "
        "which downloads, then checks before it converts\n"
    )
    snapshot = tmp_path / "models--a--b/snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b/refs").mkdir()
    (tmp_path / "models--a--b/refs/main").write_text("0123abc")
    assert hub.resolve("a/b", [], download=False) == snapshot


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers everything with what its server says."""

    def do_GET(self):
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """What is said when the Hub, a server here, gives an answer."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def said(status, headers=None, body=b"{}"):
        server.answer = status, headers or {}, body
        with pytest.raises(InputError) as caught:
            hub.resolve("a/b", ["x"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    yield said
    server.shutdown()
    thread.join()
    server.server_close()


HTML = {"content-type": "text/html"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401,), r"does not accept the token \(401\); make one on https://huggingface.co/settings/tokens"),
        ((401, {"X-Error-Code": "RepoNotFound"}), "no such repository on the Hub, or a private one; .*hf auth login"),
        ((401, {"X-Error-Code": "GatedRepo"}), "accept the licence on https://huggingface.co/a/b"),
        ((403, {"X-Error-Code": "GatedRepo"}), "accept the licence on https://huggingface.co/a/b"),
        ((403,), r"may not read this repository \(403\); give it that right"),
        ((403, HTML, b"<html>"), "a web page answered in place of the Hub"),
        ((200, HTML, b"<html>Log in</html>"), "a web page answered in place of the Hub"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "no such repository on the Hub"),
        ((407,), "the proxy refuses the connection; set HTTPS_PROXY"),
        ((429, {"Retry-After": "17"}), r"too many requests \(429\); .* wait 17 seconds"),
        ((500,), r"the Hub is out of order \(500\); try later: the same command continues it"),
        ((503, HTML, b"<html>"), r"the Hub is out of order \(503\)"),
    ],
)
def test_what_the_hub_answers(answered, answer, words):
    assert re.search(words, answered(*answer))


def test_downloads_that_fail(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fails(error):
        def snapshot_download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(InputError) as caught:
            hub.resolve("a/b", ["x"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be reached" in fails(errors.LocalEntryNotFoundError("gone"))
    assert "the same command continues" in fails(OSError(28, "No space left\non device"))

    class Answer:  # as of requests, which huggingface_hub used before 1.0
        status_code, headers = 403, {}

        def __bool__(self):
            return False

    error = OSError("Forbidden")
    error.response = Answer()
    assert "may not read this repository (403)" in fails(error)


def test_downloading_is_installed_with_the_package():
    """README's commands follow `pip install -e .`."""
    import huggingface_hub  # in every environment of the tests

    assert huggingface_hub.snapshot_download
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    runtime = setup[setup.index("RUNTIME") : setup.index("]\n", setup.index("RUNTIME"))]
    assert '"huggingface_hub' in runtime
    assert "torch" not in runtime


# PyTorch files.


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs torch: pip install 'reangle-jax\[convert\]'"):
        TorchSource(tmp_path / "x.pth")


def test_torch_files(tmp_path, rng):
    torch = pytest.importorskip("torch")
    import argparse

    state = {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.arange(5).to(torch.bfloat16),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
    }
    files = {
        "plain.pth": (state, True),
        "legacy.pth": (state, False),
        "wrapped.pth": ({"args": argparse.Namespace(lr=1), "model": state, "epoch": 3}, True),
        "module.ckpt": ({"state_dict": {name: torch.nn.Parameter(x) for name, x in state.items()}}, True),
    }
    for name, (content, archive) in files.items():
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=archive)
        source = TorchSource(tmp_path / name)
        assert source.tensors.keys() == state.keys()
        for key, tensor in source.tensors.items():
            got = source.read(tensor)
            assert got.dtype == tensor.dtype
            np.testing.assert_array_equal(got.astype(np.float32), state[key].float().numpy())


def test_torch_files_that_are_refused(tmp_path, rng):
    torch = pytest.importorskip("torch")
    trap = tmp_path / "executed"
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.zeros(1000)}, whole)
    contents = {
        "malicious.pth": lambda file: torch.save({"a": Malicious(trap)}, file),
        "legacy_malicious.pth": lambda file: torch.save(Malicious(trap), file, _use_new_zipfile_serialization=False),
        "bare_malicious.pth": lambda file: file.write_bytes(pickle.dumps(Malicious(trap))),
        "random.pth": lambda file: file.write_bytes(rng.bytes(5000)),
        "empty.pth": lambda file: file.write_bytes(b""),
        "truncated.pth": lambda file: file.write_bytes(whole.read_bytes()[:-900]),
        "nothing.pth": lambda file: torch.save({"lr": 1.0}, file),
        "list.pth": lambda file: torch.save([torch.zeros(3)], file),
        "sparse.pth": lambda file: torch.save({"a": torch.zeros(3, 3).to_sparse()}, file),
        "other.pth": lambda file: zip_of(file, {"x.txt": b"hello"}),
        "missing.pth": lambda file: None,
    }
    for name, write in contents.items():
        write(tmp_path / name)
        with pytest.raises(InputError) as caught:
            TorchSource(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert not trap.exists(), name


def zip_of(file, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_archives_that_unpack_to_more_than_their_size(tmp_path):
    pytest.importorskip("torch")
    bomb = tmp_path / "bomb.pth"
    zip_of(bomb, {"x/data.pkl": b"\x80\x02}.", "x/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpack to 50000004 bytes"):
        TorchSource(bomb)
    # An entry that only claims to be stored and huge: the directory's size field is raised.
    claim = tmp_path / "claim.pth"
    zip_of(claim, {"x/data.pkl": b"\x80\x02}.", "x/data/0": b"1234"})
    content = bytearray(claim.read_bytes())
    place = content.rfind(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 1 << 31)
    claim.write_bytes(content)
    with pytest.raises(InputError, match="unpack to"):
        TorchSource(claim)


def test_pickles_that_are_too_large(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("converters.sources.torch_file.MAX_PICKLE", 3)
    zip_of(tmp_path / "x.pth", {"x/data.pkl": b"\x80\x02}."})
    with pytest.raises(InputError, match="no usable data"):
        TorchSource(tmp_path / "x.pth")


def test_the_registry_is_consistent():
    names = list(registry.models())
    assert names[:4] == ["cogvideox-5b-i2v", "cogvideox1.5-5b-i2v", "cogvideox-5b", "cogvideox-2b"]
    for model in registry.models().values():
        assert len({entry.name for entry in model.parts}) == len(model.parts)
        for entry in model.parts:
            assert issubclass(entry.network, nnx.Module)
            for layout in entry.layouts:
                assert layout.table(entry.config).rules
