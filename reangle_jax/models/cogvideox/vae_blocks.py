"""Blocks of the CogVideoX autoencoder. Every one works on a chunk of frames and hands on what the next chunk needs.

A causal convolution sees the two frames before its chunk. A block therefore takes ``past``, a pytree with those
frames for each of its convolutions (None at the start of a clip), and returns the next chunk's beside its output.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.nn.conv import Conv2D, Conv3D
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.layouts import constrain_frames, repeatable
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import GroupNorm

EPSILON = 1e-6
Past = Any


class CausalConv3D(nnx.Module):
    """3x3x3 convolution over the present and the two frames before it; a clip's first frame stands for its past."""

    def __init__(self, in_features: int, out_features: int, config: VAEConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.conv = Conv3D(in_features, out_features, 3, **execution.dtypes(config.param_dtype), rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], past: Float[Array, "B 2 H W C"] | None
    ) -> tuple[Float[Array, "B T H W out"], Float[Array, "B 2 H W C"]]:
        """Convolves a chunk; returns the output and the chunk's last two frames, its own past included."""
        x = constrain_frames(x)
        if past is None:
            return constrain_frames(self.conv.from_rest(x)), jnp.concatenate([x[:, :1], x], axis=1)[:, -2:]
        x = jnp.concatenate([past, x], axis=1)
        return constrain_frames(self.conv(x)), x[:, -2:]


class Norm(nnx.Module):
    """Group normalisation over the whole chunk: the encoder's norm."""

    def __init__(self, features: int, config: VAEConfig, execution: Execution, *, rngs: nnx.Rngs):
        del rngs
        self.norm = GroupNorm(
            features, groups=config.norm_num_groups, epsilon=EPSILON, **execution.dtypes(config.param_dtype)
        )

    def __call__(
        self, x: Float[Array, "B T H W C"], latent: Float[Array, "B t h w z"] | None
    ) -> Float[Array, "B T H W C"]:
        """Normalises."""
        del latent
        return self.norm(x)


class SpatialNorm(nnx.Module):
    """Group normalisation whose result is scaled and shifted by linear maps of the latent: the decoder's norm.

    Spatially conditioned normalisation after Zheng et al., 2022 (arXiv 2209.09002).
    """

    def __init__(self, features: int, config: VAEConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(
            features, groups=config.norm_num_groups, epsilon=EPSILON, **execution.dtypes(config.param_dtype)
        )
        self.scale = Linear(config.latent_channels, features, **execution.dtypes(config.param_dtype), rngs=rngs)
        self.shift = Linear(config.latent_channels, features, **execution.dtypes(config.param_dtype), rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], latent: Float[Array, "B t h w z"] | None
    ) -> Float[Array, "B T H W C"]:
        """Normalises ``x`` and modulates it by the chunk's latent, which must be given."""
        assert latent is not None
        # The maps are applied before the nearest-neighbour resize, with which they commute.
        batch, frames, height, width, features = x.shape
        scale, shift = (repeatable(repeat_frames(of(latent), frames), height, width) for of in (self.scale, self.shift))
        rows, columns = scale.shape[2:4]
        blocks = (batch, frames, rows, height // rows, columns, width // columns, features)
        y = self.norm(x).reshape(blocks)
        scale, shift = (jnp.broadcast_to(z[:, :, :, None, :, None, :], blocks) for z in (scale, shift))
        y = y * scale + shift
        return y.reshape(x.shape)


def repeat_frames(x: Float[Array, "B t *rest"], frames: int) -> Float[Array, "B T *rest"]:
    """Repeats each frame equally often to make ``frames``; of an odd number above one the first stays single."""
    if x.shape[1] == frames:
        return x
    lone = frames % 2 if frames > 1 else 0
    rest = x[:, lone:]
    times = (frames - lone) // rest.shape[1]
    rest = jnp.broadcast_to(rest[:, :, None], (*rest.shape[:2], times, *rest.shape[2:]))
    rest = rest.reshape(rest.shape[0], -1, *rest.shape[3:])
    return jnp.concatenate([x[:, :1], rest], axis=1) if lone else rest


class ResidualBlock(nnx.Module):
    """Two rounds of norm, SiLU and causal convolution beside a shortcut."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: VAEConfig,
        execution: Execution,
        *,
        norm: type[Norm | SpatialNorm],
        rngs: nnx.Rngs,
    ):
        self.norm1 = norm(in_features, config, execution, rngs=rngs)
        self.conv1 = CausalConv3D(in_features, out_features, config, execution, rngs=rngs)
        self.norm2 = norm(out_features, config, execution, rngs=rngs)
        self.conv2 = CausalConv3D(out_features, out_features, config, execution, rngs=rngs)
        changes = in_features != out_features
        self.shortcut = (
            Linear(in_features, out_features, **execution.dtypes(config.param_dtype), rngs=rngs) if changes else None
        )

    def __call__(
        self, x: Float[Array, "B T H W C"], latent: Float[Array, "B t h w z"] | None, past: Past
    ) -> tuple[Float[Array, "B T H W out"], Past]:
        """Applies the block to a chunk."""
        past1, past2 = (None, None) if past is None else past
        y, past1 = self.conv1(jax.nn.silu(self.norm1(x, latent)), past1)
        y, past2 = self.conv2(jax.nn.silu(self.norm2(y, latent)), past2)
        x = x if self.shortcut is None else self.shortcut(x)
        return x + y, (past1, past2)


class ResidualBlocks(nnx.Module):
    """Residual blocks in turn; only the first changes the width."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int,
        config: VAEConfig,
        execution: Execution,
        *,
        norm: type[Norm | SpatialNorm],
        rngs: nnx.Rngs,
    ):
        widths = [in_features] + [out_features] * depth
        self.blocks = nnx.List(
            [ResidualBlock(widths[i], widths[i + 1], config, execution, norm=norm, rngs=rngs) for i in range(depth)]
        )
        self.remat = execution.remat != "none"

    def __call__(
        self, x: Float[Array, "B T H W C"], latent: Float[Array, "B t h w z"] | None, past: Past
    ) -> tuple[Float[Array, "B T H W out"], Past]:
        """Applies all blocks to a chunk."""
        new = []
        for i, block in enumerate(self.blocks):
            graphdef, state = nnx.split(block)

            def apply(state, x, latent, past, graphdef=graphdef):
                return nnx.merge(graphdef, state)(x, latent, past)

            apply = jax.checkpoint(apply) if self.remat else apply
            x, end = apply(state, x, latent, None if past is None else past[i])
            new.append(end)
        return x, tuple(new)


class Downsample(nnx.Module):
    """Halves height and width by a strided convolution of each frame, after halving time by averaging pairs."""

    def __init__(self, features: int, config: VAEConfig, execution: Execution, *, compress_time: bool, rngs: nnx.Rngs):
        padding = ((0, 1), (0, 1))
        self.conv = Conv2D(
            features, features, 3, stride=2, padding=padding, **execution.dtypes(config.param_dtype), rngs=rngs
        )
        self.compress_time = compress_time

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w C"]:
        """Downsamples; an odd number of frames keeps its first as it is."""
        if self.compress_time and x.shape[1] > 1:
            lone = x.shape[1] % 2
            pairs = x[:, lone:]
            pairs = pairs.reshape(pairs.shape[0], -1, 2, *pairs.shape[2:])
            means = (pairs[:, :, 0] + pairs[:, :, 1]) * 0.5
            x = jnp.concatenate([x[:, :1], means], axis=1) if lone else means
        y = self.conv(x.reshape(-1, *x.shape[2:]))
        return constrain_frames(y.reshape(*x.shape[:2], *y.shape[1:]))


class Upsample(nnx.Module):
    """Doubles height and width (and time) by repetition, followed by a convolution of each frame."""

    def __init__(self, features: int, config: VAEConfig, execution: Execution, *, compress_time: bool, rngs: nnx.Rngs):
        self.conv = Conv2D(features, features, 3, padding=1, **execution.dtypes(config.param_dtype), rngs=rngs)
        self.compress_time = compress_time

    def __call__(self, x: Float[Array, "B t h w C"]) -> Float[Array, "B T H W C"]:
        """Upsamples; an odd number of frames keeps its first single."""
        frames = x.shape[1]
        y = self.conv.of_doubled(x.reshape(-1, *x.shape[2:]))
        y = constrain_frames(y.reshape(*x.shape[:2], *y.shape[1:]))
        if self.compress_time and frames > 1:
            # Repeated frames have equal convolutions: repeating afterwards halves the work.
            y = repeat_frames(y, 2 * frames - frames % 2)
        return y
