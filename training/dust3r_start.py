"""Where the training of the small DUSt3R starts: from nothing, or from weights of another size or width."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from reangle_jax import checkpoints
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.nn.linear import Linear
from training.train_depth import principal_patches, widened

MATCH_WIDTH = 32  # of the tokens that are matched


class Trained(nnx.Module):
    """DUSt3R, and the projection of tokens that are matched, which is dropped after training."""

    def __init__(self, config: Dust3rConfig, *, rngs: nnx.Rngs):
        self.dust3r = Dust3r(config, rngs=rngs)
        self.match = Linear(config.encoder_width, MATCH_WIDTH, rngs=rngs)


def initial_model(config: Dust3rConfig, seed: int, images: UInt8[np.ndarray, "N H W 3"]) -> Trained:
    """Weights that training starts at: random, but for what a short training would take long to find.

    Tokens start as principal components of patches (see `train_depth.initial_model`); a cross-attention starts by
    comparing like with like, its keys made as its queries are; and all points start at distance one straight ahead.
    """
    model = Trained(config, rngs=nnx.Rngs(seed))
    state = nnx.state(model, nnx.Param)
    variables = checkpoints.parameter_paths(state)
    for path, variable in variables.items():
        if path.endswith("patch_embed.kernel"):
            filters = principal_patches(images, config.patch_size, config.encoder_width)
            variable.set_value(jnp.asarray(0.5 * filters))  # pixels are here within -1 and 1
        elif path.endswith("cross.to_k.kernel"):
            query = variables[path.replace("to_k", "to_q")]
            variable.set_value(1.5 * query[...])
            query.set_value(1.5 * query[...])
        elif path.endswith(("head1.proj.kernel", "head2.proj.kernel")):
            variable.set_value(0.3 * variable[...])
        elif path.endswith(("head1.proj.bias", "head2.proj.bias")):
            bias = np.zeros((4, config.patch_size**2), np.float32)
            bias[2], bias[3] = np.log(2.0), -1.0
            variable.set_value(jnp.asarray(bias.reshape(-1)))
    nnx.update(model, state)
    return model


def wide(config: Dust3rConfig) -> Dust3rConfig:
    """The same network with tokens twice as wide, and twice the heads."""
    twice = ("encoder_width", "encoder_heads", "decoder_width", "decoder_heads")
    return dataclasses.replace(config, **{name: 2 * getattr(config, name) for name in twice})


def half_size(config: Dust3rConfig) -> Dust3rConfig:
    """The same network for pictures and patches of half the size."""
    return dataclasses.replace(config, patch_size=config.patch_size // 2, image_size=config.image_size // 2)


def enlarge(half: Dust3r, model: Dust3r) -> None:
    """Makes ``model`` see a picture as ``half``, whose patches are half as large, sees it at half its size."""
    small, large = (checkpoints.parameter_paths(x) for x in (half, model))
    size = half.config.patch_size
    for path, variable in large.items():
        value = small[path][...]
        if path == "patch_embed.kernel":  # the mean of two by two pixels
            value = jnp.repeat(jnp.repeat(value, 2, axis=0), 2, axis=1) / 4
        elif path.startswith(("head1.proj", "head2.proj")):  # [..., 4 * size^2], values before pixels
            value = value.reshape(*value.shape[:-1], 4, size, size)
            value = jnp.repeat(jnp.repeat(value, 2, axis=-2), 2, axis=-1).reshape(variable.shape)
        variable.set_value(value)


def widen(small: Dust3r, model: Dust3r, rng: np.random.Generator) -> None:
    """Makes ``model``, of twice the width and heads, see what ``small`` sees, or nearly so (Net2Net, arXiv 1511.05641).

    Every channel of a token comes twice, side by side, and so does every head; the copies share what reads them,
    unevenly, so that they will not stay copies. Every other one of the waves that say where a token is turns out a
    little longer than its copy's: that is the small difference.
    """
    heads = {"encoder": small.config.encoder_heads, "decoder": small.config.decoder_heads}
    values = checkpoints.parameter_paths(small)
    for path, variable in checkpoints.parameter_paths(model).items():
        value = widened(np.asarray(values[path][...]), variable.shape, rng)
        # Copies lie side by side: those of a head's channels make way for a head that is a copy.
        into, out = ("qkv" in path or ".to_" in path), ".proj.kernel" in path and not path.startswith("head")
        if into or out:
            order = np.arange(value.shape[-1 if into else -2]).reshape(heads[path.split(".")[0]], -1, 2)
            order = order.swapaxes(1, 2).ravel()
            value = value[..., order] if into else value[..., order, :]
        variable.set_value(jnp.asarray(value))


def start_from(folder: str, model: Trained) -> None:
    """Takes weights of the same network, of one for half the size, or of one of half the width.

    Raises:
        InputError: the folder holds none of them.
    """
    config = checkpoints.load_config(folder, Dust3rConfig)
    if model.dust3r.config == wide(config):
        widen(checkpoints.load_into(Dust3r(config, rngs=nnx.Rngs(0)), folder), model.dust3r, np.random.default_rng(0))
    elif config == half_size(model.dust3r.config):
        half = checkpoints.load_into(Dust3r(config, rngs=nnx.Rngs(0)), folder)
        enlarge(half, model.dust3r)
    else:
        checkpoints.load_into(model.dust3r, folder)
