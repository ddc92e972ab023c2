"""Settings: their defaults, their types, and the one place where unknown or impossible values are refused.

``get_default()`` is the ConfigDict that a file in configs/ starts from; ``parse()`` makes the frozen ``Settings``
that everything else reads.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from reangle_jax.data.paths import user_path
from reangle_jax.errors import InputError

MODELS = ("tiny", "cogvideox-5b-i2v", "cogvideox1.5-5b-i2v")
# What a LoRA's file is called in a run's lora/, in diffusers' folder, in PEFT's, and below a run.
LORA_NAMES = (
    "lora.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "lora/lora.safetensors",
)
LORA_CONFIG = "adapter_config.json"  # PEFT's, beside a file that does not state its alpha
# Settings that name files or folders, or may do so beside their words.
PATHS = ("video", "depth", "views", "train_views", "weights", "depth_weights", "loras", "compilation_cache")
SPATIAL_MULTIPLE = 16  # the VAE's 8 times the transformer's 2 x 2 patch
# The paper's six motions. Amounts at the last of 49 frames, from the released scripts' rates per frame.
SIX_MOTIONS = ("left:10", "right:10", "up:8", "down:8", "in:0.15", "out:0.15")


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Multi-view motion learning (method, stage 2).

    Attributes:
        steps: optimiser steps.
        rank: LoRA's rank.
        alpha: LoRA's scale is alpha / rank.
        learning_rate: AdamW's.
        decay: fraction of the steps, the last ones, over which the rate falls to zero along a cosine; 0: constant.
        batch_size: videos drawn per step.
        masked: False gives the plain loss over all pixels.
        betas: AdamW's.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this global norm.
        condition_dropout: probability of zeroing the whole image condition.
        noise_first_frame: add noise to the first frame before it is encoded as the condition.
        checkpoint_every: steps between two saved states; 0 saves none.
    """

    steps: int
    rank: int
    alpha: float
    learning_rate: float
    decay: float
    batch_size: int
    masked: bool
    betas: tuple[float, ...]
    weight_decay: float
    max_grad_norm: float
    condition_dropout: float
    noise_first_frame: bool
    checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sampling (method, stage 4).

    Attributes:
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 is none.
        dynamic_guidance: the guidance follows a cosine over the steps.
        sampler: ``ddim`` or ``dpm``.
    """

    steps: int
    guidance_scale: float
    dynamic_guidance: bool
    sampler: str


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluation.

    Attributes:
        untuned: also generate with the untuned model, to compare.
    """

    untuned: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run's settings, checked. See docs of each key in `get_default`."""

    video: str
    caption: str
    start: int
    num_frames: int
    height: int
    width: int
    fps: float
    depth: str
    depth_kind: str
    focal: str | float
    pivot_depth: str | float
    infill: bool
    mode: str
    views: tuple[str, ...]
    train_views: tuple[str, ...]
    model: str
    weights: str
    depth_weights: str
    loras: tuple[str, ...]
    vae_tiles: str
    finetune: Finetune
    sample: Sample
    evaluate: Evaluate
    mesh: str
    compilation_cache: str
    seed: int


def get_default() -> ml_collections.ConfigDict:
    """The defaults: the paper's, where it says. A config in configs/ changes what it needs; `video` must be given."""
    c = ml_collections.ConfigDict()
    c.video = ""  # a video file that FFmpeg reads, or a folder of frames
    c.caption = ""  # what the video shows; may be empty
    c.start = 0  # first frame, in frames of the source
    c.num_frames = 49  # 1 + 4k
    c.height = 480  # multiples of 16; the video is resized to cover and centre-cropped
    c.width = 720
    c.fps = 0.0  # resample to this rate; 0 keeps the source's
    c.depth = "model"  # or a .npy / .npz of T, H, W
    c.depth_kind = "inverse"  # what a depth file holds: inverse (any scale and shift) or metric (z)
    c.focal = "auto"  # in pixels of height x width
    c.pivot_depth = "auto"  # depth of the point that the cameras turn about; auto: the subject's
    c.infill = False  # fill the warps' holes (Telea); the mask still leaves them out of the loss
    c.mode = "dynamic"  # or static (not yet)
    c.views = SIX_MOTIONS
    c.train_views = SIX_MOTIONS
    c.model = "cogvideox-5b-i2v"  # or tiny, cogvideox1.5-5b-i2v
    c.weights = (
        ""  # folder of converted weights, with transformer/ vae/ text_encoder/; empty: weights/MODEL (tiny has its own)
    )
    c.depth_weights = ""  # folder of converted Depth Anything weights, or tiny; empty: depth/ in the folder above
    # LoRAs active when sampling, each a "FILE" or "FILE:WEIGHT" (diffusers' safetensors, or a run's lora/). They add to
    # what finetune learns, which does not see them; with finetune.steps=0 they act alone. evaluate.untuned has none.
    c.loras = ()
    # Code frames in overlapping tiles: less memory, slightly other values. on, off, or auto: above 480x720 pixels.
    c.vae_tiles = "auto"
    c.finetune = ml_collections.ConfigDict()
    c.finetune.steps = 400
    c.finetune.rank = 128
    c.finetune.alpha = 128.0
    c.finetune.learning_rate = 1e-4
    c.finetune.decay = 0.0
    c.finetune.batch_size = 1
    c.finetune.masked = True
    c.finetune.betas = (0.9, 0.95)
    c.finetune.weight_decay = 1e-3
    c.finetune.max_grad_norm = 1.0
    c.finetune.condition_dropout = 0.05
    c.finetune.noise_first_frame = True
    c.finetune.checkpoint_every = 50
    c.sample = ml_collections.ConfigDict()
    c.sample.steps = 40
    c.sample.guidance_scale = 6.0
    c.sample.dynamic_guidance = True
    c.sample.sampler = "ddim"
    c.evaluate = ml_collections.ConfigDict()
    c.evaluate.untuned = False
    # Axis sizes, "data:2,r:1,u:4": data divides the batch, r times u the parameters. auto: the videos of a batch over
    # as many devices as take equal shares; on CPUs one.
    c.mesh = "auto"
    # Where compiled programs are kept for the next start: a folder, or off; auto: JAX_COMPILATION_CACHE_DIR, or else
    # reangle_jax/ in the user's cache folder (XDG_CACHE_HOME, ~/.cache).
    c.compilation_cache = "auto"
    c.seed = 0  # everything random comes from it
    return c


def get_tiny() -> ml_collections.ConfigDict:
    """The defaults for the small family: its native size, and schedules for two CPU cores."""
    c = get_default()
    c.model = "tiny"
    c.num_frames, c.height, c.width = 17, 128, 192  # what its position table was made for
    c.update_from_flattened_dict(
        {
            # A small transformer needs a higher rate and more steps for its rank than the full one; a rate that falls
            # to zero brings it further in as many.
            "finetune.steps": 1000,
            "finetune.rank": 64,
            "finetune.alpha": 64.0,
            "finetune.learning_rate": 3e-3,
            "finetune.decay": 1.0,
            "sample.steps": 20,
            # Black holes beside visible latents would darken the outputs' edges.
            "infill": True,
            # Guidance away from the barely trained text encoder's empty prompt does harm.
            "sample.guidance_scale": 1.0,
            "sample.dynamic_guidance": False,
        }
    )
    return c


def parse(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Settings:
    """Checks a ConfigDict (or nested dict) and gives typed settings.

    Values are converted only where nothing is lost: an int for a float, a float that is whole for an int, a list for a
    tuple, ``"260"`` for a number where a word is also allowed.

    Raises:
        InputError: an unknown or missing key, a wrong type, an impossible value; it names ``config.KEY``, what it got,
            and what is allowed.
    """
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    settings = _build(Settings, values, "config")
    _check_clip(settings)
    _check_cameras(settings)
    _check_model_choice(settings)
    _check_training(settings)
    return settings


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key to plain JSON value, for run.json and fingerprints."""
    flat: dict[str, Any] = {}

    def visit(value: Any, prefix: str) -> None:
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                visit(inner, f"{prefix}{field.name}.")
            else:
                flat[prefix + field.name] = list(inner) if isinstance(inner, tuple) else inner

    visit(settings, "")
    return flat


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            mend = f"did you mean {prefix}.{close[0]}?" if close else f"there are {', '.join(fields)}"
            raise InputError(f"{prefix}.{key} is not a setting: {mend}")
    result = {}
    for key, field in fields.items():
        name = f"{prefix}.{key}"
        if key not in values:
            raise InputError(f"{name} is missing: start the config from reangle_jax.config.get_default()")
        value = values[key]
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is a group of settings, not {value!r}: set its keys one by one")
            assert isinstance(field.type, type)
            result[key] = _build(field.type, value, name)
        else:
            result[key] = _convert(value, field.type, name)
    return cls(**result)


def _convert(value: Any, kind: Any, name: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and is_number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is float and is_number and math.isfinite(value):
        return float(value)
    if kind is str and isinstance(value, str):
        return user_path(value, name) if name.removeprefix("config.") in PATHS else value
    if kind == (str | float):
        if is_number and math.isfinite(value):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
    if kind == tuple[str, ...] and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(_convert(v.strip(), str, name) for v in value)
    if kind == tuple[float, ...] and isinstance(value, list | tuple):
        return tuple(_convert(v, float, name) for v in value)
    words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a string"}
    words |= {tuple[str, ...]: "a tuple of strings, ('left:10', 'up:8')", tuple[float, ...]: "a tuple of numbers"}
    raise InputError(
        f"{name}={value!r} has the wrong type ({type(value).__name__}): it must be {words.get(kind, kind)}"
    )


def _refuse(key: str, value: Any, allowed: str) -> InputError:
    return InputError(f"config.{key}={value!r} is not possible: {allowed}")


def _check_range(settings: Any, key: str, low: float, high: float = math.inf, *, prefix: str = "") -> None:
    value = getattr(settings, key)
    if not low <= value <= high:
        bound = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise _refuse(prefix + key, value, f"it must be {bound}")


def _check_choice(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise _refuse(key, value, f"it must be one of {', '.join(allowed)}{hint}")


def _check_clip(s: Settings) -> None:
    if not s.video:
        raise InputError("config.video is not set: give a video file or a folder of frames, --config.video=FILE")
    _check_range(s, "start", 0)
    _check_range(s, "fps", 0, 1000)
    _check_range(s, "seed", 0, 2**32 - 1)
    if s.num_frames < 1 or s.num_frames % 4 != 1:
        below = max(1, (s.num_frames - 1) // 4 * 4 + 1)
        raise _refuse("num_frames", s.num_frames, f"it must be 1 + 4k, such as {below} or {below + 4}")
    for key in ("height", "width"):
        value = getattr(s, key)
        if value < SPATIAL_MULTIPLE or value % SPATIAL_MULTIPLE:
            below = max(SPATIAL_MULTIPLE, value // SPATIAL_MULTIPLE * SPATIAL_MULTIPLE)
            raise _refuse(
                key,
                value,
                f"it must be a multiple of {SPATIAL_MULTIPLE}, such as {below} or {below + SPATIAL_MULTIPLE}",
            )


def _check_cameras(s: Settings) -> None:
    _check_choice("depth_kind", s.depth_kind, ("inverse", "metric"))
    if s.depth != "model":
        if Path(s.depth).suffix.lower() not in (".npy", ".npz"):
            raise _refuse("depth", s.depth, "it must be model, or a .npy or .npz file of T,H,W")
        if not Path(s.depth).is_file():
            raise InputError(f"config.depth: no such file: {s.depth}")
    for key in ("focal", "pivot_depth"):
        value = getattr(s, key)
        if value != "auto" and not (isinstance(value, float) and 0 < value < math.inf):
            raise _refuse(key, value, "it must be auto or a number above 0")
    _check_choice("mode", s.mode, ("dynamic", "static"))
    if s.mode == "static":
        raise InputError("config.mode='static' is not available yet: use config.mode=dynamic")
    if not s.views:
        raise InputError("config.views is empty: give at least one, such as left:10")
    for key in ("views", "train_views"):
        _check_views(key, getattr(s, key))


def _check_views(key: str, views: tuple[str, ...]) -> None:
    from reangle_jax.geometry import trajectories  # late: it brings jax

    folders: dict[str, str] = {}
    for view in views:
        if Path(view).suffix.lower() in (".json", ".npz", ".txt") or Path(view).is_dir():
            raise InputError(f"config.{key}: {view!r}: camera files are not available yet: use motions such as left:10")
        try:
            trajectories.parse_view(view)
        except InputError as error:
            raise InputError(f"config.{key}: {str(error).removeprefix('views: ')}") from None
        folder = view_folder(view)
        if folder in folders:
            raise InputError(f"config.{key}: {folders[folder]!r} and {view!r} share the folder {folder}: keep one")
        folders[folder] = view


def view_folder(view: str) -> str:
    """A view's NAME in the run's folder: every character outside A-Z a-z 0-9 becomes ``_``."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in view)


def _check_model_choice(s: Settings) -> None:
    from reangle_jax import mesh  # late: it brings jax

    _check_choice("model", s.model, MODELS)
    _check_choice("vae_tiles", s.vae_tiles, ("on", "off", "auto"))
    mesh.parse(s.mesh)
    for lora in s.loras:
        lora_choice(lora)


def lora_choice(text: str) -> tuple[Path, float]:
    """File and weight of an entry of `config.loras`; the weight is 1 where none is given.

    Raises:
        InputError: there is no such file, or folder with one.
    """
    path, colon, weight = text.rpartition(":")
    try:
        value = float(weight)
        if not colon or not math.isfinite(value):
            raise ValueError
    except ValueError:
        path, value = text, 1.0
    folder = Path(path)
    names = (*(folder / name for name in LORA_NAMES),) if folder.is_dir() else (folder,)
    for file in names:
        if file.is_file():
            return file, value
    what = f"{path} holds no {' or '.join(LORA_NAMES)}" if folder.is_dir() else f"no such file: {path}"
    raise InputError(f"config.loras: {text!r}: {what}; give a LoRA's .safetensors file, or its folder, and :WEIGHT")


def lora_files(text: str) -> list[Path]:
    """What an entry of `config.loras` is read from: the file, and PEFT's description beside it where there is one."""
    file = lora_choice(text)[0]
    return [path for path in (file, file.parent / LORA_CONFIG) if path.is_file()]


def _check_training(s: Settings) -> None:
    f = s.finetune
    for key, low, high in (
        ("steps", 0, math.inf),
        ("rank", 1, math.inf),
        ("learning_rate", 0, 1),
        ("decay", 0, 1),
        ("batch_size", 1, math.inf),
        ("weight_decay", 0, math.inf),
        ("condition_dropout", 0, 1),
        ("checkpoint_every", 0, math.inf),
    ):
        _check_range(f, key, low, high, prefix="finetune.")
    if f.alpha <= 0:
        mend = "it must be above 0, or the adapters act on nothing; finetune.steps=0 turns fine-tuning off"
        raise _refuse("finetune.alpha", f.alpha, mend)
    if f.max_grad_norm <= 0:
        raise _refuse("finetune.max_grad_norm", f.max_grad_norm, "it must be above 0")
    if len(f.betas) != 2 or not all(0 <= beta < 1 for beta in f.betas):
        raise _refuse("finetune.betas", f.betas, "it must be two numbers from 0 to below 1")
    _check_range(s.sample, "steps", 1, 1000, prefix="sample.")
    _check_range(s.sample, "guidance_scale", 0, math.inf, prefix="sample.")
    _check_choice("sample.sampler", s.sample.sampler, ("ddim", "dpm"))
