"""The folder of converted weights: chunks, memory order, what lands on the disk and what is told of it."""

import json
import os
import resource

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from reangle_jax.data import chunks, weights_folder
from reangle_jax.data.weights_folder import ParamsWriter, open_arrays
from reangle_jax.errors import InputError


@pytest.mark.parametrize(
    ("shape", "depth", "want"),
    [
        ((42, 3072, 12288), 1, (1, 1536, 3072)),
        ((17776, 3072), 0, (2222, 3072)),
        ((32128, 4096), 0, (4016, 2048)),
        ((3, 5), 0, (3, 5)),
        ((7, 3), 2, (1, 1)),
        ((), 0, ()),
    ],
)
def test_chunks_divide_the_array(shape, depth, want):
    assert chunks.chunk_shape(shape, depth, 2) == want


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_transposition_in_blocks(rng, dtype):
    x = rng.integers(0, np.iinfo(dtype).max, (600, 300), dtype=dtype)
    for view in (x.T, x[::2, 3:].T, x[5:, ::3], x.T[:, ::-1], x[:300].reshape(100, 3, 300).swapaxes(1, 2)):
        np.testing.assert_array_equal(chunks.contiguous(view), view)
        assert chunks.contiguous(view).flags.c_contiguous
    assert chunks.contiguous(x) is x


@pytest.fixture
def arrays(rng):
    return {
        "blocks.kernel": rng.normal(size=(3, 8, 6)).astype(np.float32),
        "blocks.bias": rng.normal(size=(3, 6)).astype(ml_dtypes.bfloat16),
        "scale": np.array(2.5, np.float16),
    }


def write(folder, arrays, **keywords):
    described = {path: (x.shape, x.dtype) for path, x in arrays.items()}
    params = folder / weights_folder.PARAMS
    with ParamsWriter(params, described, {"blocks.kernel": 1, "blocks.bias": 1}, **keywords) as writer:
        for path, x in arrays.items():
            for index in np.ndindex(*x.shape[: path.startswith("blocks")]):
                writer.put(path, index, np.asarray(x[index]), f"{path}{list(index)}")
    weights_folder.describe_to_orbax(params, list(arrays))
    weights_folder.save_manifest(folder, {"model": "small"})


def test_written_and_read(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_folder, "GATHER_BYTES", 100)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 96)
    landed = []
    write(tmp_path, arrays, landed=landed.extend)
    assert sorted(landed) == sorted(
        [f"blocks.kernel[{k}]" for k in range(3)] + [f"blocks.bias[{k}]" for k in range(3)] + ["scale[]"]
    )
    kernel = sorted(os.listdir(tmp_path / "params/blocks.kernel"))
    assert kernel == [".zarray", *(f"{k}.{i}.0" for k in range(3) for i in range(2))]
    assert sorted(os.listdir(tmp_path / "params/blocks.bias")) == [".zarray", "0.0"]  # small: one file
    stored = open_arrays(tmp_path)
    assert stored.keys() == arrays.keys()
    for path, x in arrays.items():
        assert (stored[path].shape, stored[path].dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(stored[path].read(()), x)
    part = (slice(1, 3), slice(None), slice(2, 5))
    np.testing.assert_array_equal(stored["blocks.kernel"].read(part), arrays["blocks.kernel"][part])
    with ocp.PyTreeCheckpointer() as checkpointer:  # and Orbax itself
        assert set(checkpointer.restore(tmp_path.absolute() / "params")) == set(arrays)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"] == "small"
    for name, size in manifest["files"].items():
        assert (tmp_path / name).stat().st_size == size


def test_where_folders_cannot_be_synced(arrays, tmp_path, monkeypatch):
    """TensorStore would give up there; all is synced together then, before it is told of."""
    events = []
    monkeypatch.setattr(weights_folder.files, "fsync", lambda path: False)
    monkeypatch.setattr(os, "sync", lambda: events.append("sync"))
    write(tmp_path, arrays, landed=events.extend)
    assert (events[0], len(events)) == ("sync", 8)
    np.testing.assert_array_equal(open_arrays(tmp_path)["scale"].read(()), arrays["scale"])


def test_a_checkpoint_that_orbax_wrote(arrays, tmp_path):
    """With its defaults: one store of many small files, compressed."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", arrays)
    weights_folder.save_manifest(tmp_path, {})
    assert (tmp_path / "params/manifest.ocdbt").exists()
    stored = open_arrays(tmp_path)
    assert stored.keys() == arrays.keys()
    for path, x in arrays.items():
        np.testing.assert_array_equal(stored[path].read(()), x)


def test_a_slice_of_a_safetensors_file(arrays, tmp_path):
    weights_folder.save_arrays(tmp_path, arrays)
    stored = open_arrays(tmp_path)
    for path, x in arrays.items():
        np.testing.assert_array_equal(stored[path].read(()), x)
    part = (slice(1, 3), slice(None), slice(2, 5))
    np.testing.assert_array_equal(stored["blocks.kernel"].read(part), arrays["blocks.kernel"][part])


def test_what_cannot_be_written_is_not_told_of(arrays, tmp_path):
    arrays["large"] = np.ones((100, 100), np.float32)
    landed = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(tmp_path, arrays, landed=landed.extend)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "params")
    assert len(landed) == 7
    assert "large[]" not in landed


def test_a_chunk_that_is_gone_is_no_zeros(arrays, tmp_path):
    write(tmp_path, arrays)
    stored = open_arrays(tmp_path)
    (tmp_path / "params/scale/0").unlink()
    with pytest.raises(InputError, match=r"/params is damaged \(NOT_FOUND.*\); convert the weights again"):
        stored["scale"].read(())
    with pytest.raises(InputError, match=r"damaged \(params/scale/0 is missing\)"):
        open_arrays(tmp_path)
