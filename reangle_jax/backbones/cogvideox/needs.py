"""What CogVideoX needs in memory and operations: arithmetic on the models' sizes, nothing is run.

Operations count two per multiply-add. The formulas reproduce the roofline of the published model (docs: scale): forward
332 TFLOP for 49 x 480 x 720, encoding 149; decoding to a sixth (norms and resizing are left out).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from reangle_jax import checkpoints, mesh
from reangle_jax.backbones.cogvideox import networks
from reangle_jax.backbones.interface import Backbone, Demand
from reangle_jax.backbones.registry import Clip
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.needs import Needs, Shares, coded_pixels
from reangle_jax.nn.attention import platform
from reangle_jax.nn.execution import Execution


class Temporaries(NamedTuple):
    """What is in memory beside parameters, results and what the backward pass needs, as XLA plans it (docs: scale)."""

    # Float32 arrays as large as the autoencoder's finest level while frames are encoded; the second, where frames are
    # divided, as what neighbours hold comes beside a device's own.
    encoding: tuple[float, float] = (7.0, 14.0)
    # The same while latents are decoded: nine frames of 480x720 take 10.6 GiB on a CPU.
    decoding: tuple[float, float] = (7.0, 14.0)
    training: float = 20.0  # arrays as large as what enters a block, in a block's two passes
    sampling: float = 10.0  # the same in one pass
    padded: float = 0.0  # more of them that each block keeps, as heads of 64 channels are filled up to 128
    gathered: float = 2.0  # blocks of a divided base that are whole at once
    transposed: float = 0.0  # part of a device's share of a divided base that is there a second time, in another order


_TEMPORARIES = {
    # Kernels that are divided by their outputs (modulation, queries, keys, values, the way into the feed-forward: 0.64
    # of a block) are transposed before the first block, whole stacks of them, for gathering along the leading axis.
    "gpu": Temporaries(encoding=(6.2, 10.8), decoding=(8.5, 21.0), gathered=0.8, transposed=0.64),
    # The gradient of the queries is summed up in float32 from five arrays, and one matrix is gathered at a time.
    "tpu": Temporaries(
        encoding=(13.7, 14.7), decoding=(13.7, 14.7), training=38.0, sampling=18.0, padded=1.0, gathered=0.6
    ),
}
# What a block keeps for the backward pass, in arrays as large as what enters it, and the operations of a training step
# over those of a forward pass (docs: scale): the base is frozen, and has no gradient.
_KEPT = {"full": 1.0, "attention": 2.0, "matmuls": 9.2, "none": 48.0}
PASSES = {"full": 3.6, "attention": 3.1, "matmuls": 2.8, "none": 2.75}
_WITH_HEADS = ("attention", "matmuls")  # keep what attention gave, by heads
_FULL = {"vae": VAEConfig, "text_encoder": T5Config.t5_v1_1_xxl}
# What is published under each name.
_PUBLISHED: dict[str, dict[str, Callable[[], Any]]] = {
    "tiny": {"transformer": TransformerConfig.tiny, "vae": VAEConfig.tiny, "text_encoder": T5Config.tiny},
    "cogvideox-5b-i2v": {"transformer": TransformerConfig.cogvideox_5b_i2v, **_FULL},
    "cogvideox1.5-5b-i2v": {"transformer": TransformerConfig.cogvideox1_5_5b_i2v, **_FULL},
}


def of_stages(backbone: Backbone, demand: Demand) -> dict[str, Needs]:
    """Needs of one unit of fine-tuning and of sampling; the model's published sizes count where a folder is missing."""
    transformer, vae, t5 = _configs(backbone)
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
    text = float(checkpoints.bytes_of(T5Encoder, t5))
    encoder, decoder = vae_bytes(vae)
    training, sampling = demand.training, demand.sampling
    # Of nine frames at once, the first chunk; one is encoded alone, as the condition. What only encodes is loaded whole
    # and drops the decoder.
    count = min(9, clip.num_frames)
    encode, decode = vae_flops(vae, pixels)
    beside = temporaries()
    each = _KEPT[execution.remat] + (beside.padded if execution.remat in _WITH_HEADS else 0)
    kept = transformer.num_layers * each * block
    whole, copied = undivided_bytes(transformer), 1 + beside.transposed
    gathered = beside.gathered * base / transformer.num_layers
    own = training.of_batch(demand.batch_size)
    train = Needs(
        {
            "text": text / training.video,
            "encode": encoder + max(decoder, coding_bytes(vae, clip, count, training)),
            # Beside the float32 adapters lie their gradient and AdamW's two moments.
            "train": training.of_base(base, whole=whole, copied=copied, beside=gathered)
            + 4.0 * adapters / training.video
            + encoder
            + own
            * max((kept + beside.training * block + 2 * logits) / training.video, coding_bytes(vae, clip, 1, training)),
        },
        demand.steps * demand.batch_size * forward * PASSES[execution.remat] + encode * demand.videos,
    )
    guided = 2 if demand.guided else 1
    passes = sampling.of_batch(guided * max(1, sampling.videos // guided))
    sample = Needs(
        {
            "text": text / sampling.video,
            "condition": encoder + max(decoder, coding_bytes(vae, clip, 1, sampling)),
            "sample": sampling.of_base(base, whole=whole, copied=copied, beside=gathered)
            + (demand.variants * adapters + passes * (beside.sampling * block + 2 * logits)) / sampling.video,
            "decode": encoder + decoder + coding_bytes(vae, clip, count, sampling, decodes=True),
        },
        demand.sampling_steps * guided * forward + decode,
    )
    return {"finetune": train, "generate": sample}


def coding_bytes(vae: VAEConfig, clip: Clip, frames: int, shares: Shares, *, decodes: bool = False) -> float:
    """Temporary bytes of coding so many frames of a clip at once, of each a tile or the whole, on one device."""
    size = (clip.height, clip.width)
    if networks.in_tiles(clip.tiles, size):
        size = (min(size[0], networks.TILE_SAMPLE[0]), min(size[1], networks.TILE_SAMPLE[1]))
    widths, ratio = vae.block_out_channels, vae.temporal_compression_ratio
    # A frame of each resolution is shorter in time, too: decoded, it doubles with the first doublings of space.
    slower = [max(1, ratio // 2 ** (len(widths) - 1 - n)) for n in range(len(widths))]
    levels = [(width / widths[0] / slower[n], n) for n, width in enumerate(widths)]
    beside = temporaries()
    arrays = (beside.decoding if decodes else beside.encoding)[shares.video > 1]
    return frames * coded_pixels(levels, *size, shares) * widths[0] * 4 * arrays


def temporaries() -> Temporaries:
    """Of the platform that programs are compiled for."""
    return _TEMPORARIES.get(platform(), Temporaries())


def base_bytes(backbone: Backbone) -> int:
    """Bytes of the frozen transformer, of the published sizes where its folder is missing."""
    return transformer_bytes(_configs(backbone)[0])[0]


def _configs(backbone: Backbone) -> tuple[TransformerConfig, VAEConfig, T5Config]:
    transformer, vae, t5 = (
        checkpoints.config_or(backbone.folders[part], kind, _PUBLISHED[backbone.name][part])
        for part, kind in (("transformer", TransformerConfig), ("vae", VAEConfig), ("text_encoder", T5Config))
    )
    transformer = checkpoints.as_kept(transformer, backbone.base_dtype, backbone.folders["transformer"])
    return dataclasses.replace(transformer, lora_rank=backbone.rank, lora_alpha=backbone.alpha), vae, t5


@functools.cache
def transformer_bytes(config: TransformerConfig) -> tuple[int, int]:
    """Bytes of a transformer's base and of its adapters."""
    model = checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    adapters = checkpoints.nbytes(nnx.state(model, nnx.LoRAParam))
    return checkpoints.nbytes(model) - adapters, adapters


@functools.cache
def undivided_bytes(config: TransformerConfig) -> int:
    """Bytes of a transformer's base that lie whole on every device, whatever its layout: positions, norms."""
    model = checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    parameters = [variable for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    frozen = [variable for variable in parameters if not isinstance(variable, nnx.LoRAParam)]
    return checkpoints.nbytes([variable for variable in frozen if not mesh.divides(variable)])


@functools.cache
def vae_bytes(config: VAEConfig) -> tuple[int, int]:
    """Bytes of an autoencoder's encoder and of its decoder."""
    model = checkpoints.abstract(lambda: VAE(config, rngs=nnx.Rngs(0)))
    return checkpoints.nbytes(model.encoder), checkpoints.nbytes(model.decoder)


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
