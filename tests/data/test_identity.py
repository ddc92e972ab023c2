"""What tells whether files and weights are the same ones, and how much of them is read to know."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from reangle_jax import config, main
from reangle_jax.data import files
from reangle_jax.data.identity import Identities
from reangle_jax.run import Ledger, run_stage
from reangle_jax.stages import depth, evaluate, finetune, first_frames, generate, ingest, warp_views

CHUNK = 16 << 20


@pytest.fixture
def opened(monkeypatch):
    """Paths of the files that Python opens, as often as it does."""
    found = []

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            found.append(Path(os.fsdecode(arguments[0])))

    sys.addaudithook(hook)
    yield found
    found.clear()


def converted(folder, tensors, *, sha="ab" * 32, mtime=1):
    """A part's folder as the converters leave it: `tensors` of 16 MiB a chunk each, without content."""
    folder.mkdir(parents=True)
    manifest = {"sources": [{"file": "x.safetensors", "size": 1, "mtime_ns": mtime, "sha256": sha}], "tensors": {}}
    for name, chunks in tensors.items():
        manifest["tensors"][name] = {"shape": [chunks, CHUNK // 2], "from": []}
        header = {"shape": [chunks, CHUNK // 2], "chunks": [1, CHUNK // 2], "dtype": "bfloat16", "compressor": None}
        (folder / "params" / name).mkdir(parents=True)
        (folder / "params" / name / ".zarray").write_text(json.dumps(header))
        for k in range(chunks):
            with (folder / "params" / name / f"{k}.0").open("wb") as file:
                file.truncate(CHUNK)
    (folder / "params/_METADATA").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_converted_weights_are_what_their_manifest_says(tmp_path):
    same = [converted(tmp_path / name, {"a": 2}, mtime=k) for k, name in enumerate(("one", "copy"))]
    other = converted(tmp_path / "other", {"a": 2}, sha="cd" * 32)
    longer = converted(tmp_path / "longer", {"a": 3})
    found = [Identities().weights(folder) for folder in (*same, other, longer)]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    (same[0] / "config.json").write_text("{}")
    with (same[1] / "params/a/0.0").open("wb") as file:
        file.truncate(CHUNK - 1)
    assert len({Identities().weights(folder) for folder in same} | set(found)) == 5
    assert Identities().weights(tmp_path / "none") is None


@pytest.mark.parametrize(("size", "read"), [(1 << 20, 1 << 20), (100 << 20, 8 << 14)])
def test_without_a_manifest_small_weights_are_read_whole_and_large_ones_in_places(tmp_path, monkeypatch, size, read):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(size)
    counts, pread, hash_file = [], os.pread, files.hash_file
    monkeypatch.setattr(os, "pread", lambda *a: counts.append(a[1]) or pread(*a))
    monkeypatch.setattr(files, "hash_file", lambda p: counts.append(Path(p).stat().st_size) or hash_file(p))
    identities = Identities()
    before = identities.weights(tmp_path)
    assert sum(counts) == read
    assert identities.weights(tmp_path) == before
    assert sum(counts) == read  # once a process
    for place in (0, 64 << 20, size - 1):  # a tensor that is large is hit wherever it lies
        if place < size:
            with path.open("r+b") as file:
                file.seek(place)
                file.write(b"x")
            os.utime(path, ns=(place, place))  # clocks of file systems are coarse
            now = identities.weights(tmp_path)
            assert now != before
            before = now


class TestIndex:
    """Hashes kept for the next process: a finished run's videos need not be read to say that they are there."""

    def again(self, tmp_path, monkeypatch):
        """What a new process finds, and what it reads for it."""
        read = []
        identities = Identities(tmp_path / "index")
        with monkeypatch.context() as patch:
            hash_file = files.hash_file
            patch.setattr(files, "hash_file", lambda path: read.append(path.name) or hash_file(path))
            found = identities.content(tmp_path / "folder")
        identities.save()
        return found, read

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "folder").mkdir()
        for name in "ab":
            (tmp_path / "folder" / name).write_text(name)
        return tmp_path / "folder"

    def test_what_is_untouched_is_not_read_again(self, tmp_path, folder, monkeypatch):
        found, read = self.again(tmp_path, monkeypatch)
        assert (found, read) == (files.hash_path(folder), ["a", "b"])
        assert self.again(tmp_path, monkeypatch) == (found, [])

    def test_an_edit_of_equal_size_is_seen_though_the_time_is_put_back(self, tmp_path, folder, monkeypatch):
        found, _ = self.again(tmp_path, monkeypatch)
        status = (folder / "a").stat()
        time.sleep(0.05)  # clocks of file systems are coarse
        (folder / "a").write_text("x")
        os.utime(folder / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
        now, read = self.again(tmp_path, monkeypatch)
        assert now == files.hash_path(folder) != found
        assert read == ["a"]

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "7", '{"a": 1}', '{"a": [[1], 2, 3]}', '{"a": [["x"], "y"]}', "[" * 99999]
    )
    def test_a_damaged_one_only_costs_time(self, tmp_path, folder, monkeypatch, text):
        (tmp_path / "index").write_text(text)
        assert self.again(tmp_path, monkeypatch) == (files.hash_path(folder), ["a", "b"])
        assert self.again(tmp_path, monkeypatch)[1] == []


def test_a_weights_file_is_read_once_however_many_units_ask(tmp_path, small_weights, opened):
    settings = config.get_default().to_dict() | {"video": "v.mp4", "weights": str(small_weights), "model": "tiny"}
    ledger = Ledger(tmp_path / "run", config.parse(settings | {"evaluate": {"untuned": True}}))
    opened.clear()
    for stage in (finetune.STAGE, generate.STAGE):
        for verdict in ledger.survey(stage):
            assert verdict.reasons == ("not done yet",)
    arrays = [path for path in opened if path.name == "model.safetensors"]
    assert sorted(arrays) == sorted(
        small_weights / part / "model.safetensors" for part in ("transformer", "vae", "text_encoder")
    )


def test_the_plan_of_a_finished_full_size_folder_reads_kilobytes(tmp_path, monkeypatch, capsys, opened):
    """Weights of 21 GB (holes in files: they take no room on the disk), and every unit of six views done."""
    from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
    from reangle_jax.models.cogvideox.vae_config import VAEConfig
    from reangle_jax.models.depth_anything import DepthAnythingConfig
    from reangle_jax.models.text.t5 import T5Config

    parts = {
        "transformer": (TransformerConfig.cogvideox_5b_i2v(), 670),
        "vae": (VAEConfig(), 26),
        "text_encoder": (T5Config.t5_v1_1_xxl(), 568),
        "depth": (DepthAnythingConfig.large(), 80),
    }
    from reangle_jax import checkpoints

    for part, (model, chunks) in parts.items():
        converted(tmp_path / "weights" / part, {"kernel": chunks - 1, "bias": 1})
        checkpoints.save_config(tmp_path / "weights" / part, model)
    (tmp_path / "clip.mp4").write_bytes(b"a clip")
    lines = ["from reangle_jax.config import get_default", "def get_config():", "    c = get_default()"]
    lines += [f"    c.video, c.weights = {str(tmp_path / 'clip.mp4')!r}, {str(tmp_path / 'weights')!r}"]
    lines += ["    c.evaluate.untuned = True", "    return c"]
    (tmp_path / "config.py").write_text("\n".join(lines))
    arguments = ["main", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--plan"]
    values = config.get_default().to_dict() | {"video": str(tmp_path / "clip.mp4"), "evaluate": {"untuned": True}}

    def pretend(settings, folder, work):
        for unit in work:
            for output in unit.outputs:
                files.atomic_write_bytes(folder / (output if output != "lora" else "lora/lora.safetensors"), b"made")

    with Ledger.opened(tmp_path / "run", config.parse(values | {"weights": str(tmp_path / "weights")})) as ledger:
        for module in (ingest, depth, warp_views, finetune, first_frames, generate, evaluate):
            stage = module.STAGE
            run_stage(type(stage)(stage.name, stage.version, stage.units, pretend), ledger)
    opened.clear()
    assert main.main(arguments) == 0
    text = capsys.readouterr().out
    states = [line.partition(" s  ")[2] for line in text.splitlines() if " s  " in line]
    assert [state.split()[0] for state in states] == ["done"] * 7, text
    assert "changed" not in text
    below = [path for path in opened if path.is_relative_to(tmp_path)]
    assert len(below) > 20
    assert sum(path.stat().st_size for path in below if path.exists()) < 300_000
    assert not [path for path in below if path.is_relative_to(tmp_path / "run") and path.suffix != ".json"]
    assert not [path for path in below if path.parent.parent.name == "params" and path.name != ".zarray"]
