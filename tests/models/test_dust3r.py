"""DUSt3R and MASt3R without torch: published shapes, the tiny size, invariances, preprocessing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables import dust3r as tables
from reangle_jax.checkpoints import abstract, load_config, load_into, parameter_paths, save_model
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig, input_size, preprocess
from reangle_jax.models.dust3r.heads import pixel_shuffle, to_points
from reangle_jax.nn.execution import Execution
from tests.conversion import fill
from tests.manifests import manifest, table_faults

PUBLISHED = {
    "dust3r-224-linear.hub": ("linear", 224),
    "dust3r-512-linear.hub": ("linear", 512),
    "dust3r-512-dpt.hub": ("dpt", 512),
    "dust3r-512-dpt.pth": ("dpt", 512),
    "mast3r-512-catmlpdpt-metric.hub": ("mast3r", 512),
    "mast3r-512-catmlpdpt-metric.pth": ("mast3r", 512),
}
SMALL = Dust3rConfig(
    encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=8, decoder_depth=2, decoder_heads=2,
    head="linear", image_size=64, patch_size=8,
)  # fmt: skip
DENSE = dataclasses.replace(
    SMALL, decoder_depth=4, head="mast3r", patch_size=16, neck_widths=(4, 4, 4, 4), fusion_width=4, head_width=4,
    descriptor_width=3,
)  # fmt: skip

apply = jax.jit(lambda model, *inputs: model(*inputs))  # op by op, each would be compiled on its own
encode = jax.jit(lambda model, images: model.encode(images))
decode = jax.jit(lambda model, *tokens: model.decode(*tokens))


def build(config, execution=None, seed=0):
    """Random weights without compiling their drawing; biases too, so that none is 0."""
    rng = np.random.default_rng(seed)
    model = abstract(lambda: Dust3r(config, execution=execution, rngs=nnx.Rngs(0)))
    arrays = {}
    for path, variable in parameter_paths(model).items():
        stacked = path.startswith(("encoder.", "decoder."))
        kernel = variable.shape[1 + ("qkv" in path) :] if stacked else variable.shape
        scale = 0.1 if len(kernel) < 2 else np.prod(kernel[:-1]) ** -0.5
        arrays[path] = rng.normal(1.0 if path.endswith("scale") else 0.0, scale, variable.shape).astype(np.float32)
    fill(model, arrays)
    return model


@pytest.fixture(scope="module")
def model():
    return build(SMALL)


def images_of(rng, *shape):
    return jnp.asarray(rng.uniform(-1, 1, size=(*shape, 3)), jnp.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_fit(name):
    facts, config = manifest(name), Dust3rConfig.large(*PUBLISHED[name])
    table = tables.table(config.head)
    model = abstract(lambda: Dust3r(config, rngs=nnx.Rngs(0)))
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    assert table_faults(facts["tensors"], table, targets) == []
    copies = {**facts.get("aliases", {}), **facts.get("aliases_dropped", {})}
    assert set(table.ignored) == set(facts["unused_in_forward"]) | set(copies)
    unused = sum(int(np.prod(facts["tensors"][name]["shape"])) for name in facts["unused_in_forward"])
    assert sum(int(np.prod(shape)) for shape in targets.values()) + unused == facts["parameters"]


def test_full_sizes_run_abstractly():
    images = jax.ShapeDtypeStruct((1, 384, 512, 3), jnp.float32)
    full = abstract(lambda: Dust3r(Dust3rConfig.large("mast3r", 512), rngs=nnx.Rngs(0)))
    views = nnx.eval_shape(lambda net, x, y: net(x, y), full, images, images)
    for view in views:
        assert view.points.shape == (1, 384, 512, 3)
        assert view.confidence.shape == (1, 384, 512)
        assert view.descriptors.shape == (1, 384, 512, 24)
        assert view.descriptor_confidence.shape == (1, 384, 512)
        assert {x.dtype for x in view} == {jnp.dtype("float32")}


def test_tiny_is_small():
    config = Dust3rConfig.tiny()
    model = abstract(lambda: Dust3r(config, rngs=nnx.Rngs(0)))
    assert 2.7e6 < sum(int(np.prod(v.shape)) for v in parameter_paths(model).values()) < 2.8e6
    images = jax.ShapeDtypeStruct((2, 128, 192, 3), jnp.float32)
    first, second = nnx.eval_shape(lambda net, x, y: net(x, y), model, images, images)
    assert first.points.shape == second.points.shape == (2, 128, 192, 3)
    assert first.descriptors is None


def test_kept_tokens_give_the_same_as_pairs(model, rng):
    """Encoded once and decoded with any partner, in a batch or alone."""
    images = images_of(rng, 3, 24, 40)
    tokens = encode(model, images)
    assert tokens.shape == (3, 3, 5, 16)
    first, second = jnp.asarray([0, 0, 1]), jnp.asarray([1, 2, 2])
    whole = apply(model, images[first], images[second])
    kept = decode(model, tokens[first], tokens[second])
    # Float32, products of other shapes.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), kept, whole)
    alone = decode(model, tokens[:1], tokens[2:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[1], rtol=1e-4, atol=1e-4), alone, kept)
    assert float(jnp.abs(kept[0].points[0] - kept[0].points[1]).max()) > 0.1  # the partner matters


def test_images_of_two_sizes(model, rng):
    first, second = apply(model, images_of(rng, 1, 24, 40), images_of(rng, 1, 32, 16))
    assert first.points.shape == (1, 24, 40, 3)
    assert second.points.shape == (1, 32, 16, 3)
    assert float(first.confidence.min()) > 1.0


@pytest.mark.parametrize("config", [SMALL, DENSE], ids=["linear", "mast3r"])
def test_every_parameter_matters_and_slopes_are_finite(config, rng):
    graphdef, state = nnx.split(build(config, Execution(remat="attention")))
    size = (24, 40) if config.patch_size == 8 else (48, 80)
    first, second = images_of(rng, 2, 1, *size)
    weights = jnp.asarray(rng.normal(size=size), jnp.float32)

    def mean(state):
        views = nnx.merge(graphdef, state)(first, second)
        # Unequal weights: descriptors are of unit length, and equal ones would cancel.
        return sum(
            jnp.sum(leaf * weights.reshape(1, *size, *(1,) * (leaf.ndim - 3))) for leaf in jax.tree.leaves(views)
        )

    gradients = parameter_paths(jax.jit(jax.grad(mean))(state))
    for path, gradient in gradients.items():
        assert np.all(np.isfinite(gradient[...])), path
        assert np.any(np.asarray(gradient[...])), path


def test_points_keep_direction_and_have_a_slope_at_zero():
    raw = jnp.asarray([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [1e-3, 0.0, 0.0]])[None, None]
    points = to_points(raw)[0, 0]
    np.testing.assert_allclose(points[0], np.array([0.6, 0.0, 0.8]) * np.expm1(5.0), rtol=1e-6)
    np.testing.assert_array_equal(points[1], 0.0)
    np.testing.assert_allclose(points[2, 0], np.expm1(1e-3), rtol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(to_points(x)))(jnp.zeros((1, 1, 1, 3)))
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)


def test_pixel_shuffle_puts_rows_before_columns():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)  # two channels of 2x2
    y = pixel_shuffle(x, 2)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(y[0, :, :, 1], [[4, 5], [6, 7]])


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((480, 720), 512, (336, 512)), ((720, 480), 512, (512, 336)), ((600, 600), 512, (384, 512)),
     ((480, 720), 224, (224, 224)), ((128, 192), 512, (336, 512))],
)  # fmt: skip
def test_input_size(shape, size, expected):
    assert input_size(*shape, image_size=size) == expected
    assert preprocess(np.zeros((*shape, 3), np.uint8), image_size=size).shape == (*expected, 3)


def test_preprocess_of_the_native_size_changes_nothing(rng):
    image = rng.integers(0, 256, (128, 192, 3), dtype=np.uint8)
    got = preprocess(image, image_size=192, multiple=8)
    np.testing.assert_allclose(got, image / 127.5 - 1.0, atol=1e-6)


def test_squares_are_cropped_unless_allowed():
    assert input_size(300, 300, image_size=512, square_ok=True) == (512, 512)
    assert input_size(64, 64, image_size=192, multiple=8) == (144, 192)


def test_wrong_values_are_refused(model):
    with pytest.raises(ValueError, match="multiple of the patch size 8"):
        model.encode(jnp.zeros((1, 24, 30, 3)))
    with pytest.raises(ValueError, match="head 'conv'"):
        dataclasses.replace(SMALL, head="conv")
    with pytest.raises(ValueError, match="needs patches of 16"):
        dataclasses.replace(SMALL, head="dpt")
    with pytest.raises(ValueError, match="too narrow"):
        input_size(10, 600, image_size=512)


def test_saved_and_loaded(model, rng, tmp_path):
    save_model(tmp_path, model, SMALL)
    config = load_config(tmp_path, Dust3rConfig)
    assert config == SMALL
    loaded = load_into(abstract(lambda: Dust3r(config, rngs=nnx.Rngs(1))), tmp_path)
    images = images_of(rng, 3, 24, 40)
    np.testing.assert_array_equal(encode(loaded, images), encode(model, images))
