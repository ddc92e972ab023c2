"""Examples on disk: read as written, in parts, goes on where it stopped; TensorFlow stays away."""

import pickle
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from reangle_jax.errors import InputError
from training import dataset, records


class Clip(NamedTuple):
    frames: np.ndarray
    depth: np.ndarray
    prompt: str


def clip(number):
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    return Clip(frames, rng.normal(size=(3, 8, 8)).astype(np.float16), f"clip {number}, ä")


def write(folder, *parts):
    return [records.write(folder, Clip, first, map(clip, range(first, first + 3))) for first in parts]


def renamed(example):
    return example._replace(prompt="new")


def equal(a, b):
    return all(
        np.array_equal(x, y) and getattr(x, "dtype", str) == getattr(y, "dtype", str) for x, y in zip(a, b, strict=True)
    )


def test_parts_are_read_as_written_and_in_order(tmp_path):
    assert write(tmp_path, 3, 0) == [True, True]
    found = records.read(tmp_path, Clip, "python -m training.dataset")
    assert len(found) == 6
    assert all(equal(found[k], clip(k)) for k in (5, 0, 3))
    assert all(equal(a, clip(k)) for k, a in enumerate(found))
    assert [a.prompt for a in found[2:4]] == [clip(2).prompt, clip(3).prompt]
    (alone,) = records.read(tmp_path, Clip, "", ["prompt"])[1:2]
    assert alone == (None, None, clip(1).prompt)
    # The files are array_record's, as any reader of TensorFlow Datasets takes them.
    assert len(list(tmp_path.glob("*/clip/1.0.0/clip-train.array_record-00000-of-00001"))) == 2


def test_other_processes_open_them_again(tmp_path):
    write(tmp_path, 0, 3)
    found = records.read(tmp_path, Clip, "")[2:].map(renamed)
    sent = pickle.dumps(found)
    assert len(sent) < 500  # their place, not the examples
    again = pickle.loads(sent)
    assert len(again) == 4
    assert all(equal(a, clip(k + 2)._replace(prompt="new")) for k, a in enumerate(again))


def test_none_is_refused_with_the_command(tmp_path):
    with pytest.raises(InputError, match=r"has no clip records: run python -m training\.dataset --out x"):
        records.read(tmp_path, Clip, "python -m training.dataset --out x")
    with pytest.raises(InputError, match=rf"run python -m training\.dataset --out {tmp_path} --clips COUNT$"):
        dataset.load_clips(tmp_path)


def test_a_part_is_there_whole_or_not_at_all(tmp_path):
    def killed():
        yield clip(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write(tmp_path, Clip, 0, killed())
    with pytest.raises(InputError):
        records.read(tmp_path, Clip, "")
    # What a process that was killed outright leaves is swept away.
    (tmp_path / "0000000" / "clip" / "1.0.0.incomplete.ABC").mkdir(parents=True)
    assert write(tmp_path, 0) == [True]
    assert [path.name for path in (tmp_path / "0000000" / "clip").iterdir()] == ["1.0.0"]
    # One that is there is not made again.
    assert records.write(tmp_path, Clip, 0, iter(())) is False


@pytest.mark.slow
def test_tensorflow_is_never_imported(tmp_path):
    code = """
import sys
from tests.training.test_records import Clip, write
from training import dataset, records, views
write(sys.argv[1], 0)
assert len(records.read(sys.argv[1], Clip, "")[0].frames) == 3
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
