"""Depth Anything V2 without torch: published shapes, preprocessing, videos, derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables import depth_anything as tables
from reangle_jax.checkpoints import abstract, load_config, load_into, parameter_paths, save_model
from reangle_jax.models.depth_anything import (
    DepthAnything,
    DepthAnythingConfig,
    estimate_video_depth,
    input_size,
    preprocess,
)
from reangle_jax.models.depth_anything import video as video_module
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.vit import VisionTransformer, ViTConfig, interpolate_positions
from tests.manifests import manifest, table_faults

SIZES = {"small": DepthAnythingConfig.small, "base": DepthAnythingConfig.base, "large": DepthAnythingConfig.large}
PTH = {"small": "vits", "base": "vitb", "large": "vitl"}
SMALL = DepthAnythingConfig(
    width=16, depth=2, heads=2, taps=(1, 1, 2, 2), neck_widths=(4, 4, 4, 4), fusion_width=4, head_width=4,
    native_grid=2,
)  # fmt: skip


apply = jax.jit(lambda model, images: model(images))  # op by op, each would be compiled on its own


@pytest.fixture(scope="module")
def model():
    return DepthAnything(SMALL, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["hf", "pth"])
def test_published_files_fit(size, layout):
    facts = manifest(f"depth-anything-v2.{size}-hf" if layout == "hf" else f"depth-anything-v2.{PTH[size]}.pth")
    table = tables.hf() if layout == "hf" else tables.pth()
    model = abstract(lambda: DepthAnything(SIZES[size](), rngs=nnx.Rngs(0)))
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    assert table_faults(facts["tensors"], table, targets) == []
    assert set(table.ignored) == set(facts["unused_in_forward"])
    unused = sum(int(np.prod(facts["tensors"][name]["shape"])) for name in facts["unused_in_forward"])
    assert sum(int(np.prod(shape)) for shape in targets.values()) + unused == facts["parameters"]


def test_full_size_runs_abstractly():
    model = abstract(
        lambda: DepthAnything(dataclasses.replace(DepthAnythingConfig.large(), max_depth=80.0), rngs=nnx.Rngs(0))
    )
    images = jax.ShapeDtypeStruct((1, 518, 784, 3), jnp.float32)
    depth = nnx.eval_shape(lambda model, images: model(images), model, images)
    assert depth.shape == (1, 518, 784)
    assert depth.dtype == jnp.float32


def test_tiny_is_small():
    model = abstract(lambda: DepthAnything(DepthAnythingConfig.tiny(), rngs=nnx.Rngs(0)))
    assert 1.0e6 < sum(int(np.prod(v.shape)) for v in parameter_paths(model).values()) < 1.35e6


@pytest.mark.parametrize(
    ("frame", "expected"),
    [((480, 720), (518, 784)), ((720, 480), (784, 518)), ((1080, 1920), (518, 924)), ((240, 360), (518, 784)),
     ((518, 518), (518, 518)), ((480, 640), (518, 686))],
)  # fmt: skip
def test_input_size(frame, expected):
    assert input_size(*frame, short_side=518, multiple=14) == expected


def test_input_size_rounds_half_to_even_and_never_below():
    # 128x192 to a short side of 126: 189 is 13.5 patches.
    assert input_size(128, 192, short_side=126, multiple=14) == (126, 196)
    # 60 is no multiple: 56 would be nearer, but lies below.
    assert input_size(100, 100, short_side=60, multiple=14) == (70, 70)


def test_preprocess_normalises():
    frames = np.full((2, 40, 60, 3), (124, 116, 104), np.uint8)  # ImageNet's mean
    images = preprocess(frames, short_side=28, multiple=14)
    assert images.shape == (2, 28, 42, 3)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, 0.0, atol=0.01)


def test_positions_at_the_native_size_are_untouched_and_constants_stay(rng):
    table = jnp.asarray(rng.normal(size=(1, 10, 4)), jnp.float32)
    assert interpolate_positions(table, 3, 3, 3, rule="authors") is table
    flat = jnp.ones((1, 10, 4))
    np.testing.assert_allclose(interpolate_positions(flat, 3, 4, 7, rule="authors"), 1.0, atol=1e-6)


def test_backbone_serves_without_layer_scale_and_at_another_patch_size(rng):
    config = ViTConfig(width=16, depth=2, heads=2, patch_size=16, native_grid=2, layer_scale=False)
    vit = VisionTransformer(config, rngs=nnx.Rngs(0))
    assert not any("scale1" in path or "scale2" in path for path in parameter_paths(vit))
    tokens = apply(vit, jnp.asarray(rng.normal(size=(1, 32, 48, 3)), jnp.float32))
    assert tokens.shape == (1, 7, 16)
    np.testing.assert_allclose(jnp.mean(tokens, -1), 0.0, atol=1e-5)  # the final norm


@pytest.mark.usefixtures("unchecked")
def test_wrong_values_are_refused(model):
    with pytest.raises(ValueError, match="multiple of the patch size 14"):
        model(jnp.zeros((1, 28, 30, 3)))
    with pytest.raises(ValueError, match="pos_interpolation 'nearest'"):
        _ = dataclasses.replace(SMALL, pos_interpolation="nearest").backbone
    with pytest.raises(ValueError, match="uint8"):
        estimate_video_depth(model, np.zeros((1, 28, 28, 3), np.float32))
    with pytest.raises(ValueError, match="T > 0"):
        estimate_video_depth(model, np.zeros((0, 28, 28, 3), np.uint8))
    with pytest.raises(ValueError, match="batch_size"):
        estimate_video_depth(model, np.zeros((1, 28, 28, 3), np.uint8), batch_size=0)


def test_video_depth_does_not_depend_on_batching_and_compiles_once(model, rng):
    model.head.conv3.bias.set_value(jnp.ones((1,)))
    frames = rng.integers(0, 256, (5, 30, 44, 3), dtype=np.uint8)
    compiled = video_module._estimate._cache_size()
    in_pairs = estimate_video_depth(model, frames, batch_size=2)
    assert video_module._estimate._cache_size() == compiled + 1
    assert in_pairs.shape == (5, 30, 44)
    assert in_pairs.dtype == np.float32
    assert in_pairs.std() > 1e-4
    estimate_video_depth(model, frames[:4], batch_size=2)
    assert video_module._estimate._cache_size() == compiled + 1
    for k in (0, 4):
        alone = estimate_video_depth(model, frames[k : k + 1])
        np.testing.assert_allclose(alone[0], in_pairs[k], atol=1e-5)


def test_short_side_is_a_choice(model, rng):
    frames = rng.integers(0, 256, (1, 30, 44, 3), dtype=np.uint8)
    depth = estimate_video_depth(model, frames, short_side=42)
    assert depth.shape == (1, 30, 44)
    assert np.abs(depth - estimate_video_depth(model, frames)).max() > 1e-6


def test_the_mean_with_the_mirror_image_is_that_of_flipping_by_hand(model, rng):
    model.head.conv3.bias.set_value(jnp.ones((1,)))
    frames = rng.integers(0, 256, (3, 30, 44, 3), dtype=np.uint8)
    plain, flipped = (estimate_video_depth(model, x) for x in (frames, np.ascontiguousarray(frames[:, :, ::-1])))
    assert np.abs(plain - flipped[:, :, ::-1]).max() > 1e-3  # the network is not symmetric
    both = estimate_video_depth(model, frames, batch_size=2, mirrored=True)
    np.testing.assert_allclose(both, (plain + flipped[:, :, ::-1]) / 2, atol=1e-5)


def test_metric_depth_stays_below_its_limit(rng):
    model = DepthAnything(dataclasses.replace(SMALL, max_depth=20.0), rngs=nnx.Rngs(0))
    depth = apply(model, jnp.asarray(rng.normal(size=(1, 28, 28, 3)), jnp.float32))
    assert float(depth.min()) > 0
    assert float(depth.max()) < 20


def test_bfloat16_computes_near_float32(model, rng):
    half = DepthAnything(SMALL, execution=Execution(dtype="bfloat16"), rngs=nnx.Rngs(0))
    nnx.update(half, nnx.state(model))
    images = jnp.asarray(rng.normal(size=(1, 28, 28, 3)), jnp.float32)
    assert nnx.eval_shape(lambda net, x: net(x), half.backbone, images).dtype == jnp.bfloat16
    # Eight bits of mantissa through two blocks and the head.
    np.testing.assert_allclose(apply(half, images), apply(model, images), atol=0.05)


def test_every_parameter_matters(rng):
    graphdef, state = nnx.split(DepthAnything(SMALL, execution=Execution(remat="attention"), rngs=nnx.Rngs(0)))
    images = jnp.asarray(rng.normal(size=(1, 28, 28, 3)), jnp.float32)

    def mean(state):
        net = nnx.merge(graphdef, state)
        return jnp.mean(net.head(net.backbone.taps(images, SMALL.taps), 2, 2))

    gradients = parameter_paths(jax.jit(jax.grad(mean))(state))
    assert [path for path, gradient in gradients.items() if not np.any(np.asarray(gradient[...]))] == []


def test_saved_and_loaded(model, rng, tmp_path):
    save_model(tmp_path, model, SMALL)
    config = load_config(tmp_path, DepthAnythingConfig)
    assert config == SMALL
    loaded = load_into(abstract(lambda: DepthAnything(config, rngs=nnx.Rngs(1))), tmp_path)
    images = jnp.asarray(rng.normal(size=(1, 28, 42, 3)), jnp.float32)
    np.testing.assert_array_equal(apply(loaded, images), apply(model, images))
