"""Multi-view motion learning (method, stage 2): adapters learn the scene's motion from the video and its warps."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax import chosen_models, learning, mesh
from reangle_jax.arrays import to_unit
from reangle_jax.backbones.interface import Backbone
from reangle_jax.config import Finetune, Settings
from reangle_jax.data import files
from reangle_jax.diffusion.losses import masked_loss
from reangle_jax.errors import NotFiniteError, wider
from reangle_jax.geometry import cameras, masks
from reangle_jax.progress import progress
from reangle_jax.randomness import named_key
from reangle_jax.run import Stage, Unit, Work, view_file, view_paths
from reangle_jax.scoring import motion

# The noise on the conditioning frame: sigma = exp(N(mean, deviation)).
LOG_SIGMA_MEAN, LOG_SIGMA_DEVIATION = -3.0, 0.5
_GEOMETRY = ("input/depth.npz", "input/cameras.json")
LOSSES, LEARNING = "lora/losses.json", "lora/learning.json"
# The options that the adapters depend on: not how often a state is saved.
DECISIVE = tuple(field.name for field in dataclasses.fields(Finetune) if field.name != "checkpoint_every")

_log = logging.getLogger(__name__)


class TrainingSet(NamedTuple):
    """Everything constant, encoded once: the input video first, then its warps."""

    mean: Float[Array, "N t h w C"]  # of the posterior of every video's latents, unscaled [N, t, h, w, C]
    logvar: Float[Array, "N t h w C"]  # its log variance
    # How much a latent counts [N, t, h, w]: 1 where it is to be learnt, else 0, without ``moving_weight``.
    mask: Float[Array, "N t h w"]
    text: Float[Array, "N L D"]  # embeddings of the prompts [N, L, D]
    first: Array  # first frames in bytes [N, H, W, 3]; they are noised and encoded at every step


def units(settings: Settings) -> tuple[Unit, ...]:
    """One: the adapters."""
    warps = tuple(view_file(view, "warp.npz") for view in settings.train_views)
    if settings.finetune.moving_weight:
        warps += (*_GEOMETRY, *(view_file(view, "cameras.json") for view in settings.train_views))
    return (
        Unit(
            settings=(
                *("caption", "mode", "train_views", "vae_tiles", "model", "base_dtype", "seed"),
                *view_paths.prompt_keys(settings),
                *(f"finetune.{key}" for key in DECISIVE),
            ),
            inputs=("input/frames.npz", *warps, *view_paths.prompt_inputs(settings, settings.train_views)),
            outputs=("lora",),
            unjudged=(LOSSES, LEARNING),
            weights=chosen_models.of_model(settings),
        ),
    )


def finetune(settings: Settings, folder: Path, work: Work) -> None:
    """Writes lora/: the adapters for this library and for diffusers, and the losses."""
    weighed = settings.finetune.steps and settings.finetune.moving_weight
    marks = _marks(settings, folder) if weighed else None  # before there is a mesh: each process draws alone
    with chosen_models.on_mesh(settings, "finetune"):
        for unit in work:
            _finetune(settings, folder, work, unit, marks)


def _marks(settings: Settings, folder: Path) -> list[np.ndarray]:
    """Where something moves in each training video, bool [T, H, W]."""
    frames, z = files.load_npz(folder / "input/frames.npz")["frames"], files.load_npz(folder / _GEOMETRY[0])["depth"]
    source, *targets = (
        cameras.load_cameras(folder / path)[0]
        for path in (_GEOMETRY[1], *(view_file(view, "cameras.json") for view in settings.train_views))
    )
    found = []
    for number, target in enumerate((source, *targets)):
        video, visible = _read(settings, folder, number)
        frozen, seen = motion.frozen_warp(frames, z, source, target)
        found.append(motion.moving(video, frozen, visible & seen))
    return found


def _read(settings: Settings, folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A training video and where it is visible: the input, then its warps."""
    if number == 0:
        source = files.load_npz(folder / "input/frames.npz")["frames"]
        return source, np.ones(source.shape[:3], bool)
    warp = files.load_npz(folder / view_file(settings.train_views[number - 1], "warp.npz"))
    return warp["frames"], warp["visible"]


def _finetune(settings: Settings, folder: Path, work: Work, unit: Unit, marks: list[np.ndarray] | None) -> None:
    backbone, options = chosen_models.backbone(settings), settings.finetune
    adapters = backbone.init_adapters(key=named_key(settings.seed, "finetune", "init"))
    history: learning.History = {"loss": []}
    # Without steps there is nothing to encode: config.loras may act alone.
    learn = _prepared(settings, folder, backbone, work, unit, adapters, marks) if options.steps else None
    # A signal in the last step waits until what was learnt is on the disk.
    with work.stop.at_safe_points() as stop:
        if learn:
            state, history = learn(stop=stop)
            adapters = state.parameters
        with files.atomic_folder(folder / "lora") as made:
            backbone.save_adapters(made, adapters)
            files.atomic_write_json(made / Path(LOSSES).name, history["loss"])
            rates = list(map(rate_at(options), range(len(history["loss"]))))
            files.atomic_write_json(made / Path(LEARNING).name, {**history, "learning_rate": rates})
        work.finish(unit)


def _prepared(
    settings: Settings,
    folder: Path,
    backbone: Backbone,
    work: Work,
    unit: Unit,
    adapters: nnx.State,
    marks: list[np.ndarray] | None,
) -> Callable[..., tuple[learning.State, learning.History]]:
    """`learning.train` with everything but the stop. Each network is loaded when it is needed and dropped after."""
    options, origin = settings.finetune, work.origin(unit)
    data = _training_set(settings, folder, backbone, work.scratch(unit), marks)
    seen = 100 * float((data.mask > 0).mean())
    _log.info("training on %d videos, %.0f %% of their latents to learn from", len(data.mean), seen)
    coder, base = backbone.load_coder(decodes=False), backbone.load_denoiser()
    optimiser, rate, every = make_optimiser(options), rate_at(options), options.checkpoint_every
    key, data = named_key(settings.seed, "finetune", "steps"), mesh.replicate(data)
    return functools.partial(
        learning.train,
        make_step(backbone, options, optimiser),
        learning.init(adapters, optimiser),
        lambda number: (base, coder, data, jax.random.fold_in(key, number)),
        name="finetune",
        steps=options.steps,
        over=lambda done, history: done >= options.steps,
        checkpoints=origin and origin / "steps",
        seen=work.seen,
        due=lambda done: bool(every) and done % every == 0 and done < options.steps,
        log=functools.partial(learning.events, folder / "logs/finetune", "finetune", rate),
        rate=rate,
        mend=functools.partial(_mend, options, backbone.dtype),
    )


def _mend(options: Finetune, dtype: str, number: int) -> str:
    if number == 0:
        return (
            f"the weights or the input hold values that are not finite, or too large for {dtype}: {wider(dtype)}"
            "convert the weights again, or give another video"
        )
    return (
        f"{wider(dtype)}lower config.finetune.learning_rate={options.learning_rate:g}, or convert the weights again; "
        "the state before it is kept"
    )


def prompts(settings: Settings, folder: Path) -> list[str]:
    """The prompt of each training video: the input's bare caption, then each warp's with its motion before it."""
    return [settings.caption] + [view_paths.prompt(settings, folder, view) for view in settings.train_views]


def _training_set(
    settings: Settings, folder: Path, backbone: Backbone, scratch: Path, marks: list[np.ndarray] | None
) -> TrainingSet:
    cached = scratch / "encoded.npz"
    if cached.exists():
        return TrainingSet(**{name: jnp.asarray(value) for name, value in files.load_npz(cached).items()})
    text = backbone.embed(prompts(settings, folder))

    options = settings.finetune

    def read(number: int) -> tuple[np.ndarray, ...]:
        frames, visible = _read(settings, folder, number)
        counts = visible if options.masked else np.ones_like(visible)
        return (frames, counts) if marks is None else (frames, counts, marks[number])

    count = 1 + len(settings.train_views)
    data = encode_videos(backbone, backbone.load_coder(decodes=False), read, count, options.moving_weight)
    data = data._replace(text=jnp.asarray(text))
    if not all(np.isfinite(value).all() for value in mesh.on_host((data.mean, data.logvar, text))):
        raise NotFiniteError(
            "finetune: the videos' latents or the prompts' embeddings are not finite: "
            f"{wider(backbone.dtype)}convert the autoencoder's and the text encoder's weights again"
        )
    files.atomic_savez(cached, **mesh.on_host(data._asdict()))
    return data


def encode_videos(
    backbone: Backbone,
    coder: Any,
    read: Callable[[int], tuple[np.ndarray, ...]],
    count: int,
    moving_weight: float = 0.0,
) -> TrainingSet:
    """Encodes so many videos, as many at a time as there is room for, and their masks; the text is left empty.

    Of several processes each reads the videos that its own devices encode, and no others. ``read`` gives a video's
    frames, uint8 [T, H, W, 3], where they are visible, bool [T, H, W], and, if that is to be weighted, where something
    moves in them, likewise.
    """

    @jax.jit
    def encode(coder: Any, video: Array, visible: Array, *moving: Array) -> tuple[Array, ...]:
        mean, logvar = (x.astype(jnp.float32) for x in backbone.encode(coder, video))
        rows, columns = mean.shape[2:4]
        mask = jax.vmap(lambda seen: masks.latent_mask(seen, rows, columns, backbone.grid.frames))(visible)
        for marks in moving:
            share = jax.vmap(lambda marked: masks.latent_share(marked, rows, columns, backbone.grid.frames))(marks)
            mask = mask * (1.0 + moving_weight * share)
        return mean, logvar, mask, video[:, 0]

    at_once, found = mesh.room(), []
    with progress(count, "finetune: encode", unit="video") as bar:
        for start in range(0, count, at_once):
            group = range(start, min(start + at_once, count))
            rows = mesh.from_own_rows(read, mesh.filled(group, at_once))
            found.append(mesh.on_host(encode(coder, *rows)))
            bar.update(len(group))
    mean, logvar, mask, first = (jnp.asarray(np.concatenate(parts)[:count]) for parts in zip(*found, strict=True))
    return TrainingSet(mean, logvar, mask, jnp.zeros((count, 0, 0)), first)


def make_optimiser(options: Finetune) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm."""
    b1, b2 = options.betas
    return optax.chain(
        optax.clip_by_global_norm(options.max_grad_norm),
        optax.adamw(learning_rate(options), b1=b1, b2=b2, weight_decay=options.weight_decay),
    )


def learning_rate(options: Finetune) -> float | optax.Schedule:
    """The rate: constant, as the paper's, or a function of the step that ends at zero."""
    if options.decay == 0:
        return options.learning_rate
    falling = max(1, round(options.decay * options.steps))
    constant = optax.constant_schedule(options.learning_rate)
    return optax.join_schedules(
        [constant, optax.cosine_decay_schedule(options.learning_rate, falling)], [options.steps - falling]
    )


def rate_at(options: Finetune) -> Callable[[int], float]:
    """The rate of the step with a number, as a number."""
    schedule = learning_rate(options)
    return lambda number: np.asarray(schedule(number)).item() if callable(schedule) else schedule


def motion_loss(
    backbone: Backbone, adapters: Any, base: Any, coder: Any, data: TrainingSet, options: Finetune, *, key: Array
) -> Float[Array, ""]:
    """The masked loss of the adapters on videos drawn from the set, with the denoiser's frozen parameters, ``base``.

    The autoencoder encodes the noised first frames. The key is of the draw, the times and every noise.
    """
    keys = iter(jax.random.split(key, 8))
    batch = options.batch_size
    pick = jax.random.randint(next(keys), (batch,), 0, data.mean.shape[0])
    z, first = mesh.split_batch((backbone.draw(data.mean[pick], data.logvar[pick], key=next(keys)), data.first[pick]))
    image = to_unit(first)
    noise_key, sigma_key = next(keys), next(keys)
    if options.noise_first_frame:
        log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_DEVIATION * jax.random.normal(sigma_key, (batch, 1, 1, 1))
        image = image + jnp.exp(log_sigma) * jax.random.normal(noise_key, image.shape)
    # Copies of the first latent fill up the clip at its front where the model needs them, as sampling does.
    z, mask = (jnp.concatenate([x[:, :1]] * backbone.front + [x], axis=1) for x in (z, data.mask[pick]))
    condition = backbone.condition(coder, image, key=next(keys))
    kept = jax.random.bernoulli(next(keys), 1.0 - options.condition_dropout, (batch, 1, 1, 1, 1))
    condition = jax.lax.stop_gradient(jnp.where(kept, condition, jnp.zeros_like(condition)))

    # Of k independent uniform times the latest has a density that grows with its (k - 1)th power.
    t = backbone.times(batch * options.noisiest_of, key=next(keys)).reshape(batch, -1).max(axis=1)
    eps = jax.random.normal(next(keys), z.shape, z.dtype)
    noised, target = backbone.noised(z, eps, t)
    prediction = backbone.predict(adapters, base, noised, condition, data.text[pick], t)
    return masked_loss(prediction, target, mask if options.masked or options.moving_weight else None)


def make_step(
    backbone: Backbone, options: Finetune, optimiser: optax.GradientTransformation
) -> Callable[..., tuple[learning.State, dict[str, Array]]]:
    """The training step ``(state, base, coder, data, key) -> (state, numbers)``; see `learning.make_step`."""

    def loss(adapters: Any, base: Any, coder: Any, data: TrainingSet, key: Array) -> Array:
        return motion_loss(backbone, adapters, base, coder, data, options, key=key)

    return learning.make_step(loss, optimiser)


SMALLER = (
    "finetune.batch_size",
    "finetune.rank",
    "mesh",
    "base_layout",
    "vae_tiles",
    "execution.remat",
    "base_dtype",
    "num_frames",
    "height",
    "width",
)
STAGE = Stage("finetune", version=1, units=units, run=finetune, smaller=SMALLER, together=True)
