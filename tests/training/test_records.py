"""Examples on disk: read as written, in parts, goes on where it stopped; TensorFlow stays away."""

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


def test_batches_follow_from_seed_and_step_alone(tmp_path):
    write(tmp_path, 0, 3)
    found = records.read(tmp_path, Clip, "")

    def make_batch(rng, step):
        return step, np.stack([found[int(k)].frames for k in rng.integers(len(found), size=2)])

    def first(count, seed, start=0):
        steps = records.batches(make_batch, seed, start)
        return [next(steps) for _ in range(count)]

    whole, resumed = first(6, seed=1), first(3, seed=1, start=3)
    assert [number for number, _ in whole] == [step for _, (step, _) in whole] == list(range(6))
    for a, b in zip(whole[3:], resumed, strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1][1], b[1][1])
    assert not all(np.array_equal(a[1][1], b[1][1]) for a, b in zip(whole, first(6, seed=2), strict=True))


def test_an_error_in_a_batch_reaches_the_loop():
    def make_batch(rng, step):
        if step == 2:
            raise FloatingPointError("in step 2")
        return step

    steps = records.batches(make_batch, 0)
    assert [next(steps), next(steps)] == [(0, 0), (1, 1)]
    with pytest.raises(FloatingPointError, match="in step 2"):
        next(steps)


@pytest.mark.slow
def test_tensorflow_is_never_imported(tmp_path):
    code = """
import sys
from tests.training.test_records import Clip, write
from training import dataset, records, views
write(sys.argv[1], 0)
assert len(records.read(sys.argv[1], Clip, "")[0].frames) == 3
assert len(next(records.batches(lambda rng, step: rng.integers(9, size=2), 0))[1]) == 2
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
