"""Every setting once: key, type, default, bound and meaning. Errors, ``--help`` and docs/settings.md come from here."""

import dataclasses
from typing import Any

from reangle_jax.backbones import registry
from reangle_jax.config.rules import (
    Rule,
    above,
    at_least,
    auto_or_above,
    between,
    one_listed,
    one_of,
    pair_below,
    word_or_above,
)
from reangle_jax.nn.choices import IMPLEMENTATIONS, Choice

# The paper's six motions. Amounts at the last of 49 frames, from the released scripts' rates per frame.
SIX_MOTIONS = ("left:10", "right:10", "up:8", "down:8", "in:0.15", "out:0.15")


def setting(default: Any, meaning: str, rule: Rule | None = None, *, is_path: bool = False) -> Any:
    """A setting.

    Args:
        default: the paper's, where it says.
        meaning: for the user, in a line or a few.
        rule: what is allowed among the values of its type; None if all are, or if more than the value decides.
        is_path: it names a file or folder, or may do so beside its words: ``~`` opens the home.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "rule": rule, "is_path": is_path})


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Multi-view motion learning (Reangle-A-Video, stage 2)."""

    steps: int = setting(400, "optimiser steps; 0 learns nothing", at_least(0))
    rank: int = setting(128, "the LoRA's rank", at_least(1))
    alpha: float = setting(
        128.0,
        "the LoRA's scale is alpha / rank",
        above(0, ", or the adapters act on nothing; finetune.steps=0 turns fine-tuning off"),
    )
    learning_rate: float = setting(1e-4, "AdamW's", between(0, 1))
    decay: float = setting(
        0.0, "share of the steps, the last ones, over which the rate falls to 0 along a cosine", between(0, 1)
    )
    batch_size: int = setting(1, "videos drawn per step", at_least(1))
    masked: bool = setting(True, "leave what the warps do not show out of the loss; false: the plain loss everywhere")
    betas: tuple[float, ...] = setting((0.9, 0.95), "AdamW's", pair_below(1))
    weight_decay: float = setting(1e-3, "AdamW's", at_least(0))
    max_grad_norm: float = setting(1.0, "gradients are clipped to this global norm", above(0))
    condition_dropout: float = setting(0.05, "how often the whole image condition is zeroed", between(0, 1))
    noise_first_frame: bool = setting(True, "add noise to the first frame before it is encoded as the condition")
    checkpoint_every: int = setting(50, "steps between two saved states; 0 saves none", at_least(0))


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sampling (Reangle-A-Video, stage 4)."""

    steps: int = setting(40, "denoising steps", between(1, 1000))
    guidance_scale: float = setting(6.0, "classifier-free guidance; 1 and less is none", at_least(0))
    dynamic_guidance: bool = setting(True, "the guidance follows a cosine over the steps")
    sampler: str = setting("ddim", "deterministic, or DPM-Solver++ with noise", one_of("ddim", "dpm"))


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluation."""

    untuned: bool = setting(False, "also generate with the model as it is without fine-tuning and LoRAs, to compare")


@dataclasses.dataclass(frozen=True)
class Execution(Choice):
    """How the video model is computed. Results differ by rounding at most: nothing finished is redone for it."""

    attention: str = setting(
        "auto",
        "the transformer's: cudnn (NVIDIA) and splash (TPUs) are fused, for 16 bits; mapped takes one head at a time, "
        "xla and plain all at once; auto: the device's kernel where the type allows it, else mapped",
        one_of("auto", *IMPLEMENTATIONS),
    )
    remat: str = setting(
        "auto",
        "compute each block again in the backward pass, but for its attention: on, a seventh of the memory; auto: on",
        one_of("on", "off", "auto"),
    )
    dtype: str = setting(
        "auto",
        "what the networks compute in; auto: each in what its weights are stored in",
        one_of("auto", "float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run's settings, checked by `reangle_jax.config.parse`."""

    video: str = setting("", "a video file that FFmpeg reads, or a folder of frames; must be given", is_path=True)
    caption: str = setting("", "what the video shows; may be empty")
    start: int = setting(0, "first frame, in frames of the source", at_least(0))
    num_frames: int = setting(49, "frames taken: 1 + 4k for CogVideoX")
    height: int = setting(
        480, "in pixels, a multiple of 16 for CogVideoX; the video is resized to cover and centre-cropped"
    )
    width: int = setting(720, "likewise")
    fps: float = setting(0.0, "resample to this rate; 0 keeps the source's", between(0, 1000))
    depth: str = setting(
        "model", "model, or a .npy or .npz file of T, H, W: of the frames taken, or of the whole clip", is_path=True
    )
    depth_kind: str = setting(
        "inverse", "what a depth file holds: inverse (any scale and shift) or metric (z)", one_of("inverse", "metric")
    )
    focal: str | float = setting("auto", "focal length in pixels of height x width", auto_or_above(0))
    pivot_depth: str | float = setting(
        "auto", "depth of the point that the cameras turn about; auto: the subject's", auto_or_above(0)
    )
    source_cameras: str = setting(
        "",
        "the cameras that filmed the video, of the frames taken or of the whole clip: a camera file (docs/cameras.md); "
        "empty: the camera stands still",
        is_path=True,
    )
    camera_frame: str = setting(
        "first",
        "a camera file's first camera is the source's first (first), or its world is that of source_cameras or, "
        "without "
        "these, the source's first camera (given)",
        one_of("first", "given"),
    )
    camera_scale: str | float = setting(
        "scene",
        "what one unit of camera files is: one of the scene's depth, the pivot's distance, or a number of the scene's",
        word_or_above(0, "scene", "pivot"),
    )
    camera_resample: bool = setting(False, "bring another number of cameras in a file to the video's")
    infill: bool = setting(False, "fill the warps' holes (Telea); the mask still leaves them out of the loss")
    mode: str = setting(
        "dynamic", "the camera travels, or holds another place (static: not yet)", one_of("dynamic", "static")
    )
    views: tuple[str, ...] = setting(
        SIX_MOTIONS,
        "what is generated: motions, left:10 or up:8+in:0.1, which are reached at the last frame, or camera files",
        is_path=True,
    )
    train_views: tuple[str, ...] = setting(SIX_MOTIONS, "the warps that are trained on beside the input", is_path=True)
    prompts: tuple[str, ...] = setting(
        (), "VIEW=PROMPT: what the model is told of a view, in place of its motion's words and the caption"
    )
    model: str = setting("cogvideox-5b-i2v", "the video model", one_listed(registry.names))
    weights: str = setting(
        "",
        "folder of converted weights, with transformer/ vae/ text_encoder/; empty: weights/MODEL (tiny has its own)",
        is_path=True,
    )
    depth_weights: str = setting(
        "", "folder of converted Depth Anything weights, or tiny; empty: depth/ in the folder above", is_path=True
    )
    loras: tuple[str, ...] = setting(
        (),
        "LoRAs active when sampling, each FILE or FILE:WEIGHT (any common layout, or a run's lora/). They add to what "
        "finetune learns, which does not see them; with finetune.steps=0 they act alone",
        is_path=True,
    )
    vae_tiles: str = setting(
        "auto",
        "code frames in overlapping tiles: less memory, slightly other values; auto: above 480x720 pixels",
        one_of("on", "off", "auto"),
    )
    finetune: Finetune = Finetune()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    execution: Execution = Execution()
    mesh: str = setting(
        "auto",
        "axis sizes, data:2,r:1,u:4: data divides the batch, r times u the parameters; auto: the videos of a batch "
        "over as many devices as take equal shares, on CPUs one",
    )
    compilation_cache: str = setting(
        "auto",
        "where compiled programs are kept for the next start: a folder, or off; auto: JAX_COMPILATION_CACHE_DIR, or "
        "else reangle_jax/ in the user's cache folder (XDG_CACHE_HOME, ~/.cache)",
        is_path=True,
    )
    seed: int = setting(0, "everything random comes from it", between(0, 2**32 - 1))
