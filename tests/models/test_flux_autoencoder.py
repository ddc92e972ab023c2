import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from manifests import manifest, table_faults
from networks import fill_randomly

from converters.tables.flux_autoencoder import DIFFUSERS, original
from reangle_jax import checkpoints
from reangle_jax.models.flux.autoencoder import Autoencoder, ResidualBlock
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.nn.execution import Execution

SMALL = AutoencoderConfig((4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4)


def build(config=SMALL, **execution):
    model = checkpoints.abstract(lambda: Autoencoder(config, execution=Execution(**execution), rngs=nnx.Rngs(0)))
    fill_randomly(model)
    return nnx.split(model)


@pytest.fixture(scope="module")
def full_size():
    model = checkpoints.abstract(lambda: Autoencoder(AutoencoderConfig.flux1(), rngs=nnx.Rngs(0)))
    return {path: tuple(variable.shape) for path, variable in checkpoints.parameter_paths(model).items()}


def test_published_layouts_fill_every_parameter(full_size):
    published = manifest("flux.1-dev.vae")
    assert sum(np.prod(shape) for shape in full_size.values()) == published["parameters"] == 83_819_683
    assert table_faults(published["tensors"], DIFFUSERS, full_size) == []
    assert table_faults(manifest("flux1-ae.bfl")["tensors"], original(4), full_size) == []


@pytest.mark.parametrize(
    ("name", "table"), [("flux.1-dev.vae", DIFFUSERS), ("flux1-ae.bfl", original(4))], ids=["diffusers", "original"]
)
def test_a_spoiled_layout_is_named(full_size, name, table):
    tensors = manifest(name)["tensors"]
    lost, bent, *_ = sorted(tensors)
    del tensors[lost]
    tensors[bent]["shape"] = [7, *tensors[bent]["shape"][1:]]
    tensors["loss.logvar"] = {"shape": [1]}
    faults = table_faults(tensors, table, full_size)
    assert [fault.split(":")[0] for fault in faults] == [bent, "loss.logvar", lost]


def test_config_is_the_published_one():
    published, ours = manifest("flux.1-dev.vae")["config"], AutoencoderConfig.flux1()
    assert ours.block_out_channels == tuple(published["block_out_channels"])
    for name in ("layers_per_block", "latent_channels", "in_channels", "norm_num_groups"):
        assert getattr(ours, name) == published[name]
    assert (ours.scaling_factor, ours.shift_factor) == (published["scaling_factor"], published["shift_factor"])


@pytest.mark.parametrize(("config", "ratio"), [(AutoencoderConfig.tiny(), 4), (AutoencoderConfig.flux1(), 8)])
def test_compression_comes_from_the_config(config, ratio):
    graphdef, state = nnx.split(checkpoints.abstract(lambda: Autoencoder(config, rngs=nnx.Rngs(0))))

    def both(state, pictures):
        model = nnx.merge(graphdef, state)
        mean, logvar = model.encode(pictures)
        return mean, logvar, model.decode(mean)

    mean, logvar, back = jax.eval_shape(both, state, jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32))
    assert config.spatial_compression_ratio == ratio
    assert mean.shape == logvar.shape == (2, 32 // ratio, 48 // ratio, 16)
    assert back.shape == (2, 32, 48, 3)


def test_other_sizes_are_refused():
    graphdef, state = build()
    with pytest.raises(ValueError, match="5x8 are not multiples of 2"):
        nnx.merge(graphdef, state).encode(jnp.zeros((1, 5, 8, 3)))
    with pytest.raises(ValueError, match=r"does not divide block_out_channels \[10\]"):
        AutoencoderConfig((10, 16), norm_num_groups=4)


def test_scales_are_each_others_inverse():
    model = checkpoints.abstract(lambda: Autoencoder(AutoencoderConfig.flux1(), rngs=nnx.Rngs(0)))
    z = jnp.asarray([0.1159, 1.1159], jnp.float32)
    np.testing.assert_allclose(model.scale_latents(z), [0.0, 0.3611], atol=1e-7)
    np.testing.assert_allclose(model.unscale_latents(model.scale_latents(z)), z, rtol=1e-6)


def test_sample_has_the_posteriors_moments():
    mean, logvar = jnp.full((4000,), 2.0), jnp.full((4000,), np.log(9.0), jnp.float32)
    drawn = Autoencoder.sample(mean, logvar, key=jax.random.key(0))
    # Four standard errors of 4000 draws.
    assert abs(float(drawn.mean()) - 2.0) < 4 * 3 / 4000**0.5
    assert abs(float(drawn.std()) - 3.0) < 4 * 3 / 8000**0.5


def test_log_variance_is_clamped():
    graphdef, state = build()
    checkpoints.parameter_paths(state)["encoder.conv_out.bias"].set_value(
        jnp.array([1e3] * 4 + [1e3, 1e3, -1e3, -1e3], jnp.float32)
    )
    mean, logvar = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x))(state, jnp.zeros((1, 4, 4, 3)))
    assert mean.min() > 500
    np.testing.assert_array_equal(np.unique(logvar[..., :2]), [20.0])
    np.testing.assert_array_equal(np.unique(logvar[..., 2:]), [-30.0])


def test_remat_keeps_output_and_gradient(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 4)), jnp.float32)
    results = []
    for remat in ("none", "full"):
        block = checkpoints.abstract(
            lambda remat=remat: ResidualBlock(4, 8, SMALL, Execution(remat=remat), rngs=nnx.Rngs(0))
        )
        fill_randomly(block)
        graphdef, state = nnx.split(block)

        def loss(state, x, graphdef=graphdef):
            return jnp.mean(jnp.square(nnx.merge(graphdef, state)(x)))

        assert ("remat" in str(jax.make_jaxpr(loss)(state, x))) == (remat == "full")
        results.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(state, x))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(a).max()))
