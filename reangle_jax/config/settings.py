"""Every setting once: key, type, default, bound and meaning. Errors, ``--help`` and docs/settings.md come from here."""

import dataclasses
from typing import Any

from reangle_jax.backbones import registry
from reangle_jax.config.rules import (
    Rule,
    above,
    at_least,
    between,
    one_listed,
    one_of,
    pair_below,
    window,
    word_or_above,
)
from reangle_jax.nn.choices import IMPLEMENTATIONS, REMATS, Choice
from reangle_jax.painters import registry as painters

# The paper's six motions. Amounts at the last of 49 frames, from the released scripts' rates per frame.
SIX_MOTIONS = ("left:10", "right:10", "up:8", "down:8", "in:0.15", "out:0.15")
# Static mode: the six types at two amounts are trained on, and four of them are made by default.
TWELVE_WARPS = tuple(
    f"{name}:{amount:g}"
    for names, amounts in ((("left", "right", "up", "down"), (4, 8)), (("in", "out"), (0.06, 0.12)))
    for name in names
    for amount in amounts
)
FOUR_VIEWS = ("left:8", "right:8", "up:8", "in:0.12")
AUTO = ("auto",)
VIEWS = {"dynamic": SIX_MOTIONS, "static": FOUR_VIEWS}
TRAIN_VIEWS = {"dynamic": SIX_MOTIONS, "static": TWELVE_WARPS}


def setting(default: Any, meaning: str, rule: Rule | None = None, *, is_path: bool = False) -> Any:
    """A setting: the default (the paper's, where it says) and its meaning for the user, in a line or a few.

    The rule says what is allowed among the values of its type; None if all are, or if more than the value decides.
    ``is_path`` says that it names a file or folder, or may do so beside its words: ``~`` opens the home.
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
    moving_weight: float = setting(
        0.0,
        "how much more a latent counts in the loss for what moves in it: 1 + this times the share of its pixels that "
        "metrics.json calls moving; 0: all count alike",
        between(0, 1000),
    )
    betas: tuple[float, ...] = setting((0.9, 0.95), "AdamW's", pair_below(1))
    weight_decay: float = setting(1e-3, "AdamW's", at_least(0))
    max_grad_norm: float = setting(1.0, "gradients are clipped to this global norm", above(0))
    noisiest_of: int = setting(
        1,
        "times drawn for each video, of which the noisiest is learnt at; 1: the times are uniform. With more it is "
        "learnt in fewer steps what is where, which slightly noised latents show by themselves",
        between(1, 1000),
    )
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
    shared_noise: str = setting(
        "off",
        "the noise that the views' videos begin with: each its own (off), one for all (same), or the input's carried "
        "along by the warp (warped)",
        one_of("off", "same", "warped"),
    )


@dataclasses.dataclass(frozen=True)
class FirstFrames:
    """The views' first frames (Reangle-A-Video, stage 3): painted one after another, so that they agree."""

    model: str = setting("flux.1-dev", "static mode's painter", one_listed(painters.ENTRIES))
    weights: str = setting(
        "",
        "folder of the painter's converted weights and, beside them, of the score's, dust3r/ and featup/; empty: "
        "weights/MODEL (tiny has its own)",
        is_path=True,
    )
    steps: int = setting(50, "painting steps", between(2, 1000))
    guidance_scale: float = setting(3.5, "the painter's own guidance", at_least(0))
    control_scale: float = setting(0.9, "how strongly the ControlNet holds to the warp", between(0, 2))
    scale: float = setting(1.0, "how much larger than the video the first frame is painted", between(1, 4))
    caption: str = setting("", "what the first frame shows; empty: the edit's caption, or else the video's")
    candidates: int = setting(
        25, "next states among which a step chooses the one that agrees best with the finished views; 1: none",
        between(1, 1000),
    )  # fmt: skip
    fewest: int = setting(
        0, "candidates of the last step that chooses, to which their number falls evenly; 0: it stays", between(0, 1000)
    )
    eta: float = setting(1.0, "strength of the candidates' noise", between(0, 1))
    noise: str = setting(
        "ddim", "its form: ddim keeps the spread of what is painted, constant loses some", one_of("ddim", "constant")
    )
    guided: str = setting("0.25:1.0", "the share of the steps that choose", window())
    every: int = setting(1, "of these, every k-th chooses", between(1, 1000))
    order: tuple[str, ...] = setting(
        AUTO, "the views in the order in which they are painted; auto: the most seen first"
    )
    with_input: bool = setting(
        True, "candidates shall agree with the input's first frame too; false: with the finished views alone"
    )
    reimpose: bool = setting(
        False, "put what is known back into the latents at every step, beside the pixels at the end"
    )
    infill: bool = setting(
        False,
        "fill the holes (Telea) of the warp that the painter is shown: how the small one was trained; false: they are "
        "black, or grey for Fill, as published",
    )
    strength: float = setting(
        1.0,
        "the share of noise that painting begins with, over that filling; 1: noise alone, as published",
        between(0.01, 1),
    )
    given: str = setting(
        "",
        "first frames of your own: a folder of NAME.png (left_8.png), height x width, taken as they are; or one "
        "picture, the input's first frame as you edited it",
        is_path=True,
    )


@dataclasses.dataclass(frozen=True)
class Edit:
    """An edit of the input's first frame before anything is generated (FlowEdit, arXiv 2412.08629)."""

    caption: str = setting("", "what the edited first frame shall show; empty: no edit")
    source_caption: str = setting("", "what the input's first frame shows; empty: the video's caption")
    steps: int = setting(28, "steps", between(2, 1000))
    skip: int = setting(4, "first steps left out: the fewer, the larger the change", at_least(0))
    guidance_scale: float = setting(5.5, "guidance towards the edit's caption", at_least(0))
    source_guidance_scale: float = setting(1.5, "guidance of the source's caption", at_least(0))


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
        "what fine-tuning keeps of each block for its backward pass, computing the rest again: nothing (full), what "
        "attention gave (attention), also what large products gave (matmuls), everything (none); auto: what the device "
        "has memory for, by --plan's arithmetic; on CPUs not everything, which is slower there",
        one_of("auto", *REMATS),
    )
    dtype: str = setting(
        "auto",
        "what the networks compute in; auto: each in what its weights are stored in",
        one_of("auto", "float32", "bfloat16"),
    )


MODEL = "cogvideox-5b-i2v"  # the video model unless another is set
_GRID = registry.ENTRIES[MODEL].grid


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run's settings, checked by `reangle_jax.config.parse`."""

    video: str = setting("", "a video file that FFmpeg reads, or a folder of frames; must be given", is_path=True)
    caption: str = setting("", "what the video shows; may be empty")
    start: int = setting(0, "first frame, in frames of the source", at_least(0))
    num_frames: int = setting(49, f"frames taken: 1 + {_GRID.frames}k for {MODEL}")
    height: int = setting(
        480, f"in pixels, a multiple of {_GRID.multiple} for {MODEL}; the video is resized to cover and centre-cropped"
    )
    width: int = setting(720, "likewise")
    fps: float = setting(0.0, "resample to this rate; 0 keeps the source's", between(0, 1000))
    depth: str = setting(
        "model", "model, or a .npy or .npz file of T, H, W: of the frames taken, or of the whole clip", is_path=True
    )
    depth_kind: str = setting(
        "inverse", "what a depth file holds: inverse (any scale and shift) or metric (z)", one_of("inverse", "metric")
    )
    depth_mirrored: bool = setting(
        False, "depth=model: the mean of each frame's depth and its mirror image's, in twice the time"
    )
    focal: str | float = setting("auto", "focal length in pixels of height x width", word_or_above(0, "auto"))
    pivot_depth: str | float = setting(
        "auto", "depth of the point that the cameras turn about; auto: the subject's", word_or_above(0, "auto")
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
        "without these, the source's first camera (given)",
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
        "dynamic",
        "dynamic: the camera starts where the input's stands and travels; static: it stands elsewhere",
        one_of("dynamic", "static"),
    )
    views: tuple[str, ...] = setting(
        AUTO,
        "what is generated: left:10 or up:8+in:0.1, reached at the last frame (dynamic) or held (static), or camera "
        "files; auto: "
        f"{','.join(SIX_MOTIONS)} or, static, {','.join(FOUR_VIEWS)}",
        is_path=True,
    )
    train_views: tuple[str, ...] = setting(
        AUTO,
        "the warps that are trained on beside the input, which need not hold the views; auto: the same six or, static, "
        f"twelve, {','.join(TWELVE_WARPS)}",
        is_path=True,
    )
    prompts: tuple[str, ...] = setting(
        (), "VIEW=PROMPT: what the model is told of a view, in place of its motion's words and the caption"
    )
    model: str = setting(MODEL, "the video model", one_listed(registry.ENTRIES))
    weights: str = setting(
        "",
        "folder of converted weights, with transformer/ vae/ text_encoder/; empty: weights/MODEL (tiny has its own)",
        is_path=True,
    )
    base_dtype: str = setting(
        "auto",
        "how the frozen weights of what predicts (the video model's transformer, the painter's and its ControlNet) are "
        "kept: bfloat16; int8, the blocks' products in int8 with a scale a channel, half of bfloat16's memory; auto: "
        "as the weights are stored",
        one_of("auto", "bfloat16", "int8"),
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
    first_frames: FirstFrames = FirstFrames()
    edit: Edit = Edit()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    execution: Execution = Execution()
    mesh: str = setting(
        "auto",
        "axis sizes, data:2,r:1,u:4: data divides the batch, r times u each video and the parameters (u exchanges "
        "heads for tokens, r gathers keys and values); auto: the videos of a batch over as many devices as take equal "
        "shares, each video over those left; on CPUs one device",
    )
    base_layout: str = setting(
        "auto",
        "where the transformer's frozen weights lie on the devices of r and u: replicated, or divided and gathered "
        "block by block, in less memory; auto: replicated where they take at most 0.4 of a device's memory",
        one_of("auto", "replicated", "divided"),
    )
    compilation_cache: str = setting(
        "auto",
        "where compiled programs are kept for the next start: a folder, or off; auto: JAX_COMPILATION_CACHE_DIR, or "
        "else reangle_jax/ in the user's cache folder (XDG_CACHE_HOME, ~/.cache)",
        is_path=True,
    )
    seed: int = setting(0, "everything random comes from it", between(0, 2**32 - 1))
