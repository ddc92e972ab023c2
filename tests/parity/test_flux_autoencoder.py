"""FLUX's autoencoder against diffusers' AutoencoderKL, on random weights, through the conversion table.

Tolerances are relative to the largest value: what differs is the order of float32 sums alone (1e-6 was measured), and
1e-5 would still notice another epsilon, padding or scale.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables.flux_autoencoder import DIFFUSERS, original
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5
# Three widths, two of them equal as in the published network; and two levels of two blocks.
CONFIGS = {
    "three levels": AutoencoderConfig((8, 16, 16), layers_per_block=1, norm_num_groups=4),
    "two deep": AutoencoderConfig((8, 12), layers_per_block=2, norm_num_groups=2, latent_channels=4),
}


@functools.cache
def pair(name):
    """diffusers' model with every parameter away from its initial value, and ours with the same."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    levels = len(config.block_out_channels)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = centre + 0.3 * torch.randn_like(parameter)
    ours = abstract(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
    fill(ours, convert(tensors(theirs), DIFFUSERS, shapes(ours)))
    return theirs, ours


def tensors(theirs):
    return {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}


def shapes(model):
    return {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}


def run(model, method, *args):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *args: getattr(nnx.merge(graphdef, state), method)(*args))(state, *args)


def last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def noise(channels, height, width):
    return torch.rand((2, channels, height, width), generator=torch.manual_seed(height)) * 2 - 1


def check(ours, theirs):
    theirs = last(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_encode(name):
    theirs, ours = pair(name)
    x = noise(3, 16, 24)
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
    mean, logvar = run(ours, "encode", last(x))
    check(mean, posterior.mean)
    check(mean, posterior.mode())
    check(logvar, posterior.logvar)


@pytest.mark.parametrize("name", CONFIGS)
def test_decode(name):
    theirs, ours = pair(name)
    z = noise(ours.config.latent_channels, 4, 6)
    with torch.no_grad():
        expected = theirs.decode(z).sample
    check(run(ours, "decode", last(z)), expected)


def test_gradient_of_the_whole_is_the_originals():
    """Pictures to latents and back: every parameter's gradient, in the published layout."""
    theirs, ours = pair("three levels")
    x = noise(3, 8, 12)
    theirs.zero_grad()
    (theirs.decode(theirs.encode(x).latent_dist.mean).sample - x).square().mean().backward()
    graphdef, state = nnx.split(ours)

    def loss(state, x):
        model = nnx.merge(graphdef, state)
        return jnp.mean(jnp.square(model.decode(model.encode(x)[0]) - x))

    gradient = jax.jit(jax.grad(loss))(state, last(x))
    published = revert({path: np.asarray(value[...]) for path, value in parameter_paths(gradient).items()}, DIFFUSERS)
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        # Sums over all pixels cancel: 1e-4; a bias before a norm has no true gradient, only rounding: hence the floor.
        assert np.abs(published[name] - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1e-2), name


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_are_reversible(name):
    """Through either layout, and from one to the other."""
    theirs, ours = pair(name)
    source = tensors(theirs)
    parameters = convert(source, DIFFUSERS, shapes(ours))
    for table in (DIFFUSERS, original(len(ours.config.block_out_channels))):
        back = convert(revert(parameters, table), table, shapes(ours))
        assert back.keys() == parameters.keys()
        for path, array in parameters.items():
            np.testing.assert_array_equal(back[path], array)
