"""The depth stage with a small random network: what it writes, and weights that cannot be used."""

import dataclasses
import shutil

import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints, config
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig, estimate_video_depth
from reangle_jax.run import Ledger, run_stage
from reangle_jax.stages import depth
from tests.networks import DEPTH_SMALL, fill_randomly


@pytest.fixture(scope="module")
def metric_weights(tmp_path_factory):
    """Metric, since a random network's inverse depth may be zero everywhere."""
    folder = tmp_path_factory.mktemp("depth") / "depth"
    small = dataclasses.replace(DEPTH_SMALL, max_depth=20.0)
    model = checkpoints.abstract(lambda: DepthAnything(small, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    checkpoints.save_model(folder, model, small)
    return folder


@pytest.fixture
def run_depth(tmp_path, rng):
    def run_depth(folder, **changes):
        values = config.get_default().to_dict() | {"video": "x", "num_frames": 5, "height": 32, "width": 48}
        settings = config.parse(values | {"depth_weights": str(folder)} | changes)
        with Ledger.opened(tmp_path / "run", settings) as ledger:
            frames = rng.integers(0, 256, (5, 32, 48, 3)).astype(np.uint8)
            files.atomic_savez(ledger.root / "input/frames.npz", frames=frames, fps=8.0)
            run_stage(depth.STAGE, ledger)
            return files.load_npz(ledger.root / "input/depth.npz")["depth"]

    return run_depth


def test_depth_by_the_network(metric_weights, run_depth):
    z = run_depth(metric_weights)
    assert (z.shape, z.dtype) == ((5, 32, 48), np.float32)
    assert 0 < z.min() < z.max() <= 20.0


def test_depth_of_the_mirror_images_too(metric_weights, run_depth, tmp_path):
    plain, both = run_depth(metric_weights), run_depth(metric_weights, depth_mirrored=True)
    model = checkpoints.load(metric_weights, DepthAnythingConfig, DepthAnything)
    frames = files.load_npz(tmp_path / "run/input/frames.npz")["frames"]
    np.testing.assert_allclose(both, estimate_video_depth(model, frames, mirrored=True), rtol=1e-5)
    assert np.abs(both - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "is damaged"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: (file.parent / "config.json").write_text('{"class": "VAEConfig"}'), "describes VAEConfig"),
    ],
)
def test_weights_that_cannot_be_used(metric_weights, run_depth, tmp_path, spoil, words):
    shutil.copytree(metric_weights, tmp_path / "depth")
    spoil(tmp_path / "depth" / "model.safetensors")
    with pytest.raises(InputError, match=rf"config\.depth_weights: .*{words}"):
        run_depth(tmp_path / "depth")
    assert not (tmp_path / "run" / "input" / "depth.npz").exists()


def test_weights_of_another_size(metric_weights, run_depth, tmp_path):
    shutil.copytree(metric_weights, tmp_path / "depth")
    path = tmp_path / "depth" / "config.json"
    path.write_text(path.read_text().replace('"width": 32', '"width": 64'))
    with pytest.raises(InputError, match=r"config\.depth_weights: .*does not fit the model"):
        run_depth(tmp_path / "depth")


@pytest.fixture
def from_file(tmp_path):
    """Runs the stage on frames 3, 5, 7, 9, 11 of a clip of 64x96, shown at 32x48, with a depth file."""

    def from_file(values, kind="metric"):
        np.save(tmp_path / "depth.npy", values)
        changes = {"video": "x", "num_frames": 5, "height": 32, "width": 48, "depth_kind": kind}
        settings = config.parse(config.get_default().to_dict() | changes | {"depth": str(tmp_path / "depth.npy")})
        with Ledger.opened(tmp_path / "run", settings) as ledger:
            source = {"source_indices": np.arange(3, 12, 2), "source_size": (64, 96), "pixel_aspect": 1.0}
            frames = np.zeros((5, 32, 48, 3), np.uint8)
            files.atomic_savez(ledger.root / "input/frames.npz", frames=frames, fps=8.0, **source)
            run_stage(depth.STAGE, ledger)
            return files.load_npz(ledger.root / "input/depth.npz")["depth"]

    return from_file


def test_depth_of_the_whole_clip_from_a_file(from_file):
    whole = np.arange(20.0)[:, None, None] + np.linspace(1, 2, 96) * np.ones((64, 1))
    np.testing.assert_allclose(from_file(whole), whole[3:12:2, ::2, ::2], atol=0.02)


def test_a_depth_file_that_cannot_be_used(from_file, tmp_path):
    empty = np.ones((5, 32, 48)) + np.arange(48)
    empty[0] = 0
    for kind in ("metric", "inverse"):
        with pytest.raises(InputError, match=rf"^config\.depth: {tmp_path}/depth\.npy: frame 0 is zero everywhere"):
            from_file(empty, kind)
    with pytest.raises(InputError, match=r"^config\.depth: .*depth\.npy: its shape is \(7, 32, 48\).*frame 11 is"):
        from_file(np.ones((7, 32, 48)) + np.arange(48))
    with pytest.raises(InputError, match=r"^config\.depth: .*depth\.npy: .* of shape \(32, 48\) is no depth"):
        from_file(np.ones((32, 48)))
