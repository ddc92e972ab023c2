"""The reader believes nothing: whatever the bytes, a tensor is inside of its file or there is one clear error."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.sources import safetensors
from converters.sources.safetensors import SafetensorsSource, read_index
from reangle_jax.data.safetensors import read_header
from reangle_jax.errors import InputError
from tests.published import header_bytes


def entry(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def assert_refused(tmp_path, content, words):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_header(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_reads_what_the_library_writes(tmp_path, rng):
    tensors = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b.c": rng.integers(0, 9, (2, 1, 5)),
        "scalar": np.array(3.0, np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    source = SafetensorsSource([file])
    assert source.tensors.keys() == tensors.keys()
    for name, tensor in source.tensors.items():
        read = source.read(tensor)
        assert read.dtype == tensors[name].dtype
        np.testing.assert_array_equal(read, tensors[name])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes are no safetensors file"),
        (b"\x01\x02", "2 bytes are no safetensors file"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "a header of 9223372036854775808 bytes"),
        ((99_999_999).to_bytes(8, "little") + b"{}", "ends inside of its header"),
        (header_bytes(b'{"a": '), "header is damaged"),
        (header_bytes(b"\xff\xfe{}"), "header is damaged"),
        (header_bytes(b"[" * 50_000), "header is damaged"),
        (header_bytes(b"[]"), "no JSON object"),
        (header_bytes(b'{"a": 1, "a": 2}'), "appears twice"),
        (header_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
        (header_bytes({"a": 1}), "is not described by"),
        (header_bytes({"a": {"dtype": "F32", "shape": [1]}}), "is not described by"),
        (header_bytes({"a": entry([1], 0, 4, "F128")}), "unknown dtype"),
        (header_bytes({"a": entry([1], 0, 4, ["F32"])}), "unknown dtype"),
        (header_bytes({"a": entry([-1], 0, 4)}), "no usable shape"),
        (header_bytes({"a": entry([1.0], 0, 4)}), "no usable shape"),
        (header_bytes({"a": entry([True], 0, 4)}), "no usable shape"),
        (header_bytes({"a": entry([1] * 40, 0, 4)}), "no usable shape"),
        (header_bytes({"a": entry([1], -4, 0)}), "no usable data_offsets"),
        (header_bytes({"a": entry([1], 0, "4")}), "no usable data_offsets"),
        (header_bytes({"a": entry([1], 4, 0)}), "needs 4"),
        (header_bytes({"a": entry([2], 0, 4)}) + b"0000", "has 4 bytes where F32"),
        # A product that wraps around in 64 bits.
        (header_bytes({"a": entry([1 << 62, 4], 0, 0)}), "has 0 bytes where F32"),
        (header_bytes({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}) + b"0000", "overlaps"),
        (header_bytes({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}) + b"00000000", "overlaps"),
        (header_bytes({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}) + b"0" * 12, "leaves a gap"),
        (header_bytes({"a": entry([1], 4, 8)}) + b"0" * 8, "leaves a gap"),
        (header_bytes({"a": entry([4], 0, 16)}) + b"0" * 15, "is truncated"),
        (header_bytes({"a": entry([4], 0, 16)}) + b"0" * 17, "belong to no tensor"),
    ],
)
def test_unsound_headers(tmp_path, content, words):
    assert_refused(tmp_path, content, words)


def test_random_damage(tmp_path, rng):
    """Any change of a header's bytes is refused or leaves every tensor inside of its file."""
    file, tensors = tmp_path / "x.safetensors", {"first": np.zeros((2, 3), np.float32), "second": np.zeros(5, np.int8)}
    save_file(tensors, file)
    whole = file.read_bytes()
    refusals = 0
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        content = bytes(content[: rng.integers(0, len(whole) + 1)]) if rng.random() < 0.3 else bytes(content)
        file.write_bytes(content)
        try:
            found = SafetensorsSource([file])
        except InputError:
            refusals += 1
        else:
            for tensor in found.tensors.values():
                assert found.read(tensor).nbytes == tensor.nbytes
                assert tensor.offset + tensor.nbytes <= len(content)
    assert 100 < refusals < 400


def test_random_bytes(tmp_path, rng):
    for size in (8, 9, 100, 5000):
        (tmp_path / "x.safetensors").write_bytes(rng.bytes(size))
        with pytest.raises(InputError):
            read_header(tmp_path / "x.safetensors")


def test_a_file_cut_after_its_header_was_read(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(100, np.float32)}, file)
    source = SafetensorsSource([file])
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(InputError, match="ends inside of a"):
        source.read(source.tensors["a"])


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        SafetensorsSource([tmp_path / "x.safetensors"])


def test_shards_must_be_those_of_the_index(tmp_path):
    for k in range(2):
        save_file({f"t{k}": np.zeros(2, np.float32)}, tmp_path / f"{k}.safetensors")
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    assert SafetensorsSource(files, {"t0": "0.safetensors", "t1": "1.safetensors"}).tensors.keys() == {"t0", "t1"}
    with pytest.raises(InputError, match="not those of the index") as caught:
        SafetensorsSource(files, {"t0": "1.safetensors", "t2": "1.safetensors"})
    assert caught.value.report == (
        "t0: is in 0.safetensors, the index says 1.safetensors",
        "t1: is in 1.safetensors, the index says nothing of it",
        "t2: the index puts it in 1.safetensors",
    )
    save_file({"t0": np.zeros(2, np.float32)}, files[1])
    with pytest.raises(InputError, match="t0 is in 0"):
        SafetensorsSource(files)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"])
def test_shards_stay_in_the_folder(tmp_path, name):
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(InputError, match="is not in this folder"):
        read_index(tmp_path / "i.json")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", '{"a":1,"a":1}']
)
def test_damaged_index(tmp_path, content):
    (tmp_path / "i.json").write_text(content)
    with pytest.raises(InputError):
        read_index(tmp_path / "i.json")


def test_huge_index(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "MAX_INDEX", 10)
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"t": "x"}}))
    with pytest.raises(InputError, match="too large"):
        read_index(tmp_path / "i.json")
