"""Batches drawn on the device, and the bank that they are drawn from."""

import argparse
import functools
import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from reangle_jax import tiny
from reangle_jax.errors import InputError
from reangle_jax.geometry.splat import infill
from reangle_jax.stopping import Stopped
from training import depth_frames, device_batches, make_bank, train_bank, train_dust3r
from training.bank import read_bank, write_part
from training.dataset import HELD_OUT_FROM
from training.device_batches import cut_out, depth_batch, hats, hole_batch, pair_batch
from training.holes import Holes

HOLES = Holes(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), "")
matches = jax.jit(train_dust3r.matches, static_argnums=3)
truth = jax.jit(train_dust3r.true_points)


def stamps(count=2):
    """White squares, their borders transparent."""
    result = np.zeros((count, 32, 32, 4), np.uint8)
    result[:, 8:24, 12:20] = 255
    return result


def grey_is_near(count=4):
    """Pictures whose grey is their inverse depth."""
    ramp = np.linspace(20, 200, 96)[None, None, :] + np.linspace(0, 40, 64)[None, :, None]
    images = np.repeat(np.broadcast_to(ramp, (count, 64, 96))[..., None], 3, axis=-1).astype(np.uint8)
    return {"images": jnp.asarray(images), "inverse_depth": jnp.asarray(images[..., 0] / 255, jnp.float16)}


def test_hats_resize_a_line():
    line = jnp.arange(12.0) ** 2
    np.testing.assert_allclose(hats(jnp.float32(0), jnp.float32(12), 12, 12) @ line, line, atol=1e-5)
    half = hats(jnp.float32(2), jnp.float32(8), 12, 4)
    np.testing.assert_allclose(half.sum(1), 1, atol=1e-6)
    # Between pixels 2 and 3, 4 and 5, ...; the triangle of a square is its value and a spread of a half more.
    np.testing.assert_allclose(half @ jnp.arange(12.0), [2.5, 4.5, 6.5, 8.5], atol=1e-5)
    thin = hats(jnp.float32(2), jnp.float32(8), 12, 4, smooth=False)  # of four pixels two are not looked at
    np.testing.assert_allclose(thin @ line, half @ line - 0.5, atol=1e-5)
    assert ((half > 0).sum(1) == 4).all()
    assert ((thin > 0).sum(1) == 2).all()
    # Outside there is nothing.
    np.testing.assert_array_equal(hats(jnp.float32(-8), jnp.float32(4), 12, 4, inside=False), 0)


def test_cut_outs_lose_their_borders():
    found = cut_out(stamps())
    assert found["stamps"].shape == (2, device_batches.SIDE, device_batches.SIDE, 4)
    assert (found["stamps"][:, 4:-4, 4:-4] == 255).all()
    np.testing.assert_allclose(found["ratios"], 2.0)


def test_depth_goes_with_its_picture_and_cut_outs_stand_before_it(monkeypatch):
    bank = grey_is_near() | {name: jnp.asarray(x) for name, x in cut_out(stamps()).items()}
    bank |= {"real_images": bank["images"], "real_inverse_depth": 0 * bank["inverse_depth"]}

    @jax.jit
    def draw(share):  # traced, so that one program serves both shares
        monkeypatch.setattr(device_batches, "STANDING", share)
        return depth_batch(bank, jax.random.key(0), count=8, size=(42, 63), labelled=2)

    plain, standing = (jax.device_get(draw(share)) for share in (0.0, 1.0))
    np.testing.assert_array_equal(plain["exact"], [True] * 6 + [False] * 2)
    assert (plain["inverse_depth"][6:] == 0).all()
    for image, inverse in zip(plain["images"][:6], plain["inverse_depth"][:6], strict=True):
        assert np.corrcoef(image.mean(-1).reshape(-1), inverse.reshape(-1))[0, 1] > 0.9
    changed = standing["inverse_depth"][:6] != plain["inverse_depth"][:6]
    assert 0.02 < changed.mean() < 0.9
    # All of a cut-out that is seen is as near as the ground in the row of its foot: one value for each that stands.
    for before, after in zip(plain["inverse_depth"][:6], standing["inverse_depth"][:6], strict=True):
        new = np.unique(np.round(after[before != after], 4))
        assert len(new) <= device_batches.CUTOUTS
    # What stands is no farther than what it hides, but for the margin in which it may stand on it.
    assert (standing["inverse_depth"][:6] >= 0.97**3 * plain["inverse_depth"][:6] - 1e-4).all()


@pytest.mark.parametrize("square", [False, True])
def test_pairs_stay_true_when_cropped_and_mirrored(views, square):
    bank = {name: jnp.asarray(np.stack([getattr(v, name) for v in views])) for name in views[0]._fields}
    draw = jax.jit(functools.partial(pair_batch, count=8, square=square))
    batch = draw(bank, jax.random.key(1), same=0.0)
    assert batch["images"].shape == (2, 8, 128, 128 if square else 192, 3)
    first, second = truth(batch)
    target, valid = matches(first[:8], second[:8], batch["K"], 8)
    assert np.asarray(valid).mean() > 0.5  # a wrong camera finds hardly a spot at its depth
    patches = np.asarray(batch["images"][:, :, 4::8, 4::8], float).reshape(2, 8, -1, 3)
    here = np.take_along_axis(patches[0], np.asarray(target)[..., None], 1)
    apart = np.abs(here - patches[1]).mean(-1)[np.asarray(valid)]
    other = np.abs(np.roll(here, 5, 1) - patches[1]).mean(-1)[np.asarray(valid)]
    assert np.median(other) > 1.2 * np.median(apart)
    # The same picture twice, each in a light of its own.
    same = jax.device_get(draw(bank, jax.random.key(1), same=1.0))
    np.testing.assert_array_equal(same["poses"][0], same["poses"][1])
    np.testing.assert_array_equal(same["depth"][0], same["depth"][1])


def test_pictures_and_what_is_known_of_them_are_altered_alike():
    rng = np.random.default_rng(0)
    picture = rng.integers(40, 200, (3, 16, 24, 3), np.uint8)
    visible = rng.random((3, 16, 24)) < 0.7
    bank = {"picture": picture, "shown": np.where(visible[..., None], picture, np.uint8(7)), "visible": visible}
    draw = jax.jit(functools.partial(hole_batch, count=24))
    batch = jax.device_get(draw(jax.tree.map(jnp.asarray, bank), jax.random.key(0)))
    np.testing.assert_array_equal(batch["truth"][batch["visible"]], batch["shown"][batch["visible"]])
    assert (batch["shown"][~batch["visible"]] < 10).all()
    mirrored = 0
    for truth, seen in zip(batch["truth"], batch["visible"], strict=True):
        (k,) = (k for k in range(3) for side in (1, -1) if np.array_equal(seen, visible[k][:, ::side]))
        turned = not np.array_equal(seen, visible[k])
        mirrored += turned
        source = picture[k][:, :: -1 if turned else 1].reshape(-1, 3)
        likeness = np.corrcoef(truth.reshape(-1, 3).T, source.T)[:3, 3:]
        assert sorted(likeness.argmax(1)) == [0, 1, 2]
        assert (likeness.max(1) > 0.999).all()
    assert 4 < mirrored < 20


def test_a_bank_is_made_read_and_repeated(tmp_path, monkeypatch, views):
    monkeypatch.setattr(make_bank, "load_pool", lambda cache: type("Pools", (), {"train": None}))
    monkeypatch.setattr(make_bank, "render_views", lambda k, pool, varied: views[k % 2])
    visible = np.ones(views[0].images.shape[1:3], bool)
    visible[4:6, 4:6] = False
    known = type("Found", (), {"picture": views[0].images[0], "warp": views[0].images[1], "visible": visible})
    monkeypatch.setattr(make_bank, "random_holes", lambda *rest: known)
    moments = iter((0.0, 2.0))
    monkeypatch.setattr(make_bank.time, "time", lambda: next(moments))
    make_bank.worker(0, str(tmp_path), "", 1.0, part=2)
    found = read_bank(tmp_path, "views", 5)
    np.testing.assert_array_equal(found["images"], np.stack([views[k].images for k in (0, 1, 0, 1, 0)]))
    holes = read_bank(tmp_path, "holes")
    assert holes["picture"].shape[0] == 2 * make_bank.HOLES
    np.testing.assert_array_equal(holes["shown"], infill(np.stack([known.warp] * 4), np.stack([visible] * 4)))
    frames = depth_frames.Frames(views[0].images, views[0].depth)
    monkeypatch.setattr(make_bank, "render_scene", lambda seed, k, pool, varied, size: frames)
    moments = iter((0.0, 2.0))
    make_bank.worker(0, str(tmp_path), "", 1.0, part=2, kinds=("frames",))
    assert read_bank(tmp_path, "frames")["inverse_depth"].shape[0] == 2 * len(frames.images)
    # The newest part serves while there is no room for more.
    write_part(tmp_path, "frames_1_0", {"images": 0 * frames.images, "inverse_depth": 0 * frames.inverse_depth})
    os.utime(tmp_path / "frames_1_0.npz", (2e9, 2e9))
    assert not read_bank(tmp_path, "frames", len(frames.images))["images"].any()
    # Views are lifted of what is labelled by then: of nothing, none.
    monkeypatch.setattr(make_bank, "lifted_scene", lambda k, labels: views[len(labels["images"]) % 2])
    for count, labelled in ((2, False), (4, True)):
        if labelled:
            write_part(tmp_path, "labels_0_0", {"images": frames.images, "inverse_depth": frames.inverse_depth})
        moments = iter((0.0, 2.0))
        make_bank.worker(1, str(tmp_path), "", 1.0, part=2, kinds=("lifted",))
        assert len(read_bank(tmp_path, "views")["images"]) == count
    (tmp_path / "labels_0_0.npz").unlink()
    for kind, flag in (("labels", "--teacher MODULE"), ("views", "--kinds views")):
        with pytest.raises(InputError, match=f"has no {kind}: .* --seconds S {flag}$"):
            read_bank(tmp_path / "none", kind)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["depth", "--refresh=-1"], "argument --refresh: -1 is no whole number from 1 on (see --help)"),
        (["flux", "--wide"], "--wide: flux has one width: leave the flag out"),
        (["depth", "--workers=1"], "--workers: batches are drawn on the device: leave the flag out"),
        (["dust3r", "--batch=3"], "--batch=3: half of the pairs are squares: give an even number"),
        (
            ["flux", "--init=some/dust3r"],
            "--init=some/dust3r: give a folder named flux_transformer: the ControlNet's lies beside it",
        ),
        (["flux", "--out=mine"], "--out=mine: give a folder named flux_transformer: the ControlNet's lies beside it"),
    ],
)
def test_flags_that_a_bank_cannot_be_trained_with(arguments, words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_bank", *arguments, "--bank", "none", "--workdir", "none"])
    with pytest.raises(InputError) as caught:
        train_bank.main()
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--kinds", "lifted"), r"--kinds lifted: .* no labels .*; give --teacher MODULE too$"),
        (("--teacher", "no_such_one"), r"--teacher: there is no module no_such_one: name one on PYTHONPATH$"),
    ],
)
def test_photographs_are_not_lifted_by_nothing(flags, words, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_bank", "--out", str(tmp_path), "--seconds", "1", *flags])
    with pytest.raises(InputError, match=words):
        make_bank.main()


def test_workers_end_with_their_command(tmp_path, monkeypatch):
    ended = []

    class Job:
        def __init__(self, target, args):
            self.number = args[0]

        def start(self):
            pass

        def join(self):
            raise Stopped(signal.SIGTERM)

        def is_alive(self):
            return True

        def terminate(self):
            ended.append(self.number)

    monkeypatch.setattr(make_bank, "load_pool", lambda cache: None)
    context = types.SimpleNamespace(Process=Job)
    monkeypatch.setattr(make_bank.multiprocessing, "get_context", lambda way: context)
    monkeypatch.setattr("sys.argv", ["make_bank", "--out", str(tmp_path), "--seconds", "9", "--workers", "3"])
    with pytest.raises(Stopped):
        make_bank.main()
    assert ended == [0, 1, 2]


def test_a_broken_part_is_named(tmp_path):
    write_part(tmp_path, "holes_0_0", {"picture": np.zeros((2, 8, 8, 3), np.uint8)})
    path = tmp_path / "holes_0_0.npz"
    for whole in (path.read_bytes()[:300], b""):
        path.write_bytes(whole)
        with pytest.raises(InputError, match=rf"^{path} is no whole part \(.*\): remove it$"):
            read_bank(tmp_path, "holes")


def test_a_bank_grows_beside_what_there_is(tmp_path):
    for name in ("views_3_00000", "views_3_00004_lifted", "labels_3_00007", "views_4_00009"):
        write_part(tmp_path, name, {"x": np.zeros(1)})
    assert [make_bank.later(tmp_path, *which) for which in ((3,), (3, "views"), (3, "labels"), (5,))] == [8, 5, 8, 0]


def test_a_bank_has_no_held_out_scenes(tmp_path, monkeypatch, views):
    made = []
    monkeypatch.setattr(make_bank, "load_pool", lambda cache: type("Pools", (), {"train": None}))
    monkeypatch.setattr(make_bank, "render_views", lambda k, pool, varied: made.append(k) or views[0])
    monkeypatch.setattr(make_bank, "random_holes", lambda k, *rest: made.append(k) or HOLES)
    for number in (0, 1, 49, 50, 100, 5_000):
        moments = iter((0.0, 0.0, 2.0))
        monkeypatch.setattr(make_bank.time, "time", lambda moments=moments: next(moments))
        make_bank.worker(number, str(tmp_path), "", 1.0, part=2)
    assert max(made) < HELD_OUT_FROM


def test_labels_that_come_later_are_learnt_from_too(tmp_path):
    arrays = {"images": np.zeros((4, 2, 2, 3), np.uint8), "inverse_depth": np.zeros((4, 2, 2), np.float16)}
    write_part(tmp_path, "frames_0_0", arrays)
    assert train_bank.depth_frames(str(tmp_path), 8).keys() == arrays.keys()
    write_part(tmp_path, "labels_0_0", arrays)
    found = train_bank.depth_frames(str(tmp_path), 8)
    assert {name: len(x) for name, x in found.items()} == {
        "images": 8, "inverse_depth": 8, "real_images": 2, "real_inverse_depth": 2
    }  # fmt: skip


def test_the_small_flux_learns_from_a_bank_and_goes_on_from_its_weights(tmp_path):
    pictures = np.zeros((3, 128, 192, 3), np.uint8)
    write_part(tmp_path, "holes_0_0", {"picture": pictures, "shown": pictures, "visible": pictures[..., 0] > 0})
    init, out = (folder / "flux_transformer" for folder in (tiny.WEIGHTS, tmp_path / "out"))
    args = argparse.Namespace(bank=str(tmp_path), capacity=None, init=str(init), batch=2, seed=0, out=str(out))
    loss, parameters, load, save = train_bank.flux(args)
    value, figures = jax.eval_shape(loss, parameters, load() | {"late": jnp.float32(0)}, jax.random.key(0))
    assert value.shape == ()
    assert {"pixels", "features", "repeats", "features_later"} < figures.keys()
    save(parameters)
    for name in ("flux_transformer", "flux_controlnet"):
        ours, theirs = (load_file(folder.with_name(name) / "model.safetensors") for folder in (out, init))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_growing_bank_is_read_again_beside_the_steps():
    counts = iter((1, 2, 3))
    bank = train_bank.Bank(lambda: {"x": np.full(3, next(counts), np.float32)}, every=1e-3)
    first = bank.newest()
    np.testing.assert_array_equal(first["x"], 1)
    for _ in range(200):
        if bank.newest() is not first:
            break
        time.sleep(0.01)
    np.testing.assert_array_equal(bank.newest()["x"], 2)
    once = train_bank.Bank(lambda: {"x": np.zeros(1)}, every=None)
    assert once.newest() is once.newest()
