"""``--plan``: what each stage will need on this device, and what is done already. Estimates are arithmetic, not runs.

Operations count two per multiply-add. The formulas reproduce the roofline of the published model (docs: scale): forward
332 TFLOP for 49 x 480 x 720, encoding 149; decoding to a sixth (norms and resizing are left out).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from reangle_jax import checkpoints, measure, weights
from reangle_jax.backbones.cogvideox import image_to_video as i2v
from reangle_jax.config import Settings
from reangle_jax.diffusion.guidance import is_guided
from reangle_jax.errors import InputError
from reangle_jax.measure import human_bytes, human_seconds
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.depth_anything import DepthAnythingConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.nn.execution import Execution
from reangle_jax.run import Ledger, Stage

# Sustained FLOP/s of one device in our kind of work: the bf16 peak times the utilisation that scale's targets expect.
_RATES = {
    "H100": 989e12 * 0.37,
    "A100": 312e12 * 0.42,
    "v5 lite": 197e12 * 0.29,
    "v5p": 459e12 * 0.3,
    "v6 lite": 918e12 * 0.13,
}
# Temporary bytes of coding a pixel, for each channel of the finest level: seven float32 arrays, as XLA plans it
# (docs/measured.md: 10.6 GiB for nine frames of 480x720).
_CODING = 7 * 4
_CPU_RATE = 5e10  # float32, per core

_TRANSFORMERS = {
    "tiny": TransformerConfig.tiny,
    "cogvideox-5b-i2v": TransformerConfig.cogvideox_5b_i2v,
    "cogvideox1.5-5b-i2v": TransformerConfig.cogvideox1_5_5b_i2v,
}


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a unit of work needs.

    Attributes:
        phases: device memory of each of its phases, bytes: everything that is there at once.
        flops: operations.
    """

    phases: dict[str, float]
    flops: float

    @property
    def peak_bytes(self) -> float:
        """The most device memory of any phase."""
        return max(self.phases.values())


def table(ledger: Ledger, stages: Sequence[Stage]) -> str:
    """The plan as text: a line for each stage, and why what is to be done is to be done."""
    settings = ledger.settings
    needs, rate = estimate(settings), _rate()
    device = measure.devices()
    limit = measure.device_limit_bytes()
    lines = [
        f"{ledger.root}: {settings.num_frames} frames of {settings.height}x{settings.width}, {settings.model}, on "
        f"{device['count']} x {device['kind']}" + (f" with {human_bytes(limit)} each" if limit else ""),
        "",
        f"{'stage':14}{'units':>7}{'done':>6}{'peak memory':>14}{'time':>18}  state",
    ]
    remade: dict[str, str] = {}  # by work that comes first: what follows from it may change
    total = 0.0
    for stage in stages:
        verdicts = ledger.survey(stage, remade)
        units = [verdict.unit for verdict in verdicts]
        todo = [verdict for verdict in verdicts if verdict.reasons]
        waits = dict.fromkeys(path for verdict in verdicts if not verdict.reasons for path in verdict.waits)
        measured = [record for unit in units if (record := ledger.measured(stage, unit))]
        each = needs.get(stage.name)
        if measured and (not todo or each is None):
            seconds = sum(record["seconds"] for record in measured) / len(measured) * len(units)
            peak = max(map(measure.peak_bytes, measured))
            time, memory = f"took {human_seconds(seconds)}", human_bytes(peak)
        elif each is not None:
            seconds = each.flops * len(units) / rate
            time, memory = f"~ {human_seconds(seconds)}", f"~ {human_bytes(each.peak_bytes)}"
        else:
            seconds, time, memory = 0.0, "seconds", "small"
        total += seconds * len(todo) / max(1, len(units))
        states = list(dict.fromkeys(reason for verdict in todo for reason in verdict.reasons[:2])) or ["done"]
        states += [f"redone if what it reads changes: {', '.join([*waits][:2])}"] if waits else []
        state = "; ".join(states)
        if each is not None and limit and each.peak_bytes > limit:
            state += "  (DOES NOT FIT this device)"
        lines.append(f"{stage.name:14}{len(units):>7}{len(units) - len(todo):>6}{memory:>14}{time:>18}  {state[:160]}")
    lines += ["", f"to do: about {human_seconds(total)} (~: computed from the sizes; took: measured in this folder)"]
    missing = _missing_weights(settings)
    return "\n".join(lines + [f"missing: {line}" for line in missing])


def estimate(settings: Settings) -> dict[str, Needs]:
    """Needs of one unit of each stage that computes anything to speak of, by the stage's name."""
    transformer = _config(settings, "transformer", TransformerConfig, _TRANSFORMERS[settings.model]())
    vae = _config(
        settings, "vae", VAEConfig, VAEConfig.tiny() if settings.model == "tiny" else VAEConfig.cogvideox_5b()
    )
    published_depth = DepthAnythingConfig.tiny() if settings.model == "tiny" else DepthAnythingConfig.large()
    depth = _config(settings, "depth", DepthAnythingConfig, published_depth)
    tiny = settings.model == "tiny"
    t5 = _config(settings, "text_encoder", T5Config, T5Config.tiny() if tiny else T5Config.t5_v1_1_xxl())
    f = settings.finetune
    transformer = dataclasses.replace(transformer, lora_rank=f.rank, lora_alpha=f.alpha)
    execution = Execution.chosen(transformer.param_dtype, settings.execution)
    pixels = settings.num_frames * settings.height * settings.width
    latent = ((settings.num_frames - 1) // 4 + 1, settings.height // 8, settings.width // 8)
    tokens = transformer.num_video_tokens(*latent) + transformer.max_text_seq_length
    base, adapters = transformer_bytes(transformer)
    forward = transformer_flops(transformer, tokens)
    block = tokens * transformer.inner_dim * jax.numpy.dtype(execution.dtype).itemsize
    heads_at_once = {"mapped": 1, "cudnn": 0, "splash": 0}.get(execution.attention, transformer.num_attention_heads)
    logits = heads_at_once * tokens**2 * 4
    coded = pixels  # at once: of every frame a tile or the whole
    if i2v.in_tiles(settings.vae_tiles, (settings.height, settings.width)):
        coded = min(pixels, settings.num_frames * i2v.TILE_SAMPLE[0] * i2v.TILE_SAMPLE[1])
    text = float(text_encoder_bytes(t5))
    encoder, decoder = vae_bytes(vae)
    # Of nine frames at once, the first chunk; one is encoded alone, as the condition.
    nine, one = (
        coded * min(1.0, count / settings.num_frames) * _CODING * vae.block_out_channels[0] for count in (9, 1)
    )
    encode, decode = vae_flops(vae, pixels)
    # The base is frozen: no gradient of its weights. With remat each block keeps its input and what its attention gave,
    # and runs twice.
    kept = transformer.num_layers * (2 if execution.remat else 14) * block
    train = Needs(
        {
            "text": text,
            "encode": encoder + decoder + nine,
            # Beside the float32 adapters lie their gradient and AdamW's two moments.
            "train": base + 4.0 * adapters + encoder + f.batch_size * max(kept + 20 * block + 2 * logits, one),
        },
        f.steps * f.batch_size * forward * (3.6 if execution.remat else 2.6) + encode * (1 + len(settings.train_views)),
    )
    guided = 2 if is_guided(settings.sample.guidance_scale) else 1
    variants = 2 if settings.evaluate.untuned else 1  # of the adapters
    sample = Needs(
        {
            "text": text,
            "condition": encoder + decoder + one,
            "sample": base + variants * adapters + guided * (10 * block + 2 * logits),
            "decode": encoder + decoder + nine,
        },
        settings.sample.steps * guided * forward + decode,
    )
    needs = {"finetune": train, "generate": sample}
    if settings.depth == "model":
        side = depth.short_side / depth.patch_size
        per_frame = side**2 * max(settings.height, settings.width) / min(settings.height, settings.width)
        backbone = depth.depth * 12 * depth.width**2
        needs["depth"] = Needs(
            {"depth": backbone * 4 * 1.4 + 4 * per_frame * depth.patch_size**2 * depth.fusion_width * 4 * 2},
            settings.num_frames * per_frame * (2 * backbone + 4 * depth.depth * per_frame * depth.width) * 2,
        )
    return needs


def _bytes(build: Callable[[], nnx.Module]) -> tuple[int, int]:
    """Bytes of a model's base parameters and of its adapters, from the model itself, without making it."""
    model = checkpoints.abstract(build)
    total, adapters = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model, kind)))
        for kind in (nnx.Param, nnx.LoRAParam)
    )
    return total - adapters, adapters


@functools.cache
def transformer_bytes(config: TransformerConfig) -> tuple[int, int]:
    """Bytes of a transformer's base and of its adapters."""
    return _bytes(lambda: Transformer(config, rngs=nnx.Rngs(0)))


@functools.cache
def vae_bytes(config: VAEConfig) -> tuple[int, int]:
    """Bytes of an autoencoder's encoder and of its decoder."""
    model = checkpoints.abstract(lambda: VAE(config, rngs=nnx.Rngs(0)))
    encoder, decoder = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(part, nnx.Param)))
        for part in (model.encoder, model.decoder)
    )
    return encoder, decoder


@functools.cache
def text_encoder_bytes(config: T5Config) -> int:
    """Bytes of a text encoder."""
    return _bytes(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))[0]


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


def _config(settings: Settings, part: str, config_class: type, published: Any) -> Any:
    """The config beside the weights; the published one while there are none."""
    try:
        return checkpoints.load_config(weights.folder(settings, part), config_class)
    except InputError:
        return published


def _rate() -> float:
    """FLOP/s to expect of one device."""
    kind = measure.devices()["kind"]
    if jax.default_backend() == "cpu":
        return _CPU_RATE * (os.cpu_count() or 1)
    return next((rate for name, rate in _RATES.items() if name in kind), 1e14)


def _missing_weights(settings: Settings) -> list[str]:
    missing = []
    for part in weights.needed(settings):
        try:
            weights.check(settings, [part])
        except InputError as error:
            missing.append(str(error))
    return missing
