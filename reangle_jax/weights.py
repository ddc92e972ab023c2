"""Where the converted weights of a run lie, and whether they can be the right ones and whole: no tensor is read.

What the tensors are is checked when they are loaded (`checkpoints.load_into`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reangle_jax.config import Settings
from reangle_jax.data import lora_files
from reangle_jax.data.weights_folder import check_whole, read_config
from reangle_jax.errors import InputError
from reangle_jax.models.text import tokenizers
from reangle_jax.tiny import WEIGHTS as TINY_WEIGHTS

# The parts, and the class of the config.json beside each one's weights.
PARTS = {
    "depth": "DepthAnythingConfig",
    "transformer": "TransformerConfig",
    "vae": "VAEConfig",
    "text_encoder": "T5Config",
}

# What tells the published transformers apart.
_MARKS: dict[str, dict[str, Any]] = {
    "cogvideox-5b-i2v": {"num_layers": 42, "in_channels": 32, "patch_size_t": None, "use_learned": True},
    "cogvideox1.5-5b-i2v": {"num_layers": 42, "in_channels": 32, "patch_size_t": 2, "use_learned": False},
}


def folder(settings: Settings, part: str) -> Path:
    """The folder of a part's converted weights, whether or not it exists; `part` is one of PARTS."""
    if part == "depth" and settings.depth_weights:
        return TINY_WEIGHTS / "depth" if settings.depth_weights == "tiny" else Path(settings.depth_weights)
    if settings.weights:
        return Path(settings.weights) / part
    return (TINY_WEIGHTS if settings.model == "tiny" else Path("weights") / settings.model) / part


def folders(settings: Settings, *parts: str) -> tuple[tuple[str, Path], ...]:
    """Name and folder of each part."""
    return tuple((part, folder(settings, part)) for part in parts)


def needed(settings: Settings, *, preview: bool = False) -> list[str]:
    """The parts that a run needs, or its preview."""
    return [part for part in PARTS if (settings.depth == "model" if part == "depth" else not preview)]


def check(settings: Settings, parts: Iterable[str]) -> None:
    """Refuses weights that are not there, or are plainly others, before any work is done.

    Args:
        settings: the run's.
        parts: which of PARTS the work needs.

    Raises:
        InputError: a folder or its config.json is missing or unreadable, is another kind of model's, or, for the
            transformer, does not fit `settings.model` or the clip's size; its arrays are missing or truncated; the
            tokenizer's file is missing or damaged; a LoRA of `settings.loras` does not fit the transformer.
    """
    for part in parts:
        where = folder(settings, part)
        key = "config.depth_weights" if part == "depth" and settings.depth_weights else "config.weights"
        if key == "config.weights" and not settings.weights and not where.is_dir():
            raise InputError(
                f"{key}: {settings.model} needs its converted weights, and there is no {where}: set {key} to the "
                "folder that `python -m converters` wrote"
            )
        found = read_config(where, key)
        if found.get("class") != PARTS[part]:
            raise InputError(
                f"{key}: {where} holds {found.get('class')}, not {PARTS[part]}: give the weights of {settings.model}"
            )
        if part == "transformer":
            _check_marks(settings, found, where)
            check_model(settings, found)
        check_whole(where, key)
        if part == "text_encoder":
            tokenizers.for_encoder(where, int(found.get("vocab_size") or 0))
        if part == "transformer" and settings.loras:
            _check_loras(settings, where)


def check_model(settings: Settings, transformer: dict[str, Any]) -> None:
    """Refuses a clip that the transformer cannot take.

    Args:
        settings: the run's.
        transformer: fields of a `models.cogvideox.transformer_config.TransformerConfig`.

    Raises:
        InputError: a size other than the learned position table's.
    """
    if not transformer.get("use_learned"):
        return
    native = {
        "num_frames": transformer["sample_frames"],
        "height": transformer["sample_height"] * 8,
        "width": transformer["sample_width"] * 8,
    }
    for key, allowed in native.items():
        got = getattr(settings, key)
        if got != allowed:
            raise InputError(
                f"config.{key}={got}: {settings.model} has learned positions for {native['num_frames']} frames of "
                f"{native['height']}x{native['width']} only: set config.{key}={allowed}"
            )


def _check_marks(settings: Settings, found: dict[str, Any], where: Path) -> None:
    for name, expected in _MARKS.get(settings.model, {}).items():
        if found.get(name) != expected:
            raise InputError(
                f"config.weights: {where} holds another model than {settings.model} ({name} is {found.get(name)}, not "
                f"{expected}): give its weights, or change config.model"
            )


def _check_loras(settings: Settings, transformer: Path) -> None:
    from reangle_jax import checkpoints  # late: they bring jax
    from reangle_jax.backbones.cogvideox import lora
    from reangle_jax.models.cogvideox.transformer_config import TransformerConfig

    config = checkpoints.load_config(transformer, TransformerConfig)
    for text in settings.loras:
        try:
            lora.check(lora_files.choice(text)[0], config)
        except InputError as error:
            raise InputError(f"config.loras: {error}") from None
