"""The heads of DUSt3R and MASt3R: tokens to point maps, confidences and descriptors. All in float32."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.dust3r.config import Dust3rConfig
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.dpt import FACTORS, Fusion, Reassemble
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.resize import resize_bilinear

FLOAT32 = Execution()  # whatever the rest is computed in: point maps are exponentials of the heads' output


class View(NamedTuple):
    """What the network says of one image of a pair, pixel by pixel, in float32."""

    # In the first image's camera (x right, y down, z forward); the unit is unknown unless the weights are metric.
    points: Float[Array, "B H W 3"]
    confidence: Float[Array, "B H W"]  # at least 1
    descriptors: Float[Array, "B H W D"] | None = None  # MASt3R's, of unit length; None without that head
    descriptor_confidence: Float[Array, "B H W"] | None = None  # above 0; None without that head


def to_points(raw: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """Keeps each vector's direction and makes its length ``exp(length) - 1``."""
    squared = jnp.sum(jnp.square(raw), -1, keepdims=True)
    # The square root's slope at 0 is infinite: below the published limit of 1e-8 it must not be asked for.
    length = jnp.sqrt(jnp.maximum(squared, 1e-16))
    return raw * (jnp.expm1(length) / length)


def pixel_shuffle(x: Float[Array, "B h w C"], factor: int) -> Float[Array, "B H W D"]:
    """Spreads each pixel's channels, ordered (D, factor, factor), over ``factor`` x ``factor`` pixels."""
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, -1, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, rows * factor, columns * factor, -1)


def _view(raw: Float[Array, "B H W 4"]) -> View:
    return View(to_points(raw[..., :3]), 1.0 + jnp.exp(raw[..., 3]))


class LinearHead(nnx.Module):
    """One projection of the last tokens to all values of their patch."""

    def __init__(self, config: Dust3rConfig, *, rngs: nnx.Rngs):
        dtypes = FLOAT32.dtypes(config.param_dtype)
        self.proj = Linear(config.decoder_width, 4 * config.patch_size**2, axes=("embed", None), rngs=rngs, **dtypes)
        self.patch_size = config.patch_size

    def __call__(self, taps: Sequence[Float[Array, "B h w _"]]) -> View:
        """Predicts from the last of the taps."""
        return _view(pixel_shuffle(self.proj(taps[-1]), self.patch_size))


class DPTHead(nnx.Module):
    """Convolutions over four levels made of the encoder's output and three of the decoder's."""

    def __init__(self, config: Dust3rConfig, *, rngs: nnx.Rngs):
        dtypes = FLOAT32.dtypes(config.param_dtype)
        features, width = config.fusion_width, config.head_width
        sources = (config.encoder_width, *(config.decoder_width,) * 3)
        levels = zip(sources, config.neck_widths, FACTORS, strict=True)
        self.reassemble = nnx.List([Reassemble(s, n, f, rngs=rngs, **dtypes) for s, n, f in levels])
        self.convs = nnx.List(
            [Conv2D(n, features, 3, padding=1, use_bias=False, rngs=rngs, **dtypes) for n in config.neck_widths]
        )
        # Deep to shallow, the order in which they run.
        self.fusion = nnx.List([Fusion(features, deepest=k == 0, rngs=rngs, **dtypes) for k in range(len(FACTORS))])
        self.conv1 = Conv2D(features, width, 3, padding=1, rngs=rngs, **dtypes)
        self.conv2 = Conv2D(width, width, 3, padding=1, rngs=rngs, **dtypes)
        self.conv3 = Conv2D(width, 4, 1, rngs=rngs, **dtypes)

    def fuse(self, levels: Sequence[Float[Array, "B _ _ F"]]) -> Float[Array, "B H W F"]:
        """Fuses the levels, deep to shallow; the result is twice the shallowest one's size."""
        path = level = None
        for block, below in zip(self.fusion, list(levels)[::-1], strict=True):
            if path is None:
                path, level = below, None
            else:
                # Twice the deepest level is a row or column too many where the number of tokens is odd.
                path, level = path[:, : below.shape[1], : below.shape[2]], below
            path = block(path, level, (2 * below.shape[1], 2 * below.shape[2]))
        assert path is not None
        return path

    def __call__(self, taps: Sequence[Float[Array, "B h w _"]]) -> View:
        """Predicts from the four taps, each an image of one pixel per token."""
        levels = [conv(part(x)) for x, part, conv in zip(taps, self.reassemble, self.convs, strict=True)]
        x = self.conv1(self.fuse(levels))
        x = resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2], align_corners=True)
        return _view(self.conv3(jax.nn.relu(self.conv2(x))))


class Mast3rHead(nnx.Module):
    """`DPTHead`, and a perceptron on the encoder's and the last decoder's tokens for descriptors."""

    def __init__(self, config: Dust3rConfig, *, rngs: nnx.Rngs):
        dtypes = FLOAT32.dtypes(config.param_dtype)
        width = config.encoder_width + config.decoder_width
        values = (config.descriptor_width + 1) * config.patch_size**2
        self.dpt = DPTHead(config, rngs=rngs)
        self.fc1 = Linear(width, 4 * width, axes=("embed", "mlp"), rngs=rngs, **dtypes)
        self.fc2 = Linear(4 * width, values, axes=("mlp", None), rngs=rngs, **dtypes)
        self.patch_size = config.patch_size

    def __call__(self, taps: Sequence[Float[Array, "B h w _"]]) -> View:
        """Predicts from the four taps."""
        x = jnp.concatenate([taps[0].astype(jnp.float32), taps[-1].astype(jnp.float32)], axis=-1)
        x = self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
        x = pixel_shuffle(x, self.patch_size)
        descriptors, confidence = x[..., :-1], jnp.exp(x[..., -1])
        descriptors = descriptors / jnp.linalg.norm(descriptors, axis=-1, keepdims=True)
        return self.dpt(taps)._replace(descriptors=descriptors, descriptor_confidence=confidence)


HEADS = {"linear": LinearHead, "dpt": DPTHead, "mast3r": Mast3rHead}
