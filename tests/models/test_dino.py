"""DINO and FeatUp without torch: published shapes, what the upsampler keeps, derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters import registry
from converters.tables import dino as tables
from converters.tables import featup as featup_tables
from reangle_jax.checkpoints import abstract, load_config, load_into, parameter_paths, save_model
from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, JBUStage, VisionTransformer, normalise
from reangle_jax.nn.execution import Execution
from tests.conversion import fill
from tests.manifests import manifest, table_faults

SMALL = FeatUpConfig(width=16, depth=2, heads=2, native_grid=2, patch_size=4, key_width=4, radius=1, stages=2)
apply = jax.jit(lambda model, *inputs: model(*inputs))  # op by op, each would be compiled on its own


def build(config=SMALL, seed=0, execution=None):
    """Random weights without compiling their drawing; biases too, so that none is 0."""
    rng = np.random.default_rng(seed)
    model = abstract(lambda: FeatUp(config, execution=execution, rngs=nnx.Rngs(0)))
    arrays = {}
    for path, variable in parameter_paths(model).items():
        centre = 1.0 if path.endswith(("scale", "sigma")) else 0.0
        arrays[path] = rng.normal(centre, 0.2, variable.shape).astype(np.float32)
    fill(model, arrays)
    return model


@pytest.fixture(scope="module")
def model():
    return build(SMALL)


def images_of(rng, *shape):
    return jnp.asarray(rng.uniform(size=(*shape, 3)), jnp.float32)


def check_fits(facts, table, make):
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(abstract(make)).items()}
    assert table_faults(facts["tensors"], table, targets) == []
    ignored = set(facts["tensors"]) & set(table.ignored)
    assert ignored == set(facts["unused_in_forward"])
    assert sum(int(np.prod(shape)) for shape in targets.values()) == facts["parameters"]


@pytest.mark.parametrize(("name", "table"), [("dino-vits16.pth", tables.pth()), ("dino-vits16-hf", tables.hf())])
def test_published_dino_fits(name, table):
    check_fits(manifest(name), table, lambda: VisionTransformer(DinoConfig.vits16(), rngs=nnx.Rngs(0)))


def test_published_featup_fits():
    config = FeatUpConfig.vits16()
    check_fits(
        manifest("featup-dino16-jbu-stack"), featup_tables.table(config), lambda: FeatUp(config, rngs=nnx.Rngs(0))
    )


@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize("layout", ["hf", "pth"])
def test_published_dinov2_fits(size, layout):
    """No manifest of its own: the depth network's files hold the same backbone under a prefix."""
    config = next(part.config for part in registry.find(f"dinov2-{size}")[1])
    file, prefix, mask, table = {
        "hf": (f"{size}-hf", "backbone.", "embeddings.mask_token", tables.dinov2_hf()),
        "pth": (f"vit{size[0]}.pth", "pretrained.", "mask_token", tables.dinov2_pth()),
    }[layout]
    whole = manifest(f"depth-anything-v2.{file}")["tensors"]
    tensors = {name.removeprefix(prefix): entry for name, entry in whole.items() if name.startswith(prefix)}
    sizes = {name: int(np.prod(entry["shape"])) for name, entry in tensors.items()}
    facts = {"tensors": tensors, "unused_in_forward": [mask]}
    facts["parameters"] = sum(sizes.values()) - sizes[mask]
    check_fits(facts, table, lambda: VisionTransformer(config, rngs=nnx.Rngs(0)))


def test_full_size_runs_abstractly():
    model = abstract(lambda: FeatUp(FeatUpConfig.vits16(), rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((2, 256, 384, 3), jnp.float32)
    features = nnx.eval_shape(lambda net, x: net.features(x), model, images)
    assert features.shape == (2, 16, 24, 384)
    assert nnx.eval_shape(lambda net, x: net(x), model, images).shape == (2, 256, 384, 384)


def test_tiny_is_small():
    counts = []
    for build_tiny in (
        lambda: VisionTransformer(DinoConfig.tiny(), rngs=nnx.Rngs(0)),
        lambda: FeatUp(FeatUpConfig.tiny(), rngs=nnx.Rngs(0)),
    ):
        counts.append(sum(int(np.prod(v.shape)) for v in parameter_paths(abstract(build_tiny)).values()))
    assert 0.25e6 < counts[0] < counts[1] < 0.35e6


def test_normalise():
    mean = jnp.broadcast_to(jnp.asarray([0.485, 0.456, 0.406]), (1, 2, 3, 3))
    np.testing.assert_allclose(normalise(mean), 0.0, atol=1e-6)
    np.testing.assert_allclose(normalise(mean + jnp.full_like(mean, 0.225))[..., 2], 1.0, rtol=1e-5)


def test_features_lie_row_by_row(model, rng):
    """A patch's token is the same whether it is read from the sequence or from the grid."""
    images = images_of(rng, 2, 12, 20)
    tokens = apply(model.backbone, images)
    grid = jax.jit(lambda net, x: net.features(x))(model.backbone, images)
    assert grid.shape == (2, 3, 5, 16)
    np.testing.assert_allclose(grid[:, 1, 3], tokens[:, 1 + 1 * 5 + 3], atol=1e-6)


def stage_without_fixup():
    stage = JBUStage(4, 1, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"), param_dtype=jnp.dtype("float32"))
    stage.fixup2.kernel.set_value(jnp.zeros_like(stage.fixup2.kernel[...]))
    return stage


def test_a_stage_keeps_constants_and_does_not_leave_the_range(rng):
    stage = stage_without_fixup()
    guidance = images_of(rng, 1, 10, 14)
    weights = jax.jit(lambda s, g: s.kernel(g))(stage, guidance)
    assert weights.shape == (1, 10, 14, 9)
    assert float(weights.min()) >= 0
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(apply(stage, jnp.full((1, 5, 7, 2), 3.0), guidance), 3.0, rtol=1e-5)


def test_a_stage_heeds_edges(rng):
    """Features that follow an edge of the image stay apart there; a guidance without edges blurs them more."""
    stage = stage_without_fixup()
    # Keys are the colours themselves, sharply compared: likeness is their product.
    stage.range1.kernel.set_value(jnp.asarray([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    stage.range2.kernel.set_value(jnp.eye(4) * 4.0)
    stage.range2.bias.set_value(jnp.asarray([-2.0, 0, 0, 0]))
    stage.log_temperature.set_value(jnp.asarray([3.0]))
    left = jnp.broadcast_to((jnp.arange(8) < 4).astype(jnp.float32)[None, None, :, None], (1, 8, 8, 3))
    step = left[:, ::2, ::2, :1]
    sharp = apply(stage, step, left)[0, 4, :, 0]
    blurred = apply(stage, step, jnp.zeros_like(left))[0, 4, :, 0]
    assert float(sharp[3] - sharp[4]) > float(blurred[3] - blurred[4]) + 0.1


@pytest.mark.slow
def test_guidance_is_the_image_unless_given(model, rng):
    images = images_of(rng, 1, 12, 20)
    np.testing.assert_array_equal(apply(model, images), apply(model, images, images))
    other = apply(model, images, images_of(rng, 1, 30, 33))  # of any size
    assert other.shape == (1, 12, 20, 16)
    assert float(jnp.abs(other - apply(model, images)).max()) > 1e-3


def test_every_parameter_matters(rng):
    graphdef, state = nnx.split(build(execution=Execution(remat="attention")))
    images = images_of(rng, 1, 12, 20)
    weights = jnp.asarray(rng.normal(size=(1, 12, 20, 16)), jnp.float32)
    loss = jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(images) * weights))
    for path, gradient in parameter_paths(jax.jit(loss)(state)).items():
        assert np.all(np.isfinite(gradient[...])), path
        assert np.any(np.asarray(gradient[...])), path


def test_bfloat16_computes_near_float32(model, rng):
    half = build(execution=Execution(dtype="bfloat16"))
    images = images_of(rng, 1, 12, 20)
    got = apply(half, images)
    assert got.dtype == jnp.bfloat16
    # Eight bits of mantissa through two blocks and two stages; values of order 1.
    np.testing.assert_allclose(got.astype(jnp.float32), apply(model, images), atol=0.15)


@pytest.mark.parametrize("use_norm", [True, False])
def test_saved_and_loaded(rng, tmp_path, use_norm):
    config = dataclasses.replace(SMALL, use_norm=use_norm)
    model = build(config)
    save_model(tmp_path, model, config)
    assert load_config(tmp_path, FeatUpConfig) == config
    loaded = load_into(abstract(lambda: FeatUp(config, rngs=nnx.Rngs(1))), tmp_path)
    images = images_of(rng, 1, 12, 20)
    np.testing.assert_array_equal(apply(loaded, images), apply(model, images))
