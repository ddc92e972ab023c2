"""The CogVideoX video autoencoder (Yang et al., 2024, arXiv 2408.06072): 8x8 pixels and 4 frames to one latent cell.

Clips are coded in chunks, and group normalisation takes its statistics over a chunk: other chunks give other values.
Where the config says so, frames larger than a tile are coded in overlapping tiles (``vae_tiling.py``).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from reangle_jax.models.cogvideox.vae_blocks import (
    CausalConv3D,
    Downsample,
    Norm,
    Past,
    ResidualBlocks,
    SpatialNorm,
    Upsample,
)
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.cogvideox.vae_tiling import in_tiles, tilings_of
from reangle_jax.nn.execution import Execution

FRAMES, LATENTS = 8, 2  # that are encoded, decoded at once; the first chunk takes the remainder too


class Encoder(nnx.Module):
    """Frames to the mean and log variance of latents."""

    def __init__(self, config: VAEConfig, execution: Execution, *, rngs: nnx.Rngs):
        widths = (config.block_out_channels[0], *config.block_out_channels)
        last = len(config.block_out_channels) - 1
        self.conv_in = CausalConv3D(config.in_channels, widths[0], config, execution, rngs=rngs)
        levels, downs = [], []
        for i in range(last + 1):
            depth = config.layers_per_block
            levels.append(ResidualBlocks(widths[i], widths[i + 1], depth, config, execution, norm=Norm, rngs=rngs))
            if i < last:
                compress_time = 2**i < config.temporal_compression_ratio
                downs.append(Downsample(widths[i + 1], config, execution, compress_time=compress_time, rngs=rngs))
        self.levels = nnx.List(levels)
        self.downs = nnx.List(downs)
        self.mid = ResidualBlocks(widths[-1], widths[-1], 2, config, execution, norm=Norm, rngs=rngs)
        self.norm_out = Norm(widths[-1], config, execution, rngs=rngs)
        self.conv_out = CausalConv3D(widths[-1], 2 * config.latent_channels, config, execution, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W 3"], past: Past) -> tuple[Float[Array, "B t h w C2"], Past]:
        """Encodes a chunk."""
        past = past or {}
        new = {}
        x, new["conv_in"] = self.conv_in(x, past.get("conv_in"))
        for i, level in enumerate(self.levels):
            x, new[f"level{i}"] = level(x, None, past.get(f"level{i}"))
            if i < len(self.downs):
                x = self.downs[i](x)
        x, new["mid"] = self.mid(x, None, past.get("mid"))
        x, new["conv_out"] = self.conv_out(jax.nn.silu(self.norm_out(x, None)), past.get("conv_out"))
        return x, new


class Decoder(nnx.Module):
    """Latents to frames; every norm looks at the latents again."""

    def __init__(self, config: VAEConfig, execution: Execution, *, rngs: nnx.Rngs):
        widths = (config.block_out_channels[-1], *reversed(config.block_out_channels))
        last = len(config.block_out_channels) - 1
        self.conv_in = CausalConv3D(config.latent_channels, widths[0], config, execution, rngs=rngs)
        self.mid = ResidualBlocks(widths[0], widths[0], 2, config, execution, norm=SpatialNorm, rngs=rngs)
        levels, ups = [], []
        for i in range(last + 1):
            depth = config.layers_per_block + 1
            levels.append(
                ResidualBlocks(widths[i], widths[i + 1], depth, config, execution, norm=SpatialNorm, rngs=rngs)
            )
            if i < last:
                compress_time = 2**i < config.temporal_compression_ratio
                ups.append(Upsample(widths[i + 1], config, execution, compress_time=compress_time, rngs=rngs))
        self.levels = nnx.List(levels)
        self.ups = nnx.List(ups)
        self.norm_out = SpatialNorm(widths[-1], config, execution, rngs=rngs)
        self.conv_out = CausalConv3D(widths[-1], config.in_channels, config, execution, rngs=rngs)

    def __call__(self, latent: Float[Array, "B t h w C"], past: Past) -> tuple[Float[Array, "B T H W 3"], Past]:
        """Decodes a chunk."""
        past = past or {}
        new = {}
        x, new["conv_in"] = self.conv_in(latent, past.get("conv_in"))
        x, new["mid"] = self.mid(x, latent, past.get("mid"))
        for i, level in enumerate(self.levels):
            x, new[f"level{i}"] = level(x, latent, past.get(f"level{i}"))
            if i < len(self.ups):
                x = self.ups[i](x)
        x, new["conv_out"] = self.conv_out(jax.nn.silu(self.norm_out(x, latent)), past.get("conv_out"))
        return x, new


def in_chunks(apply: Callable[[Array, Past], tuple[Array, Past]], x: Shaped[Array, "B T *rest"], size: int) -> Array:
    """Runs ``apply(chunk, past) -> (output, past)`` over chunks of frames and joins the outputs along the time axis.

    The first chunk gets the past None, and takes the remainder too.
    """
    frames = x.shape[1]
    first = frames if frames < size else size + frames % size
    y, past = apply(x[:, :first], None)
    count = (frames - first) // size
    if count == 0:
        return y
    if count == 1:
        rest, _ = apply(x[:, first:], past)
        return jnp.concatenate([y, rest], axis=1)
    # The remaining chunks are all alike: one compiled body serves clips of any length.
    chunks = jnp.moveaxis(x[:, first:].reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    def body(past, chunk):
        out, past = apply(chunk, past)
        return past, out

    _, rest = jax.lax.scan(body, past, chunks)
    rest = jnp.moveaxis(rest, 0, 1)
    return jnp.concatenate([y, rest.reshape(rest.shape[0], -1, *rest.shape[3:])], axis=1)


class VAE(nnx.Module):
    """The autoencoder. Latents are as the coder gives them; ``scale_latents`` brings them to the diffusion model's."""

    def __init__(self, config: VAEConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        self.config = config
        self.execution = execution
        self.encoder = Encoder(config, execution, rngs=rngs)
        self.decoder = Decoder(config, execution, rngs=rngs)

    def encode(self, video: Float[Array, "B T H W 3"]) -> tuple[Float[Array, "B t h w C"], Float[Array, "B t h w C"]]:
        """Encodes frames in [-1, 1] to the mean and log variance, clamped to [-30, 20], of latents.

        Height and width are multiples of 8. T = 4 k + 1 gives k + 1 latents, T = 4 k gives k.
        """
        tilings = tilings_of(self.config, encode=True)
        code = functools.partial(in_chunks, self.encoder, size=FRAMES)
        moments = in_tiles(code, video.astype(self.execution.dtype), tilings)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "B t h w C"]) -> Float[Array, "B T H W 3"]:
        """Decodes unscaled latents to frames, about in [-1, 1]; an odd number t gives 4 t - 3, an even one 4 t."""
        tilings = tilings_of(self.config, encode=False)
        code = functools.partial(in_chunks, self.decoder, size=LATENTS)
        return in_tiles(code, latents.astype(self.execution.dtype), tilings)

    @staticmethod
    def sample(mean: Float[Array, "*s"], logvar: Float[Array, "*s"], *, key: Array) -> Float[Array, "*s"]:
        """Draws latents from the posterior."""
        return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)

    def scale_latents(self, latents: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Brings a video's latents to the diffusion model's scale."""
        return latents * self.config.scaling_factor

    def scale_image_latents(self, latents: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Brings the conditioning image's latents to the diffusion model's scale; 1.5 divides where others multiply."""
        if self.config.invert_scale_latents:
            return latents / self.config.scaling_factor
        return self.scale_latents(latents)

    def unscale_latents(self, latents: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Brings the diffusion model's latents back to the decoder's scale."""
        return latents / self.config.scaling_factor
