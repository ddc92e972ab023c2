"""The CogVideoX autoencoder against diffusers, on random weights, through the conversion table.

Tolerances are relative to the largest value. What differs is the order of float32 sums alone: about 5e-7 was measured
for one module and 1.3e-6 for the whole, so 1e-5 and 1e-4 leave room for other processors and would still notice a
wrong frame, statistic or epsilon. Gradients sum over all pixels with cancellation: 1e-4 of each tensor's largest value.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables.cogvideox_vae import TABLE
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

MODULE, WHOLE = 1e-5, 1e-4
SMALL = VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=2)
DEEP = VAEConfig(block_out_channels=(8, 16, 24, 32), layers_per_block=2, norm_num_groups=4)
HEIGHT, WIDTH = 16, 24


@functools.cache
def pair(config):
    """diffusers' model with every parameter away from its initial value, and ours with the same."""
    torch.manual_seed(0)
    original = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        latent_channels=config.latent_channels,
    ).eval()
    for name, parameter in original.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = centre + 0.3 * torch.randn_like(parameter)
    ours = abstract(lambda: VAE(config, rngs=nnx.Rngs(0)))
    fill(ours, convert(tensors(original), TABLE, shapes(ours)))
    return original, ours


def retiled(model):
    """Our model with the same parameters, in tiles."""
    tiled = abstract(lambda: VAE(TILED, rngs=nnx.Rngs(0)))
    nnx.update(tiled, nnx.state(model))
    return tiled


def tensors(original):
    return {name: tensor.numpy() for name, tensor in original.state_dict().items()}


def shapes(model):
    return {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}


def run(module, method, *args):
    """A method of one of our modules, compiled."""
    graphdef, state = nnx.split(module)
    return jax.jit(lambda state, *args: getattr(nnx.merge(graphdef, state), method)(*args))(state, *args)


def last(x):
    """[B, C, T, H, W] of either library to [B, T, H, W, C]."""
    return np.moveaxis(np.asarray(x.detach() if isinstance(x, torch.Tensor) else x), 1, -1)


def video(frames, channels=3, height=HEIGHT, width=WIDTH, batch=2):
    return torch.rand((batch, channels, frames, height, width), generator=torch.manual_seed(frames)) * 2 - 1


def assert_near(ours, original, tolerance):
    original = last(original)
    assert ours.shape == original.shape
    assert np.abs(ours - original).max() <= tolerance * np.abs(original).max()


@pytest.mark.parametrize(
    ("config", "frames"),
    [(SMALL, 1), (SMALL, 4), (SMALL, 8), (SMALL, 12), (SMALL, 17), (SMALL, 25), (DEEP, 9)],
    ids=lambda value: str(value) if isinstance(value, int) else f"{value.layers_per_block}-deep",
)
def test_encode(config, frames):
    original, ours = pair(config)
    x = video(frames)
    with torch.no_grad():
        posterior = original.encode(x).latent_dist
    mean, logvar = run(ours, "encode", last(x))
    assert_near(mean, posterior.mean, WHOLE)
    assert_near(logvar, posterior.logvar, WHOLE)


@pytest.mark.parametrize(
    ("config", "frames"),
    [(SMALL, 1), (SMALL, 2), (SMALL, 3), (SMALL, 5), (SMALL, 7), (DEEP, 3)],
    ids=lambda value: str(value) if isinstance(value, int) else f"{value.layers_per_block}-deep",
)
def test_decode(config, frames):
    original, ours = pair(config)
    z = video(frames, 16, HEIGHT // 8, WIDTH // 8)
    with torch.no_grad():
        expected = original.decode(z).sample
    assert_near(run(ours, "decode", last(z)), expected, WHOLE)


TILED = SMALL.tiled((48, 40))


@pytest.fixture
def tiled():
    """diffusers' model with tiling enabled, and ours."""
    original, ours = pair(SMALL)
    original.enable_tiling(*TILED.tile_sample)
    try:
        yield original, retiled(ours)
    finally:
        original.use_tiling = False


def test_tiled_encode(tiled):
    """Three rows of two sizes by three columns of two sizes, the last ones cut off by the edge."""
    original, ours = tiled
    x = video(9, 3, 104, 72, batch=1)
    with torch.no_grad():
        posterior = original.encode(x).latent_dist
    mean, logvar = run(ours, "encode", last(x))
    assert mean.shape[2:4] == (13, 9)
    assert_near(mean, posterior.mean, MODULE)
    assert_near(logvar, posterior.logvar, MODULE)


def test_tiled_decode(tiled):
    original, ours = tiled
    z = video(3, 16, 13, 9, batch=1)
    with torch.no_grad():
        expected = original.decode(z).sample
        original.use_tiling = False
        whole = original.decode(z).sample
    got = run(ours, "decode", last(z))
    assert got.shape[2:4] == (104, 72)
    assert_near(got, expected, MODULE)
    # Not the whole frames' result by another way.
    assert (whole - expected).abs().max() > 1e-2


def test_tiles_are_chunked_each_by_itself(tiled):
    """Larger than a tile along one axis only, and two clips at once."""
    original, ours = tiled
    z = video(7, 16, 5, 7)
    with torch.no_grad():
        expected = original.decode(z).sample
    assert_near(run(ours, "decode", last(z)), expected, MODULE)


def test_default_tiles_are_the_originals():
    original, ours = diffusers.AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), norm_num_groups=2), VAEConfig()
    assert ours.tiled().tile_sample == (original.tile_sample_min_height, original.tile_sample_min_width)
    assert ours.tile_overlap == (original.tile_overlap_factor_height, original.tile_overlap_factor_width)


@pytest.mark.slow
def test_gradient_of_the_whole_is_the_originals():
    """Nine frames to latents and back: every parameter's gradient, in the published layout."""
    original, ours = pair(SMALL)
    x = video(9)
    original.zero_grad()
    output = original.decode(original.encode(x).latent_dist.mean).sample
    (output - x).square().mean().backward()
    graphdef, state = nnx.split(ours)

    def loss(state, x):
        vae = nnx.merge(graphdef, state)
        return jnp.mean(jnp.square(vae.decode(vae.encode(x)[0]) - x))

    gradient = jax.jit(jax.grad(loss))(state, last(x))
    published = revert({path: np.asarray(value[...]) for path, value in parameter_paths(gradient).items()}, TABLE)
    for name, parameter in original.named_parameters():
        expected = parameter.grad.numpy()
        assert published[name].shape == expected.shape
        # A bias before a norm has no true gradient, only rounding: hence the floor.
        limit = WHOLE * max(np.abs(expected).max(), 1e-2)
        assert np.abs(published[name] - expected).max() <= limit, name


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_spatial_norm(frames):
    original, ours = pair(SMALL)
    latents = {1: 1, 2: 2}.get(frames, 3)
    x, z = video(frames, 16, 16, 24), video(latents, 16, 2, 3)
    with torch.no_grad():
        expected, _ = original.decoder.mid_block.resnets[0].norm1(x, z)
    assert_near(run(ours.decoder.mid.blocks[0].norm1, "__call__", last(x), last(z)), expected, MODULE)


def test_residual_block_hands_its_past_on():
    original, ours = pair(SMALL)
    x, z = video(5, 16, 4, 4), video(3, 16, 2, 2)
    block, reference = ours.decoder.levels[2].blocks[0], original.decoder.up_blocks[2].resnets[0]
    with torch.no_grad():
        first, cache = reference(x[:, :, :3], None, z)
        second, cache = reference(x[:, :, 3:], None, z[:, :, 1:], conv_cache=cache)
    y, past = run(block, "__call__", last(x)[:, :3], last(z), None)
    assert_near(y, first, MODULE)
    y, past = run(block, "__call__", last(x)[:, 3:], last(z)[:, 1:], past)
    assert_near(y, second, MODULE)
    assert_near(past[0], cache["conv1"], MODULE)
    assert_near(past[1], cache["conv2"], MODULE)


@pytest.mark.parametrize("level", [0, 2], ids=["in-time", "space-only"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_down_and_up(frames, level):
    original, ours = pair(SMALL)
    widths = SMALL.block_out_channels
    x, z = video(frames, widths[level], 6, 4), video(frames, widths[::-1][level], 6, 4)
    with torch.no_grad():
        down = original.encoder.down_blocks[level].downsamplers[0](x)
        up = original.decoder.up_blocks[level].upsamplers[0](z)
    assert_near(run(ours.encoder.downs[level], "__call__", last(x)), down, MODULE)
    assert_near(run(ours.decoder.ups[level], "__call__", last(z)), up, MODULE)


def test_table_is_reversible():
    original, ours = pair(DEEP)
    source = tensors(original)
    back = revert(convert(source, TABLE, shapes(ours)), TABLE)
    assert back.keys() == source.keys()
    for name, array in source.items():
        np.testing.assert_array_equal(back[name], array)
