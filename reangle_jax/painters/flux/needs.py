"""What FLUX needs in memory and operations: arithmetic on the models' sizes, nothing is run.

Operations count two per multiply-add. Of the published pair an evaluation at 480x720 comes to 28.9 TFLOP: 29.4 were
counted with all six blocks of the ControlNet, the last of which reaches nothing and is not computed here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from reangle_jax import checkpoints
from reangle_jax.diffusion import control, flow
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.needs import ALONE, Needs, Shares, coded_pixels
from reangle_jax.nn.attention import platform
from reangle_jax.nn.network import Network
from reangle_jax.painters.flux import networks
from reangle_jax.painters.flux.networks import DEV, FILL, TINY
from reangle_jax.painters.interface import Editing, Painter, Painting

# Temporary bytes of coding a pixel, for each channel at the finest resolution: seven float32 arrays (as of CogVideoX's
# autoencoder), of twice the finest level's channels where the level before it is doubled.
_CODING = 2 * 7 * 4
# Of a device's share of divided kernels, those divided by their outputs, which XLA transposes first on GPUs (as of
# CogVideoX's: modulation, queries, keys, values, the way into the feed-forward).
_TRANSPOSED = 0.69
_ATTENDED = {"mapped": 1, "cudnn": 0, "splash": 0}
"""Heads whose logits are there at once; all of the plain one's."""
_PUBLISHED: dict[str, dict[str, Callable[[], Any]]] = {
    TINY: {"transformer": FluxConfig.tiny, "controlnet": ControlNetConfig.tiny, "vae": AutoencoderConfig.tiny},
    DEV: {
        "transformer": FluxConfig.dev,
        "controlnet": ControlNetConfig.inpainting_beta,
        "vae": AutoencoderConfig.flux1,
    },
    FILL: {"transformer": FluxConfig.fill_dev, "vae": AutoencoderConfig.flux1},
}
_CONFIGS = {"transformer": FluxConfig, "controlnet": ControlNetConfig, "vae": AutoencoderConfig}


def of_stages(painter: Painter, painting: Painting, editing: Editing, shares: Shares = ALONE) -> dict[str, Needs]:
    """Needs of one painted picture and, but for Fill, of one edited one; see `Painter.needs`."""
    name, (height, width) = painter.name, painter.size
    found = {
        role: networks.build(
            role,
            checkpoints.config_or(painter.folders.get(folder), _CONFIGS[role], _PUBLISHED[name][role]),
            painter.choice,
            painter.base_dtype,
        )
        for role, folder in networks.roles(name).items()
    }
    transformer, vae = found["transformer"], found["vae"].config
    beside = found["controlnet"].config if "controlnet" in found else None
    tokens = height * width // (2 * vae.spatial_compression_ratio) ** 2
    length = networks.T5_LENGTH.get(name, 512)
    plan = planned(painting, tokens)
    kept = {role: _kept(role, network, shares) for role, network in found.items()}
    parameters = sum(kept.values())
    widths = vae.block_out_channels
    levels = [(channels / widths[0], n) for n, channels in enumerate(widths)]
    coding = coded_pixels(levels, height, width, shares) * widths[0] * _CODING
    # A block's: queries, keys and values in float32 and rounded, and the feed-forward; the residuals of the ControlNet.
    size = jnp.dtype(transformer.execution.dtype).itemsize
    narrow = (tokens + length) * transformer.config.inner_dim * size
    impl = transformer.execution.attention
    heads = transformer.config.num_attention_heads if _ATTENDED.get(impl) is None else _ATTENDED[impl]
    plain = (20.0 * narrow + 2.0 * heads * (tokens + length) ** 2 * 4) / shares.video
    working = plain + (beside.used_layers * tokens * beside.inner_dim * size / shares.video if beside else 0)
    text = {"text": _text_bytes(painter.folders, name) / shares.video}
    encode, decode = vae_flops(vae, height * width)
    decodes = int(plan.candidates[plan.candidates > 1].sum()) + 1
    each, alone = (flops(transformer.config, one, tokens, length) for one in (beside, None))
    taken = max(0, editing.steps - editing.skip)
    painted = Needs(
        {**text, "paint": parameters + max(working, coding)}, plan.evaluations * each + decodes * decode + encode
    )
    if name == FILL:
        return {"first_frames": painted}
    parameters -= kept["controlnet"]
    edited = Needs({**text, "edit": parameters + max(2 * plain, coding)}, 2 * taken * alone + decode + encode)
    return {"first_frames": painted, "first_warps": edited}


def _kept(role: str, network: Network, shares: Shares) -> float:
    """Bytes of a network's parameters on a device, an autoencoder's whole."""
    size, config = float(checkpoints.nbytes(network.state)), network.config
    if isinstance(config, AutoencoderConfig):
        return size
    # Beside a divided transformer lies a block that is gathered; a ControlNet has been evaluated by then.
    beside = size / (config.num_layers + config.num_single_layers) if role == "transformer" else 0.0
    return shares.of_base(size, copied=1 + (_TRANSPOSED if platform() == "gpu" else 0), beside=beside)


def planned(how: Painting, tokens: int) -> control.Plan:
    """What each step of painting so many tokens does."""
    return control.plan(
        flow.times(how.steps, tokens, strength=how.strength),
        candidates=how.candidates,
        fewest=how.fewest or None,
        eta=how.eta,
        noise=how.noise,
        window=how.window,
        every=how.every,
    )


def flops(transformer: FluxConfig, controlnet: ControlNetConfig | None, tokens: int, text_length: int) -> float:
    """Operations of one evaluation, of the transformer and of the ControlNet beside it."""
    count, width = tokens + text_length, transformer.inner_dim
    # Queries, keys, values, the way out and the feed-forward, alike in joint and single blocks; attention.
    block = 24.0 * count * width**2 + 4.0 * count**2 * width
    total = (transformer.num_layers + transformer.num_single_layers) * block
    return total + controlnet.used_layers * (block + 2.0 * tokens * width**2) if controlnet else total


def vae_flops(config: AutoencoderConfig, pixels: int) -> tuple[float, float]:
    """Operations of encoding and of decoding a picture of so many pixels; attention and changes of width left out."""
    encode = decode = 0.0
    last = len(config.block_out_channels) - 1
    for level, width in enumerate(config.block_out_channels):
        conv = 2 * 9 * width**2 * pixels / 4**level
        middle = 2 if level == last else 0
        encode += 2 * conv * (config.layers_per_block + middle) + (conv / 4 if level < last else 0)
        decode += 2 * conv * (config.layers_per_block + 1 + middle) + (4 * conv if level > 0 else 0)
    return encode, decode


def _text_bytes(folders: Mapping[str, Path], name: str) -> int:
    """Of T5, which is by far the largest of the text encoders: they are loaded in turn."""
    published = T5Config.tiny if name == TINY else T5Config.t5_v1_1_xxl
    config = checkpoints.config_or(folders.get(networks.text_encoders(name)[1]), T5Config, published)
    return checkpoints.bytes_of(T5Encoder, config)
