"""Batches made ahead: the same from a thread as from several processes, and errors reach the loop."""

import functools
import itertools
import json
import os
import pickle

import numpy as np
import pytest

from training import feeding, pool

COUNT = 5


def picture(rng, step, *, pool):
    return {"crop": pool.random_crop(rng, 4, 4), "place": np.array([step, os.getpid()])}


def failing(rng, step):
    if step == 2:
        raise FloatingPointError("in step 2")
    return os.environ.get("JAX_PLATFORMS")


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """A folder as `training.pool` leaves it: two photographs, one of them held out, no clips, no cut-outs."""
    root = tmp_path_factory.mktemp("pool")
    names = ("mine", pool.HELDOUT_PHOTOS[0])
    np.savez(root / "photos.npz", **{n: _noise(k) for k, n in enumerate(names)})
    np.savez(root / "stamps.npz", stamps=np.zeros((0, 128, 128, 4), np.uint8))
    (root / "manifest.json").write_text(json.dumps({"format": pool.FORMAT, "photos": names, "clips": [], "stamps": []}))
    return pool.load_pool(root)


def _noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)


def first(count, *, seed, start=0, workers=0, **more):
    steps = feeding.batches(functools.partial(picture, **more), seed, start, workers)
    return list(itertools.islice(steps, count))


def test_batches_follow_from_seed_and_step_alone(pools):
    whole = first(COUNT, seed=1, pool=pools.train)
    assert [number for number, _ in whole] == [batch["place"][0] for _, batch in whole] == list(range(COUNT))
    for made in (
        first(COUNT - 2, seed=1, start=2, pool=pools.train),
        first(COUNT, seed=1, workers=2, pool=pools.train),
    ):
        for (a, x), (b, y) in zip(whole[-len(made) :], made, strict=True):
            assert a == b
            np.testing.assert_array_equal(x["crop"], y["crop"])
    assert {batch["place"][1] for _, batch in whole} == {os.getpid()}
    assert os.getpid() not in {batch["place"][1] for _, batch in made}
    other = first(COUNT, seed=2, pool=pools.train)
    assert not all(np.array_equal(x["crop"], y["crop"]) for (_, x), (_, y) in zip(whole, other, strict=True))


def test_a_pool_travels_as_its_place(pools):
    for split in pools:
        sent = pickle.dumps(split)
        assert len(sent) < 400
        again = pickle.loads(sent)
        assert again.photo_names == split.photo_names
        np.testing.assert_array_equal(again.photos[0], split.photos[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_batch_reaches_the_loop(workers, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    steps = feeding.batches(failing, 0, workers=workers)
    seen = "cpu" if workers else "cuda"  # a device belongs to one process
    assert [next(steps), next(steps)] == [(0, seen), (1, seen)]
    with pytest.raises(FloatingPointError, match="in step 2"):
        next(steps)
