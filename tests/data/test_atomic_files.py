import errno
import os
import time

import numpy as np
import pytest

from reangle_jax.data import files


def test_npz_bytes_depend_on_the_arrays_alone(tmp_path, monkeypatch):
    arrays = {"frames": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "fps": 8.0}
    files.atomic_savez(tmp_path / "a.npz", **arrays)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000))
    files.atomic_savez(tmp_path / "b.npz", **arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = files.load_npz(tmp_path / "a.npz")
    assert loaded["frames"].dtype == np.uint8
    np.testing.assert_array_equal(loaded["frames"], arrays["frames"])
    assert loaded["fps"] == 8.0


def test_failure_inside_keeps_the_old_file_and_no_leftover(tmp_path):
    target = tmp_path / "deep" / "x.bin"
    files.atomic_write_bytes(target, b"old")

    def fail_midway():
        with files.atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["x.bin"]


def test_full_disk_while_flushing_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    files.atomic_write_json(target, {"a": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.atomic_write_json(target, {"a": 2})
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders(tmp_path, monkeypatch, number):
    """Folders are let be; a file that cannot be flushed is still an error."""
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") or os.readlink(f"/proc/self/fd/{descriptor}").endswith("bad"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.atomic_write_bytes(tmp_path / "deep/x", b"x")
    with files.atomic_folder(tmp_path / "lora") as temporary:
        (temporary / "in").mkdir()
        (temporary / "in/y").write_bytes(b"y")
    assert (tmp_path / "deep/x").read_bytes() == b"x"
    assert (tmp_path / "lora/in/y").read_bytes() == b"y"
    (tmp_path / "bad").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        files.fsync(tmp_path / "bad")


def test_one_holder_of_a_lock(tmp_path, monkeypatch):
    with files.lock(tmp_path / "lock"), pytest.raises(BlockingIOError), files.lock(tmp_path / "lock"):
        pass
    with files.lock(tmp_path / "lock"):
        pass


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        files.atomic_write_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "lora"
    for names in (("a", "b"), ("c",)):
        with files.atomic_folder(target) as temporary:
            for name in names:
                (temporary / name).write_text(name)
    assert os.listdir(target) == ["c"]

    def fail_midway():
        with files.atomic_folder(target) as temporary:
            (temporary / "d").write_text("d")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert os.listdir(target) == ["c"]
    assert os.listdir(tmp_path) == ["lora"]


def test_hash_sees_contents_and_names(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("1")
    before = files.hash_path(tmp_path / "f")
    assert files.hash_path(tmp_path / "none") is None
    (tmp_path / "f" / "a").rename(tmp_path / "f" / "b")
    renamed = files.hash_path(tmp_path / "f")
    (tmp_path / "f" / "b").write_text("2")
    assert len({before, renamed, files.hash_path(tmp_path / "f")}) == 3
    (tmp_path / "f" / "b").rename(tmp_path / "f" / "a")
    (tmp_path / "f" / "a").write_text("1")
    assert files.hash_path(tmp_path / "f") == before


def test_leftovers_are_told_from_other_files(tmp_path):
    for name in (".x.npz.12.tmp", ".lora.12.old.tmp", "mine.tmp", ".mine.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".lora.7.tmp").mkdir()
    removed = {path.name for path in files.remove_leftovers(tmp_path)}
    assert removed == {".x.npz.12.tmp", ".lora.12.old.tmp", ".lora.7.tmp"}
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "mine.tmp"]
