"""The CogVideoX diffusion transformer (Yang et al., 2024): text and video tokens in one sequence, text first.

Heads are laid out for rotation by halves: pair k of a head is channels k and k + D/2, where the published weights
have 2k and 2k + 1. Converters permute to_q, to_k and their norms; attention sees only products of q and k.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.cogvideox.positions import rope_table, sincos_table
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.nn import layouts, remat
from reangle_jax.nn.attention import attention
from reangle_jax.nn.diffusion_blocks import GATHERED, SMALL_INIT, FeedForward, Modulation, TimestepMLP, linear_builder
from reangle_jax.nn.embeddings import rotate_halves
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.stack import Stack

# What image-to-video 1.5 is always fed as ``ofs``.
OFS = 2.0

Rope = tuple[Float[Array, "S half"], Float[Array, "S half"]]


def _block_linear(config: TransformerConfig, execution: Execution, rngs: nnx.Rngs) -> Callable[..., Linear]:
    return linear_builder(config.param_dtype, execution, rngs, kernel_dtype=config.kernel_dtype)


def _layer_norm(features: int, epsilon: float, config: TransformerConfig) -> LayerNorm:
    # The result stays float32: what follows (modulation, rotation) is float32 too, and is rounded once.
    return LayerNorm(features, epsilon=epsilon, param_dtype=jnp.dtype(config.param_dtype))


def patchify(x: Float[Array, "B T H W C"], patch: int, patch_t: int) -> Float[Array, "B S P"]:
    """Cuts a latent video into tokens, flattened as (channel, frame, row, column) of the patch."""
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames // patch_t, patch_t, height // patch, patch, width // patch, patch, channels)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, -1, channels * patch_t * patch * patch)


def unpatchify(
    x: Float[Array, "B S P"], grid: tuple[int, int, int], patch: int, patch_t: int
) -> Float[Array, "B T H W C"]:
    """The inverse of :func:`patchify`; ``grid`` counts tokens in time, rows and columns."""
    x = x.reshape(x.shape[0], *grid, -1, patch_t, patch, patch)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    frames, rows, columns = grid
    return x.reshape(x.shape[0], frames * patch_t, rows * patch, columns * patch, -1)


class PatchEmbed(nnx.Module):
    """Tokens of text and video, with their positions added where the model has a table."""

    def __init__(self, config: TransformerConfig, execution: Execution, *, rngs: nnx.Rngs):
        linear = linear_builder(config.param_dtype, execution, rngs)
        patch_volume = config.patch_size**2 * (config.patch_size_t or 1)
        self.proj = linear(config.in_channels * patch_volume, config.inner_dim, (None, "embed"))
        self.text_proj = linear(config.text_embed_dim, config.inner_dim, (None, "embed"))
        self.pos_embedding = (
            nnx.Param(self._fixed_table(config).astype(config.param_dtype), axes=(None, "embed"))
            if config.use_learned
            else None
        )
        self.config = config

    @staticmethod
    def _fixed_table(config: TransformerConfig) -> Array:
        text = jnp.zeros((config.max_text_seq_length, config.inner_dim), jnp.float32)
        sample = (config.sample_latent_frames, config.sample_height, config.sample_width)
        return jnp.concatenate([text, sincos_table(config, *sample)])

    def _positions(self, frames: int, height: int, width: int, text_length: int) -> Array | None:
        config = self.config
        if config.use_rotary and not config.use_learned:
            return None
        if text_length != config.max_text_seq_length:
            raise ValueError(
                f"text has {text_length} tokens; the position table needs exactly {config.max_text_seq_length}"
            )
        if self.pos_embedding is not None and (height, width) != (config.sample_height, config.sample_width):
            raise ValueError(
                f"latents are {height}x{width}; the learned position table is for "
                f"{config.sample_height}x{config.sample_width} only"
            )
        if self.pos_embedding is not None and frames == config.sample_latent_frames:
            return self.pos_embedding[...]
        # Another length: the published pipeline falls back to the fixed table, without the learned text rows.
        text = jnp.zeros((text_length, config.inner_dim), jnp.float32)
        return jnp.concatenate([text, sincos_table(config, frames, height, width)])

    def __call__(self, latents: Float[Array, "B t h w C"], text: Float[Array, "B L D"]) -> Float[Array, "B S inner"]:
        """Embeds both, text first, and fills the sequence up until the devices divide it."""
        config = self.config
        _, frames, height, width, channels = latents.shape
        if channels != config.in_channels:
            raise ValueError(f"latents have {channels} channels, the model takes {config.in_channels}")
        if height % config.patch_size or width % config.patch_size or frames % (config.patch_size_t or 1):
            raise ValueError(
                f"latents of {frames}x{height}x{width} are not whole patches of "
                f"{config.patch_size_t or 1}x{config.patch_size}x{config.patch_size}"
            )
        if text.shape[-1] != config.text_embed_dim:
            raise ValueError(f"text is {text.shape[-1]} wide, the model takes {config.text_embed_dim}")
        positions = self._positions(frames, height, width, text.shape[1])
        x = self._tokens(patchify(latents, config.patch_size, config.patch_size_t or 1), text)
        return x if positions is None else x + layouts.fill(positions.astype(x.dtype), 0)[None]

    def _tokens(self, patches: Array, text: Array) -> Array:
        length = text.shape[1]
        if layouts.ways("tokens") == 1:
            return jnp.concatenate([self.text_proj(text), self.proj(patches)], axis=1)
        # Each device projects its own patches: joined before, when they are small, nothing wide has to move.
        patches = layouts.fill(jnp.pad(patches, ((0, 0), (length, 0), (0, 0))), 1)
        words = layouts.constrain(self.text_proj(text), layouts.WHOLE)
        words = jnp.pad(words, ((0, 0), (0, patches.shape[1] - length), (0, 0)))
        is_text = (jnp.arange(patches.shape[1]) < length)[None, :, None]
        video = self.proj(layouts.constrain(patches, layouts.TOKENS))
        return layouts.constrain(jnp.where(is_text, words, video), layouts.TOKENS)


class JointNorm(nnx.Module):
    """Layer norm with one affine form, then scale and shift by the time, apart for text and video."""

    def __init__(self, config: TransformerConfig, execution: Execution, *, rngs: nnx.Rngs):
        width = config.inner_dim
        axes = (None, GATHERED)
        self.linear = _block_linear(config, execution, rngs)(
            config.time_embed_dim, 6 * width, axes, init_scale=SMALL_INIT
        )
        self.norm = _layer_norm(width, config.norm_eps, config)
        self.dtype = jnp.dtype(execution.dtype)

    def __call__(
        self, x: Float[Array, "B S inner"], time: Float[Array, "B time"], text_length: int
    ) -> tuple[Float[Array, "B S inner"], Float[Array, "B S inner"]]:
        """Returns the modulated norm and the gate for what is computed from it."""
        parts = jnp.split(self.linear(time).astype(jnp.float32)[:, None, :], 6, axis=-1)
        of_video, of_text = Modulation(*parts[:3]), Modulation(*parts[3:])
        is_text = (jnp.arange(x.shape[1]) < text_length)[None, :, None]
        # A select is fused into the arithmetic around it; a concatenation of two halves would be copied.
        shift, scale, gate = (jnp.where(is_text, *pair) for pair in zip(of_text, of_video, strict=True))
        y = self.norm(x) * (1.0 + scale) + shift
        return y.astype(self.dtype), gate.astype(self.dtype)


class JointAttention(nnx.Module):
    """Self-attention over text and video together."""

    def __init__(self, config: TransformerConfig, execution: Execution, *, rngs: nnx.Rngs):
        linear, width = _block_linear(config, execution, rngs), config.inner_dim
        self.to_q, self.to_k, self.to_v = (linear(width, width, ("embed", GATHERED), config.lora) for _ in range(3))
        self.to_out = linear(width, width, (GATHERED, "embed"), config.lora)
        self.norm_q = _layer_norm(config.attention_head_dim, 1e-6, config)
        self.norm_k = _layer_norm(config.attention_head_dim, 1e-6, config)
        self.config = config
        self.impl = execution.attention

    def __call__(self, x: Float[Array, "B S inner"], rope: Rope | None, length: int) -> Float[Array, "B S inner"]:
        """Mixes the first ``length`` tokens; those after them only fill the sequence up."""
        heads = (*x.shape[:2], self.config.num_attention_heads, self.config.attention_head_dim)
        q, k, v = (remat.product(to(x)).reshape(heads) for to in (self.to_q, self.to_k, self.to_v))
        q, k = self.norm_q(q), self.norm_k(k)
        if rope is not None:
            q, k = rotate_halves(q, *rope), rotate_halves(k, *rope)
        y = attention(q.astype(v.dtype), k.astype(v.dtype), v, impl=self.impl, lengths=(length,))
        return self.to_out(y.reshape(x.shape))


class Block(nnx.Module):
    """Attention and feed-forward, each between a modulated norm and a gate."""

    def __init__(self, config: TransformerConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.norm1 = JointNorm(config, execution, rngs=rngs)
        self.attn = JointAttention(config, execution, rngs=rngs)
        self.norm2 = JointNorm(config, execution, rngs=rngs)
        self.ff = FeedForward(config.inner_dim, _block_linear(config, execution, rngs))

    def __call__(
        self,
        x: Float[Array, "B S inner"],
        time: Float[Array, "B time"],
        rope: Rope | None,
        text_length: int,
        length: int,
    ) -> Float[Array, "B S inner"]:
        """Applies the block to ``length`` tokens, the text's first; ``time`` is the activated embedding."""
        y, gate = self.norm1(x, time, text_length)
        x = x + gate * self.attn(y, rope, length)
        y, gate = self.norm2(x, time, text_length)
        return x + gate * self.ff(y)


class Head(nnx.Module):
    """From the video tokens to patches of the prediction."""

    def __init__(self, config: TransformerConfig, execution: Execution, *, rngs: nnx.Rngs):
        linear, width = linear_builder(config.param_dtype, execution, rngs), config.inner_dim
        out_features = config.out_channels * config.patch_size**2 * (config.patch_size_t or 1)
        self.norm_final = _layer_norm(width, config.norm_eps, config)
        self.linear = linear(config.time_embed_dim, 2 * width, (None, None), init_scale=SMALL_INIT)
        self.norm = _layer_norm(width, config.norm_eps, config)
        self.proj_out = linear(width, out_features, ("embed", None), init_scale=SMALL_INIT)

    def __call__(self, video: Float[Array, "B V inner"], time: Float[Array, "B time"]) -> Float[Array, "B V P"]:
        """Norms, modulates and projects; ``time`` is the activated embedding."""
        shift, scale = jnp.split(self.linear(time).astype(jnp.float32)[:, None, :], 2, axis=-1)
        return self.proj_out(self.norm(self.norm_final(video)) * (1.0 + scale) + shift)


class Transformer(nnx.Module):
    """Predicts v from noised latents (with the image condition's beside them), text and times."""

    def __init__(self, config: TransformerConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution.chosen(config.param_dtype)
        linear = linear_builder(config.param_dtype, execution, rngs)
        self.patch_embed = PatchEmbed(config, execution, rngs=rngs)
        self.time_embedding = TimestepMLP(config.inner_dim, config.time_embed_dim, linear)
        ofs_dim = config.ofs_embed_dim
        self.ofs_embedding = TimestepMLP(ofs_dim, ofs_dim, linear) if ofs_dim else None
        self.blocks = Stack(Block, config, execution, config.num_layers, tokens=True, rngs=rngs)
        self.head = Head(config, execution, rngs=rngs)
        self.config = config
        self.execution = execution

    def embed_time(self, timesteps: Float[Array, " B"]) -> Float[Array, "B time"]:
        """The activated embedding of the times, which every block takes."""
        time = self.time_embedding(timesteps)
        if self.ofs_embedding is not None:
            time = time + jnp.broadcast_to(self.ofs_embedding(jnp.full((1,), OFS)), time.shape)
        return jax.nn.silu(time)

    def rope(self, latents_shape: tuple[int, ...], text_length: int) -> Rope | None:
        """Cosines and sines for the whole sequence; text tokens are turned by nothing. None for sincos models."""
        if not self.config.use_rotary:
            return None
        cos, sin = rope_table(self.config, *latents_shape[1:4])
        still = (text_length, cos.shape[1])
        return jnp.concatenate([jnp.ones(still), cos]), jnp.concatenate([jnp.zeros(still), sin])

    def __call__(
        self, latents: Float[Array, "B t h w Cin"], text: Float[Array, "B L D"], timesteps: Float[Array, " B"]
    ) -> Float[Array, "B t h w Cout"]:
        """Predicts.

        Args:
            latents: noised latents; for image-to-video the image condition's channels follow them.
            text: the text encoder's output, padded to ``max_text_seq_length``; pads are attended to.
            timesteps: one for each video, 0..999.

        Returns:
            The prediction (v, for the published models), in the dtype computed in.

        Raises:
            ValueError: sizes that the model cannot take.
        """
        config, text_length = self.config, text.shape[1]
        length = text_length + config.num_video_tokens(*latents.shape[1:4])
        x = self.patch_embed(latents, text)
        time = self.embed_time(timesteps)
        rope = self.rope(latents.shape, text_length)
        rope = None if rope is None else (layouts.fill(rope[0], 0), layouts.fill(rope[1], 0))
        x = self.blocks(x, time, rope, text_length, length)
        if layouts.ways("tokens") == 1:
            patches = self.head(x[:, text_length:], time)
        else:  # what the head gives is narrow: it is gathered, and cut, after it
            patches = layouts.constrain(self.head(x, time), layouts.WHOLE)[:, text_length:length]
        patch, patch_t = config.patch_size, config.patch_size_t or 1
        grid = (latents.shape[1] // patch_t, latents.shape[2] // patch, latents.shape[3] // patch)
        return unpatchify(patches, grid, patch, patch_t)
