"""What CogVideoX needs in memory and operations: arithmetic on the models' sizes, nothing is run.

Operations count two per multiply-add. The formulas reproduce the roofline of the published model (docs: scale): forward
332 TFLOP for 49 x 480 x 720, encoding 149; decoding to a sixth (norms and resizing are left out).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.backbones.cogvideox import networks
from reangle_jax.backbones.interface import Backbone, Demand
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.needs import Needs
from reangle_jax.nn.execution import Execution

# Temporary bytes of coding a pixel, for each channel of the finest level: seven float32 arrays, as XLA plans it
# (docs/measured.md: 10.6 GiB for nine frames of 480x720).
_CODING = 7 * 4
# What a block keeps for the backward pass, in arrays as large as what enters it, and the operations of a training step
# over those of a forward pass (docs: scale): the base is frozen, and has no gradient.
_KEPT = {"full": 1.0, "attention": 2.0, "matmuls": 9.2, "none": 48.0}
PASSES = {"full": 3.6, "attention": 3.1, "matmuls": 2.8, "none": 2.75}
_FULL = {"vae": VAEConfig.cogvideox_5b, "text_encoder": T5Config.t5_v1_1_xxl}
# What is published under each name.
_PUBLISHED: dict[str, dict[str, Callable[[], Any]]] = {
    "tiny": {"transformer": TransformerConfig.tiny, "vae": VAEConfig.tiny, "text_encoder": T5Config.tiny},
    "cogvideox-5b-i2v": {"transformer": TransformerConfig.cogvideox_5b_i2v, **_FULL},
    "cogvideox1.5-5b-i2v": {"transformer": TransformerConfig.cogvideox1_5_5b_i2v, **_FULL},
}


def of_stages(backbone: Backbone, demand: Demand) -> dict[str, Needs]:
    """Needs of one unit of fine-tuning and of sampling.

    Args:
        backbone: the model; its published sizes count where a folder is missing.
        demand: what is asked of it.
    """
    transformer, vae, t5 = (
        checkpoints.config_or(backbone.folders[part], kind, _PUBLISHED[backbone.name][part])
        for part, kind in (("transformer", TransformerConfig), ("vae", VAEConfig), ("text_encoder", T5Config))
    )
    transformer = checkpoints.as_kept(transformer, backbone.base_dtype, backbone.folders["transformer"])
    transformer = dataclasses.replace(transformer, lora_rank=backbone.rank, lora_alpha=backbone.alpha)
    execution = Execution.chosen(transformer.param_dtype, backbone.choice)
    clip = backbone.clip
    pixels = clip.num_frames * clip.height * clip.width
    latent = backbone.grid.latents(clip.num_frames, clip.height, clip.width)
    tokens = transformer.num_video_tokens(*latent) + transformer.max_text_seq_length
    base, adapters = transformer_bytes(transformer)
    forward = transformer_flops(transformer, tokens)
    block = tokens * transformer.inner_dim * jnp.dtype(execution.dtype).itemsize
    heads_at_once = {"mapped": 1, "cudnn": 0, "splash": 0}.get(execution.attention, transformer.num_attention_heads)
    logits = heads_at_once * tokens**2 * 4
    coded = pixels  # at once: of every frame a tile or the whole
    if networks.in_tiles(clip.tiles, (clip.height, clip.width)):
        coded = min(pixels, clip.num_frames * networks.TILE_SAMPLE[0] * networks.TILE_SAMPLE[1])
    text = float(text_encoder_bytes(t5))
    encoder, decoder = vae_bytes(vae)
    # Of nine frames at once, the first chunk; one is encoded alone, as the condition. What only encodes is loaded whole
    # and drops the decoder.
    nine, one = (coded * min(1.0, count / clip.num_frames) * _CODING * vae.block_out_channels[0] for count in (9, 1))
    encode, decode = vae_flops(vae, pixels)
    kept = transformer.num_layers * _KEPT[execution.remat] * block
    train = Needs(
        {
            "text": text,
            "encode": encoder + max(decoder, nine),
            # Beside the float32 adapters lie their gradient and AdamW's two moments.
            "train": base + 4.0 * adapters + encoder + demand.batch_size * max(kept + 20 * block + 2 * logits, one),
        },
        demand.steps * demand.batch_size * forward * PASSES[execution.remat] + encode * demand.videos,
    )
    guided = 2 if demand.guided else 1
    sample = Needs(
        {
            "text": text,
            "condition": encoder + max(decoder, one),
            "sample": base + demand.variants * adapters + guided * (10 * block + 2 * logits),
            "decode": encoder + decoder + nine,
        },
        demand.sampling_steps * guided * forward + decode,
    )
    return {"finetune": train, "generate": sample}


@functools.cache
def transformer_bytes(config: TransformerConfig) -> tuple[int, int]:
    """Bytes of a transformer's base and of its adapters."""
    model = checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    adapters = checkpoints.nbytes(nnx.state(model, nnx.LoRAParam))
    return checkpoints.nbytes(model) - adapters, adapters


@functools.cache
def vae_bytes(config: VAEConfig) -> tuple[int, int]:
    """Bytes of an autoencoder's encoder and of its decoder."""
    model = checkpoints.abstract(lambda: VAE(config, rngs=nnx.Rngs(0)))
    return checkpoints.nbytes(model.encoder), checkpoints.nbytes(model.decoder)


@functools.cache
def text_encoder_bytes(config: T5Config) -> int:
    """Bytes of a text encoder."""
    return checkpoints.nbytes(checkpoints.abstract(lambda: T5Encoder(config, rngs=nnx.Rngs(0))))


def transformer_flops(c: TransformerConfig, tokens: int) -> float:
    """Operations of one forward pass."""
    return c.num_layers * (24.0 * tokens * c.inner_dim**2 + 4.0 * tokens**2 * c.inner_dim)


def vae_flops(c: VAEConfig, pixels: int) -> tuple[float, float]:
    """Operations of encoding and of decoding a video of so many pixels (frames x height x width)."""
    encode = decode = 0.0
    ratio, levels = c.temporal_compression_ratio, len(c.block_out_channels)
    for level, width in enumerate(c.block_out_channels):
        one = 2 * 2 * 27 * width**2 * pixels / 4**level  # a residual block's two convolutions, at the full frame rate
        middle = 2 if level == levels - 1 else 0
        # Time shrinks with the first halvings of space going down, and grows with the first doublings going up.
        encode += one * (c.layers_per_block + middle) / min(2**level, ratio)
        decode += one * (c.layers_per_block + 1 + middle) / max(1, ratio // 2 ** (levels - 1 - level))
    return encode, decode
