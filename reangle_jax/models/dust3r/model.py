"""DUSt3R (Wang et al., 2023, arXiv 2312.14132) and MASt3R (Leroy et al., 2024, arXiv 2406.09756)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.dust3r.config import Dust3rConfig
from reangle_jax.models.dust3r.decoder import DecoderPair
from reangle_jax.models.dust3r.heads import HEADS, View
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.embeddings import Rope, grid_rope, place_waves
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.stack import Stack
from reangle_jax.nn.vit import Block


class Dust3r(nnx.Module):
    """Pairs of images to point maps in the first image's camera.

    An image is encoded by itself, so that its tokens can be kept and paired with any others: `encode`, then `decode`.
    The heads are always computed in float32.
    """

    def __init__(self, config: Dust3rConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        dtypes = execution.dtypes(config.param_dtype)
        encoder, decoder, size = config.encoder, config.decoder, config.patch_size
        self.patch_embed = Conv2D(3, encoder.width, size, stride=size, rngs=rngs, **dtypes)
        self.encoder = Stack(Block, encoder, execution, encoder.depth, rngs=rngs)
        self.encoder_norm = LayerNorm(encoder.width, epsilon=config.epsilon, **dtypes)
        self.decoder_embed = Linear(encoder.width, decoder.width, axes=("embed", None), rngs=rngs, **dtypes)
        self.decoder = Stack(DecoderPair, decoder, execution, decoder.depth, rngs=rngs)
        self.decoder_norm = LayerNorm(decoder.width, epsilon=config.epsilon, **dtypes)
        self.head1 = HEADS[config.head](config, rngs=rngs)
        self.head2 = HEADS[config.head](config, rngs=rngs)
        self.config = config

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Encodes images of values -1 to 1 (see `preprocess`), each by itself, to normalised tokens, one a patch.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        size = self.config.patch_size
        if images.shape[1] % size or images.shape[2] % size:
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} are no multiple of the patch size {size}: crop them"
            )
        tokens = self.patch_embed(images)
        grid = tokens.shape
        rope = self._rope(tokens, self.config.encoder_width // self.config.encoder_heads)
        tokens = self.encoder(self._placed(tokens).reshape(grid[0], -1, grid[3]), rope)
        return self.encoder_norm(tokens).reshape(grid)

    def decode(self, tokens1: Float[Array, "B h w C"], tokens2: Float[Array, "B h2 w2 C"]) -> tuple[View, View]:
        """Decodes pairs of encoded images, which may differ in size.

        Returns:
            What is seen in the first and in the second images, at their own sizes, all in the first ones' cameras.
        """
        width = self.config.decoder_width // self.config.decoder_heads
        ropes = self._rope(tokens1, width), self._rope(tokens2, width)
        grids = tokens1.shape[:3], tokens2.shape[:3]
        embedded = [
            self._placed(self.decoder_embed(x)).reshape(x.shape[0], -1, self.config.decoder_width)
            for x in (tokens1, tokens2)
        ]
        if self.config.head == "linear":
            outputs = [self.decoder(tuple(embedded), ropes)]
        else:
            outputs = self.decoder.at(self.config.taps, tuple(embedded), ropes)
        outputs[-1] = tuple(self.decoder_norm(x) for x in outputs[-1])
        taps1, taps2 = ([pair[k].reshape(*grids[k], -1) for pair in outputs] for k in (0, 1))
        return self.head1([tokens1, *taps1]), self.head2([tokens2, *taps2])

    def __call__(self, images1: Float[Array, "B H W 3"], images2: Float[Array, "B H2 W2 3"]) -> tuple[View, View]:
        """Encodes and decodes pairs of images; see `encode` and `decode`."""
        if images1.shape == images2.shape:  # one pass of twice the batch
            tokens1, tokens2 = jnp.split(self.encode(jnp.concatenate([images1, images2])), 2)
            return self.decode(tokens1, tokens2)
        return self.decode(self.encode(images1), self.encode(images2))

    def _placed(self, tokens: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        if not self.config.absolute_positions:
            return tokens
        return tokens + jnp.asarray(place_waves(*tokens.shape[1:]), tokens.dtype)[None]

    def _rope(self, tokens: Array, width: int) -> Rope:
        return grid_rope(tokens.shape[1], tokens.shape[2], width, self.config.rope_theta)
