"""VBench's figures by networks, from bytes to the number, against their steps in PyTorch on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters import command
from converters.tables import clip_image
from reangle_jax.checkpoints import load, load_config, parameter_paths
from reangle_jax.models.clip import ClipImage, ClipImageConfig
from reangle_jax.models.dino import DinoConfig
from reangle_jax.nn.colours import CLIP_COLOURS, IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.nn.resize import bilinear_matrix
from reangle_jax.scoring import vbench
from tests.conversion import convert, fill
from tests.parity.test_dino import CONFIG, authors_positions, original, tensors  # noqa: F401  (fixtures)

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")
transformers = pytest.importorskip("transformers")

shown = jax.jit(vbench.shown)


def shown_in_torch(frames, mode="bilinear"):
    """torchvision's Resize(224, antialias=False) of bytes: float32 and back, rounded; levels 0 to 255."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = [int(224 * side / short) for side in (height, width)]
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    return functional.interpolate(images, size, mode=mode, align_corners=False, antialias=False).clamp(0, 255).round()


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
    folder = tmp_path / "weights" / vbench.SUBJECT
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
    found = vbench.load(folder)(frames)
    np.testing.assert_allclose(found, tokens.numpy(), atol=1e-4)  # as tests/parity/test_dino.py, more tokens
    assert vbench.consistency(found) == pytest.approx(float(np.mean(expected)), abs=1e-5)
    assert np.mean(expected) < 0.999


def test_background_and_aesthetic(rng, tmp_path):
    """CLIP's image tower through the converter, beside a text tower that is left over; a square out of the middle."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = {**sizes, "image_size": 224, "patch_size": 32, "projection_dim": 24}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**sizes, "vocab_size": 50}, vision_config=tower, projection_dim=24)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim < 2 or "embedding" in name else parameter[0].numel() ** -0.5
            mean = 1.0 if "norm" in name and "weight" in name else 0.0
            parameter.copy_(mean + spread * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "published")
    arguments = ["--source", str(tmp_path / "published"), "--out", str(tmp_path / "weights")]
    assert command.main(["clip-vit-base-patch32", *arguments]) == 0
    # From 112 x 186 pixels, whose weights are short binary fractions: no level lies on a half but for both.
    frames = rng.integers(0, 256, (9, 14, 31, 3), np.uint8).repeat(8, axis=1).repeat(6, axis=2)
    images = shown_in_torch(frames, "bicubic")[..., 74:298] / 255
    mean, deviation = (torch.from_numpy(x)[:, None, None] for x in CLIP_COLOURS)
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=(images - mean) / deviation).pooler_output
        vectors = model.visual_projection(hidden)
    assert vectors.std() > 0.1
    folder = tmp_path / "weights" / vbench.BACKGROUND
    tower = jax.jit(load(folder, ClipImageConfig, ClipImage))
    alone = tower(jnp.asarray(((images - mean) / deviation).permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(alone, vectors.numpy(), atol=1e-5 * np.abs(vectors.numpy()).max())
    found = vbench.load(folder)(frames)
    # Bicubic weights are no short fractions: a level in thousands is rounded to the other side.
    np.testing.assert_allclose(found, vectors.numpy(), atol=2e-3)

    torch.save({"weight": torch.randn(1, 24), "bias": torch.randn(1)}, tmp_path / "sa_0_4_vit_l_14_linear.pth")
    head = vbench.Aesthetic(vbench.AestheticConfig(width=24), rngs=nnx.Rngs(0))
    state = torch.load(tmp_path / "sa_0_4_vit_l_14_linear.pth", weights_only=True)
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(head).items()}
    fill(head, convert({name: x.numpy() for name, x in state.items()}, clip_image.aesthetic(), shapes))
    marks = functional.normalize(vectors, dim=-1) @ state["weight"].T + state["bias"]
    assert vbench.aesthetic(vectors.numpy(), head) == pytest.approx(float(marks.mean()) / 10, rel=1e-5)
