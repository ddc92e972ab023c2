"""FLUX's picture autoencoder (after Esser et al., 2024, arXiv 2403.03206): 8x8 pixels to a cell of 16 channels."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.nn.attention import attention
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.layouts import constrain_frames
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import GroupNorm

EPSILON = 1e-6


def _conv(
    in_features: int, out_features: int, config: AutoencoderConfig, execution: Execution, *, rngs: nnx.Rngs
) -> Conv2D:
    dtypes = execution.dtypes(config.param_dtype)
    return Conv2D(in_features, out_features, 3, padding=1, **dtypes, rngs=rngs)


def _norm(features: int, config: AutoencoderConfig, execution: Execution) -> GroupNorm:
    dtypes = execution.dtypes(config.param_dtype)
    return GroupNorm(features, groups=config.norm_num_groups, epsilon=EPSILON, **dtypes)


class ResidualBlock(nnx.Module):
    """Two rounds of norm, SiLU and convolution beside a shortcut."""

    def __init__(
        self, in_features: int, out_features: int, config: AutoencoderConfig, execution: Execution, *, rngs: nnx.Rngs
    ):
        self.norm1 = _norm(in_features, config, execution)
        self.conv1 = _conv(in_features, out_features, config, execution, rngs=rngs)
        self.norm2 = _norm(out_features, config, execution)
        self.conv2 = _conv(out_features, out_features, config, execution, rngs=rngs)
        changes = in_features != out_features
        self.shortcut = (
            Linear(in_features, out_features, **execution.dtypes(config.param_dtype), rngs=rngs) if changes else None
        )
        self.remat = execution.remat != "none"

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W out"]:
        """Applies the block."""
        graphdef, state = nnx.split(self)

        def apply(state, x):
            block = nnx.merge(graphdef, state)
            y = block.conv1(constrain_frames(jax.nn.silu(block.norm1(x))))
            y = block.conv2(constrain_frames(jax.nn.silu(block.norm2(y))))
            return constrain_frames((x if block.shortcut is None else block.shortcut(x)) + y)

        return (jax.checkpoint(apply) if self.remat else apply)(state, x)


class Level(nnx.Module):
    """Residual blocks of one resolution in turn; only the first changes the width."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int,
        config: AutoencoderConfig,
        execution: Execution,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [in_features] + [out_features] * depth
        self.blocks = nnx.List(
            [ResidualBlock(widths[i], widths[i + 1], config, execution, rngs=rngs) for i in range(depth)]
        )

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W out"]:
        """Applies all blocks."""
        for block in self.blocks:
            x = block(x)
        return x


class SelfAttention(nnx.Module):
    """Attention of every cell to all cells, with one head as wide as the features, beside a shortcut.

    No fused kernel takes a head of 512 channels, whatever the execution says: the pictures go in turn, so that the
    logits of one alone are in memory (1 GB for 832x1248 pixels).
    """

    def __init__(self, features: int, config: AutoencoderConfig, execution: Execution, *, rngs: nnx.Rngs):
        dtypes = execution.dtypes(config.param_dtype)
        self.norm = _norm(features, config, execution)
        self.to_q = Linear(features, features, **dtypes, rngs=rngs)
        self.to_k = Linear(features, features, **dtypes, rngs=rngs)
        self.to_v = Linear(features, features, **dtypes, rngs=rngs)
        self.to_out = Linear(features, features, **dtypes, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Attends."""
        batch, height, width, features = x.shape
        y = self.norm(x).reshape(batch, height * width, 1, features)
        y = attention(self.to_q(y), self.to_k(y), self.to_v(y), impl="mapped")
        return x + self.to_out(y.reshape(x.shape))


class Middle(nnx.Module):
    """The coarsest resolution: attention between two residual blocks."""

    def __init__(self, features: int, config: AutoencoderConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.before = ResidualBlock(features, features, config, execution, rngs=rngs)
        self.attention = SelfAttention(features, config, execution, rngs=rngs)
        self.after = ResidualBlock(features, features, config, execution, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the three."""
        return self.after(self.attention(self.before(x)))


class Encoder(nnx.Module):
    """Pictures to the mean and log variance of latents."""

    def __init__(self, config: AutoencoderConfig, execution: Execution, *, rngs: nnx.Rngs):
        widths = (config.block_out_channels[0], *config.block_out_channels)
        self.conv_in = _conv(config.in_channels, widths[0], config, execution, rngs=rngs)
        depth = config.layers_per_block
        self.levels = nnx.List(
            [Level(a, b, depth, config, execution, rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        dtypes = execution.dtypes(config.param_dtype)
        # The row and column that the stride would miss are padded below and to the right.
        self.downs = nnx.List(
            [Conv2D(width, width, 3, stride=2, padding=((0, 1), (0, 1)), **dtypes, rngs=rngs) for width in widths[1:-1]]
        )
        self.mid = Middle(widths[-1], config, execution, rngs=rngs)
        self.norm_out = _norm(widths[-1], config, execution)
        self.conv_out = _conv(widths[-1], 2 * config.latent_channels, config, execution, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C2"]:
        """Encodes."""
        x = self.conv_in(constrain_frames(x))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.downs):
                x = constrain_frames(self.downs[i](x))
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """Latents to pictures."""

    def __init__(self, config: AutoencoderConfig, execution: Execution, *, rngs: nnx.Rngs):
        widths = (config.block_out_channels[-1], *reversed(config.block_out_channels))
        self.conv_in = _conv(config.latent_channels, widths[0], config, execution, rngs=rngs)
        self.mid = Middle(widths[0], config, execution, rngs=rngs)
        depth = config.layers_per_block + 1
        self.levels = nnx.List(
            [Level(a, b, depth, config, execution, rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        self.ups = nnx.List([_conv(width, width, config, execution, rngs=rngs) for width in widths[1:-1]])
        self.norm_out = _norm(widths[-1], config, execution)
        self.conv_out = _conv(widths[-1], config.in_channels, config, execution, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Decodes."""
        x = self.mid(self.conv_in(x))
        for i, level in enumerate(self.levels):
            x = level(x)
            if i < len(self.ups):
                x = constrain_frames(self.ups[i].of_doubled(x))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Autoencoder(nnx.Module):
    """The autoencoder. Latents are as the coder gives them; ``scale_latents`` brings them to the diffusion model's."""

    def __init__(self, config: AutoencoderConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        self.config = config
        self.execution = execution
        self.encoder = Encoder(config, execution, rngs=rngs)
        self.decoder = Decoder(config, execution, rngs=rngs)

    def encode(self, pictures: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """Encodes pictures in [-1, 1] to the mean (the mode too) and log variance, clamped to [-30, 20], of latents.

        Raises:
            ValueError: height or width is no multiple of the config's ``spatial_compression_ratio``.
        """
        ratio = self.config.spatial_compression_ratio
        if pictures.shape[1] % ratio or pictures.shape[2] % ratio:
            raise ValueError(f"pictures of {pictures.shape[1]}x{pictures.shape[2]} are not multiples of {ratio} pixels")
        mean, logvar = jnp.split(self.encoder(pictures.astype(self.execution.dtype)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Decodes unscaled latents to pictures, about in [-1, 1]."""
        return self.decoder(latents.astype(self.execution.dtype))

    @staticmethod
    def sample(mean: Float[Array, "*s"], logvar: Float[Array, "*s"], *, key: Array) -> Float[Array, "*s"]:
        """Draws latents from the posterior."""
        return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)

    def scale_latents(self, latents: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Brings latents to the diffusion model's scale."""
        return (latents - self.config.shift_factor) * self.config.scaling_factor

    def unscale_latents(self, latents: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Brings the diffusion model's latents back to the decoder's scale."""
        return latents / self.config.scaling_factor + self.config.shift_factor
