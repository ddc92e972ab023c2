"""VBench's subject consistency, from bytes to the figure, against its steps in PyTorch on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters import command
from reangle_jax.checkpoints import load_config
from reangle_jax.models.dino import DinoConfig
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.nn.resize import bilinear_matrix
from reangle_jax.scoring import consistency
from tests.parity.test_dino import CONFIG, authors_positions, original, tensors  # noqa: F401

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")
transformers = pytest.importorskip("transformers")

shown = jax.jit(consistency.shown)


def shown_in_torch(frames):
    """torchvision's Resize(224, antialias=False) of bytes: float32 and back, rounded; levels 0 to 255."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = [int(224 * side / short) for side in (height, width)]
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=False).round()


@pytest.mark.parametrize("size", [(448, 672), (240, 360), (300, 531), (200, 150)])
def test_frames_as_the_network_sees_them(rng, size):
    frames = rng.integers(0, 256, (2, *size, 3), np.uint8)
    got, expected = np.asarray(shown(jnp.asarray(frames))), shown_in_torch(frames).permute(0, 2, 3, 1).numpy()
    assert got.shape == expected.shape
    assert min(got.shape[1:3]) == 224
    # Halves, of which a size twice as large has many, go to the even level in both. Elsewhere PyTorch's places are
    # float32: 500 pixels away from the edge off by 3e-5, levels by up to 0.01.
    matrices = [bilinear_matrix(*pair, align_corners=False) for pair in zip(size, got.shape[1:3], strict=True)]
    exact = np.einsum("hH,bHWc,wW->bhwc", matrices[0], frames.astype(np.float64), matrices[1], optimize=True)
    half = np.abs(exact - np.floor(exact) - 0.5) < (0.02 if size[0] != 448 else 0)
    np.testing.assert_array_equal(got[~half], expected[~half])
    assert (got != expected).mean() < 3e-3  # one in 784 is a half, of 240 rows and columns to 224
    assert np.abs(got - expected).max() <= 1


def test_the_figure(rng, original, tensors, monkeypatch, tmp_path):  # noqa: F811
    """Through the converter; 9 frames are more than a batch; 224 x 372 pixels are no whole patches."""
    original.save_pretrained(tmp_path / "published")
    arguments = ["--source", str(tmp_path / "published"), "--out", str(tmp_path / "weights")]
    assert command.main(["dino-vitb16", *arguments]) == 0
    folder = tmp_path / "weights" / consistency.FOLDER
    # Small, as published; what is not in the published file is DINO's own.
    assert load_config(folder, DinoConfig) == dataclasses.replace(CONFIG, epsilon=1e-6)
    module = transformers.models.vit.modeling_vit.ViTEmbeddings
    monkeypatch.setattr(module, "interpolate_pos_encoding", authors_positions)
    frames = rng.integers(0, 256, (9, 14, 31, 3), np.uint8).repeat(8, axis=1).repeat(6, axis=2)
    images = shown_in_torch(frames) / 255
    images = (images - torch.from_numpy(IMAGENET_MEAN)[:, None, None]) / torch.from_numpy(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        tokens = original(images[:, :, :, :368], interpolate_pos_encoding=True).last_hidden_state[:, 0]
    features = functional.normalize(tokens, dim=-1)
    cosine = functional.cosine_similarity
    expected = [
        (max(0, cosine(features[k - 1], features[k], dim=0)) + max(0, cosine(features[0], features[k], dim=0))) / 2
        for k in range(1, 9)
    ]
    found = consistency.load(folder)(frames)
    np.testing.assert_allclose(found, tokens.numpy(), atol=1e-4)  # as tests/parity/test_dino.py, more tokens
    assert consistency.consistency(found) == pytest.approx(float(np.mean(expected)), abs=1e-5)
    assert np.mean(expected) < 0.999
