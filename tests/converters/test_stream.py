"""From the published layout to an Orbax checkpoint: the values, interruptions, and what is refused."""

import json
import os
import resource
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from converters import check, command, registry, stream
from converters.sources.folder import open_part
from converters.tables.common import rotated
from reangle_jax import checkpoints
from reangle_jax.data import chunks, files, weights_folder
from reangle_jax.errors import InputError
from tests import networks
from tests.published import shard, write_small

MODEL = "cogvideox-5b-i2v"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder, write_small(folder)


def writer(source, out, part="transformer", dtype="float32", **keywords):
    (entry,) = registry.find(f"{MODEL}/{part}")[1]
    opened = open_part(source, entry, alone=False)
    plan = check.plan(MODEL, entry, opened)
    return stream.Writer(MODEL, plan, opened, out, stream.stored_dtype(dtype), **keywords)


def restored(folder):
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute() / "params")


def assert_equal(got, want, dtype=np.float32):
    assert got.keys() == want.keys()
    for path, array in want.items():
        assert got[path].dtype == dtype
        np.testing.assert_array_equal(got[path], array.astype(dtype), err_msg=path)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_plain_orbax_reads_the_values(published, tmp_path, part):
    source, want = published
    assert writer(source, tmp_path / "out", part).run()
    folder = tmp_path / "out" / part
    assert_equal(restored(folder), want[part])
    assert os.listdir(tmp_path / "out") == [part]
    assert sorted(os.listdir(folder)) == ["config.json", "manifest.json", "params"]
    config = checkpoints.load_config(folder, type(networks_config(part)))
    assert config.param_dtype == "float32"
    files = {file.name for file in (source / part).iterdir() if file.suffix == ".safetensors"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {entry["file"] for entry in manifest["sources"]} == files
    for entry in manifest["sources"]:
        assert entry["sha256"] == stream._hash(source / part / entry["file"])
    assert manifest["tensors"].keys() == want[part].keys()


def networks_config(part):
    return {"transformer": networks.TRANSFORMER_SMALL, "vae": networks.VAE_SMALL, "text_encoder": networks.TEXT_SMALL}[
        part
    ]


def test_shards_chunks_and_cast(published, tmp_path, monkeypatch):
    """Several shards, several chunks a layer, another dtype: into another sharding, still the same values."""
    source, want = published
    shutil.copytree(source, tmp_path / "in")
    shard(tmp_path / "in/transformer/diffusion_pytorch_model.safetensors", 3)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 256)
    monkeypatch.setattr(weights_folder, "GATHER_BYTES", 300)
    writer(tmp_path / "in", tmp_path / "out", dtype="bfloat16").run()
    folder = tmp_path / "out/transformer"
    assert len(os.listdir(folder / "params/blocks.layers.ff.up.kernel")) > 8
    assert sorted(os.listdir(folder / "params/blocks.layers.ff.up.bias")) == [".zarray", "0.0", "1.0"]
    assert sorted(os.listdir(folder / "params/blocks.layers.attn.to_q.bias")) == [".zarray", "0.0"]
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    target = {
        path: jax.ShapeDtypeStruct(
            x.shape,
            ml_dtypes.bfloat16,
            sharding=jax.sharding.NamedSharding(
                mesh,
                jax.sharding.PartitionSpec(None, "a", "b")
                if path.endswith("ff.up.kernel")
                else jax.sharding.PartitionSpec(),
            ),
        )
        for path, x in want["transformer"].items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        got = checkpointer.restore(folder.absolute() / "params", target)
    assert_equal({path: np.asarray(x) for path, x in got.items()}, want["transformer"], ml_dtypes.bfloat16)


@pytest.mark.parametrize("count", [0, 1, 7, 40, 64])
def test_an_interruption_is_continued(published, tmp_path, monkeypatch, count):
    source, want = published
    monkeypatch.setattr(weights_folder, "REPORT_BYTES", 1)
    monkeypatch.setattr(weights_folder, "GATHER_BYTES", 0)
    lines = []

    class Interrupted(BaseException):
        pass

    def stop(_):
        nonlocal count
        count -= 1
        if count < 0:
            raise Interrupted

    with pytest.raises(Interrupted):
        writer(source, tmp_path / "out", advance=stop).run()
    assert os.listdir(tmp_path / "out") == ["transformer.partial"]
    arrays = tmp_path / "out/transformer.partial/arrays"
    before = {file: file.stat().st_mtime_ns for file in arrays.rglob("[0-9]*") if file.is_file()}
    there = len((tmp_path / "out/transformer.partial/journal.jsonl").read_text().splitlines()) - 1
    written = []
    original = weights_folder.ParamsWriter.put

    def put(self, path, index, values, tag):
        written.append(tag)
        original(self, path, index, values, tag)

    monkeypatch.setattr(weights_folder.ParamsWriter, "put", put)
    writer(source, tmp_path / "out", say=lines.append).run()
    assert lines == [f"continuing: {there} of 65 tensors are there"]
    # Nothing that is on the disk is written again.
    assert len(written) == 65 - there
    assert there == len(before) == max(0, 65 - len(written))
    assert_equal(restored(tmp_path / "out/transformer"), want["transformer"])


@pytest.mark.parametrize("damage", ['"cut o', '{"a": 1}\n', "\x00\xff\n", "[]"])
def test_a_damaged_journal(published, tmp_path, monkeypatch, damage):
    source, want = published
    with monkeypatch.context() as patch:
        patch.setattr(stream.Writer, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer(source, tmp_path / "out").run()
    journal = tmp_path / "out/transformer.partial/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:10]) + damage)
    writer(source, tmp_path / "out").run()
    assert_equal(restored(tmp_path / "out/transformer"), want["transformer"])


def test_stopped_before_the_rename(published, tmp_path, monkeypatch):
    source, want = published
    for name in ("save_manifest", "describe_to_orbax"):
        with monkeypatch.context() as patch:
            patch.setattr(weights_folder, name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                writer(source, tmp_path / name).run()
        assert os.listdir(tmp_path / name) == ["transformer.partial"]
        writer(source, tmp_path / name).run()
        assert_equal(restored(tmp_path / name / "transformer"), want["transformer"])


def test_a_finished_part_is_kept(published, tmp_path):
    source, _ = published
    assert writer(source, tmp_path / "out").run()
    lines = []
    assert not writer(source, tmp_path / "out", say=lines.append).run()
    assert lines == [f"{tmp_path}/out/transformer is finished already"]
    with pytest.raises(InputError, match="of another source, model or dtype"):
        writer(source, tmp_path / "out", dtype="bfloat16").run()
    (tmp_path / "out/transformer/manifest.json").unlink()
    with pytest.raises(InputError, match="is no finished conversion"):
        writer(source, tmp_path / "out").run()


def test_a_copied_source_is_known_by_its_hash(published, tmp_path):
    source, _ = published
    writer(source, tmp_path / "out").run()
    shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile)
    assert not writer(tmp_path / "copy", tmp_path / "out").run()
    file = tmp_path / "copy/transformer/diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="of another source"):
        writer(tmp_path / "copy", tmp_path / "out").run()


def test_an_altered_source_starts_again(published, tmp_path):
    source, want = published
    shutil.copytree(source, tmp_path / "in")
    with pytest.raises(ZeroDivisionError):
        writer(tmp_path / "in", tmp_path / "out", advance=lambda _: 1 / 0).run()
    file = tmp_path / "in/transformer/diffusion_pytorch_model.safetensors"
    save_file({name: x + 1 for name, x in load_file(file).items()}, file)
    lines = []
    writer(tmp_path / "in", tmp_path / "out", say=lines.append).run()
    assert lines == ["the source, model or dtype is another one than before: starting again"]
    got = restored(tmp_path / "out/transformer")
    np.testing.assert_array_equal(got["head.proj_out.bias"], want["transformer"]["head.proj_out.bias"] + 1)


def test_a_source_that_changes_meanwhile(published, tmp_path):
    source, _ = published
    shutil.copytree(source, tmp_path / "in")
    file = tmp_path / "in/transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(InputError, match="changed while it was read"):
        writer(tmp_path / "in", tmp_path / "out", advance=lambda _: os.utime(file)).run()
    assert os.listdir(tmp_path / "out") == ["transformer.partial"]


def test_a_truncated_source(published, tmp_path):
    source, _ = published
    shutil.copytree(source, tmp_path / "in")
    file = tmp_path / "in/transformer/diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(InputError, match="is truncated"):
        writer(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("sound", [True, False])
def test_the_hubs_cache_names_files_by_their_hash(published, tmp_path, sound):
    source, _ = published
    repository = tmp_path / "models--a--b"
    inner = repository / "snapshots/0123/transformer"
    inner.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in (source / "transformer").iterdir():
        digest = stream._hash(file) if sound or file.suffix == ".json" else "0" * 64
        shutil.copy(file, repository / "blobs" / digest)
        (inner / file.name).symlink_to(f"../../../blobs/{digest}")
    if sound:
        assert writer(inner.parent, tmp_path / "out").run()
    else:
        with pytest.raises(InputError, match="is damaged"):
            writer(inner.parent, tmp_path / "out").run()
        assert os.listdir(tmp_path / "out") == []


def test_full_disk(published, tmp_path, monkeypatch, capsys):
    source, want = published
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    arguments = [f"{MODEL}/transformer", "--source", str(source), "--out", str(tmp_path / "out"), "--dtype=float32"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free)
        assert command.main(arguments) == 2
        assert "GB free and" in capsys.readouterr().err
    # A limit on the size of files is the fault of this kind that needs no other disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        assert command.main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --out cannot be written (File too large: ")
    assert error.endswith("transformer.partial/arrays): mend that, and the same command continues")
    assert os.listdir(tmp_path / "out") == ["transformer.partial"]
    assert command.main(arguments) == 0
    assert_equal(restored(tmp_path / "out/transformer"), want["transformer"])


def test_two_at_once(published, tmp_path):
    source, _ = published
    second = writer(source, tmp_path / "out")
    with files.own_folder(second.partial, "--out"), pytest.raises(InputError, match="in use by another process"):
        second.run()


def test_float16_must_hold_the_values(published, tmp_path):
    source, _ = published
    shutil.copytree(source, tmp_path / "in")
    file = tmp_path / "in/transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + 1e6
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"--dtype=float16: proj_out.bias has values beyond its range"):
        writer(tmp_path / "in", tmp_path / "out", dtype="float16").run()
    writer(source, tmp_path / "out", "vae", dtype="float16").run()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_none_are_refused_by_name(published, tmp_path, dtype, value):
    shutil.copytree(published[0], tmp_path / "in")
    file = tmp_path / "in/vae/diffusion_pytorch_model.safetensors"
    tensors = {name: x.astype(stream.stored_dtype(dtype)) for name, x in load_file(file).items()}
    name = "decoder.conv_out.conv.weight"
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, file)
    with pytest.raises(InputError, match=rf"diffusion_pytorch_model.safetensors: {name} holds NaN or infinity"):
        writer(tmp_path / "in", tmp_path / "out", "vae").run()
    assert not (tmp_path / "out/vae").exists()


def test_dtypes_that_weights_have():
    with pytest.raises(InputError, match="--dtype=int4: weights are stored as float32, float16, bfloat16, int8"):
        stream.stored_dtype("int4")


def test_the_rotated_kernels_rows_move_as_its_columns_did(rng):
    from reangle_jax.nn.channel_order import to_halves

    kernel, vector = rotated(networks.TRANSFORMER_SMALL.attention_head_dim)
    x = rng.normal(size=(32, 20))
    np.testing.assert_array_equal(kernel.forward(x), to_halves(x.T, 16))
    np.testing.assert_array_equal(kernel.inverse(kernel.forward(x)), x)
    np.testing.assert_array_equal(vector.forward(x[:, 0]), kernel.forward(x)[0])
