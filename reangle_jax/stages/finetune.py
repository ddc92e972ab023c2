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

from reangle_jax import learning, mesh, weights
from reangle_jax.backbones.cogvideox import image_to_video as i2v
from reangle_jax.backbones.cogvideox import lora as lora_file
from reangle_jax.config import Finetune, Settings
from reangle_jax.data import files
from reangle_jax.diffusion.losses import masked_v_loss
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.geometry import masks, trajectories
from reangle_jax.progress import progress
from reangle_jax.randomness import named_key
from reangle_jax.run import Stage, Unit, Work, view_file

SCHEDULE = Schedule.cogvideox_5b()
# The noise on the conditioning frame: sigma = exp(N(mean, deviation)).
LOG_SIGMA_MEAN, LOG_SIGMA_DEVIATION = -3.0, 0.5
# The options that the adapters depend on: not how often a state is saved.
DECISIVE = tuple(field.name for field in dataclasses.fields(Finetune) if field.name != "checkpoint_every")

_log = logging.getLogger(__name__)


class TrainingSet(NamedTuple):
    """Everything constant, encoded once: the input video first, then its warps.

    Attributes:
        mean: of the posterior of every video's latents, unscaled [N, t, h, w, C].
        logvar: its log variance.
        mask: 1 where a latent is to be learnt [N, t, h, w].
        text: embeddings of the prompts [N, L, D].
        first: first frames in bytes [N, H, W, 3]; they are noised and encoded at every step.
    """

    mean: Float[Array, "N t h w C"]
    logvar: Float[Array, "N t h w C"]
    mask: Float[Array, "N t h w"]
    text: Float[Array, "N L D"]
    first: Array


def units(settings: Settings) -> tuple[Unit, ...]:
    """One: the adapters."""
    warps = tuple(view_file(view, "warp.npz") for view in settings.train_views)
    return (
        Unit(
            settings=(
                *("caption", "mode", "train_views", "vae_tiles", "model", "seed"),
                *(f"finetune.{key}" for key in DECISIVE),
            ),
            inputs=("input/frames.npz", *warps),
            outputs=("lora",),
            weights=weights.folders(settings, "transformer", "vae", "text_encoder"),
        ),
    )


def finetune(settings: Settings, folder: Path, work: Work) -> None:
    """Writes lora/: the adapters for this library and for diffusers, and the losses."""
    with mesh.use(mesh.make_mesh(settings.mesh, batch_size=settings.finetune.batch_size)):
        for unit in work:
            _finetune(settings, folder, work, unit)


def _finetune(settings: Settings, folder: Path, work: Work, unit: Unit) -> None:
    options = settings.finetune
    where = weights.folder(settings, "transformer")
    config = i2v.describe_transformer(where, lora_rank=options.rank, lora_alpha=options.alpha).config
    lora = i2v.init_lora(config, key=named_key(settings.seed, "finetune", "init"))
    losses: list[float] = []
    # Without steps there is nothing to encode: config.loras may act alone.
    learn = _prepared(settings, folder, work.scratch(unit), lora) if options.steps else None
    # A signal in the last step waits until what was learnt is on the disk.
    with work.stop.at_safe_points() as stop:
        if learn:
            state, history = learn(stop=stop)
            lora, losses = state.parameters, history["loss"]
        with files.atomic_folder(folder / "lora") as made:
            lora_file.save_folder(made, lora, config)
            files.atomic_write_json(made / "losses.json", losses)
        work.finish(unit)


def _prepared(settings: Settings, folder: Path, scratch: Path, lora: nnx.State) -> Callable[..., Any]:
    """`learning.train` with everything but the stop. Each network is loaded when it is needed and dropped after."""
    options = settings.finetune
    data = _training_set(settings, folder, scratch)
    seen = 100 * float(data.mask.mean())
    _log.info("training on %d videos, %.0f %% of their latents visible", len(data.mean), seen)
    encoder = i2v.encoder_alone(_load_vae(settings))
    transformer = i2v.load_transformer(
        weights.folder(settings, "transformer"),
        lora_rank=options.rank,
        lora_alpha=options.alpha,
        choice=settings.execution,
    )
    optimiser, schedule = make_optimiser(options), learning_rate(options)
    key, data = named_key(settings.seed, "finetune", "steps"), mesh.replicate(data)
    return functools.partial(
        learning.train,
        make_step(transformer, encoder, options, optimiser),
        learning.init(lora, optimiser),
        lambda number: (transformer.state, encoder.state, data, jax.random.fold_in(key, number)),
        name="finetune",
        steps=options.steps,
        checkpoints=scratch / "steps",
        checkpoint_every=options.checkpoint_every,
        logs=folder / "logs/finetune",
        rate=lambda number: np.asarray(schedule(number)).item() if callable(schedule) else schedule,
        mend=functools.partial(_mend, options, transformer.execution.dtype),
    )


def _mend(options: Finetune, dtype: str, number: int) -> str:
    if number == 0:
        return (
            f"the weights or the input hold values that are not finite, or too large for {dtype}: set "
            "config.execution.dtype=float32, convert the weights again, or give another video"
        )
    return (
        f"lower config.finetune.learning_rate={options.learning_rate:g}, or set config.execution.dtype=float32 "
        f"(it is {dtype}); the state before it is kept"
    )


def _load_vae(settings: Settings) -> i2v.Network:
    size = (settings.height, settings.width)
    return i2v.load_vae(weights.folder(settings, "vae"), tiles=settings.vae_tiles, size=size, choice=settings.execution)


def prompts(settings: Settings) -> list[str]:
    """The prompt of each training video: the input's bare caption, then each warp's with its motion before it."""
    views = [trajectories.parse_view(view) for view in settings.train_views]
    return [settings.caption] + [view.prompt(settings.caption, settings.mode) for view in views]


def _training_set(settings: Settings, folder: Path, scratch: Path) -> TrainingSet:
    cached = scratch / "encoded.npz"
    if cached.exists():
        return TrainingSet(**{name: jnp.asarray(value) for name, value in files.load_npz(cached).items()})
    source = files.load_npz(folder / "input/frames.npz")["frames"]
    videos, visible = [source], [np.ones(source.shape[:3], bool)]
    for view in settings.train_views:
        warp = files.load_npz(folder / view_file(view, "warp.npz"))
        videos.append(warp["frames"])
        visible.append(warp["visible"])
    length = i2v.describe_transformer(weights.folder(settings, "transformer")).config.max_text_seq_length
    encoder = weights.folder(settings, "text_encoder")
    text = i2v.embed_prompts(encoder, prompts(settings), length, choice=settings.execution)
    data = encode_videos(_load_vae(settings), np.stack(videos), np.stack(visible))
    data = data._replace(text=jnp.asarray(text))
    files.atomic_savez(cached, **{name: np.asarray(value) for name, value in data._asdict().items()})
    return data


def encode_videos(vae: i2v.Network, videos: np.ndarray, visible: np.ndarray) -> TrainingSet:
    """Encodes videos, one at a time, and their masks; the text is left empty.

    Args:
        vae: the autoencoder.
        videos: uint8 [N, T, H, W, 3].
        visible: bool [N, T, H, W].
    """
    encode = jax.jit(lambda state, video: nnx.merge(vae.graphdef, state).encode(i2v.to_unit(video)[None]))
    moments = [encode(vae.state, jnp.asarray(v)) for v in progress(list(videos), "finetune: encode", unit="video")]
    mean, logvar = (jnp.concatenate([np.asarray(m[k], np.float32) for m in moments]) for k in range(2))
    mask = jnp.stack([masks.latent_mask(v, *mean.shape[2:4]) for v in visible])
    return TrainingSet(mean, logvar, mask, jnp.zeros((len(videos), 0, 0)), jnp.asarray(videos[:, 0]))


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


def motion_loss(model: Any, vae: Any, data: TrainingSet, options: Finetune, *, key: Array) -> Float[Array, ""]:
    """The masked v-loss of videos drawn from the set.

    Args:
        model: the transformer with its adapters.
        vae: the autoencoder, for the noised first frames.
        data: the set.
        options: batch size, whether masked, noise and dropout of the condition.
        key: of the draw, the times and every noise.
    """
    keys = iter(jax.random.split(key, 8))
    batch = options.batch_size
    pick = jax.random.randint(next(keys), (batch,), 0, data.mean.shape[0])
    z, first = mesh.split_batch((vae.sample(data.mean[pick], data.logvar[pick], key=next(keys)), data.first[pick]))
    z, image = vae.scale_latents(z), i2v.to_unit(first)
    noise_key, sigma_key = next(keys), next(keys)
    if options.noise_first_frame:
        log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_DEVIATION * jax.random.normal(sigma_key, (batch, 1, 1, 1))
        image = image + jnp.exp(log_sigma) * jax.random.normal(noise_key, image.shape)
    # Tokens over several latent frames: copies of the first fill up the clip at its front, as sampling does.
    extra = -z.shape[1] % (model.config.patch_size_t or 1)
    z, mask = (jnp.concatenate([x[:, :1]] * extra + [x], axis=1) for x in (z, data.mask[pick]))
    condition = i2v.image_condition(vae, image, z.shape[1], key=next(keys))
    kept = jax.random.bernoulli(next(keys), 1.0 - options.condition_dropout, (batch, 1, 1, 1, 1))
    condition = jax.lax.stop_gradient(jnp.where(kept, condition, jnp.zeros_like(condition)))

    t = jax.random.randint(next(keys), (batch,), 0, SCHEDULE.train_steps)
    eps = jax.random.normal(next(keys), z.shape, z.dtype)
    dtype = jnp.dtype(model.execution.dtype)
    noised = jnp.concatenate([SCHEDULE.add_noise(z, eps, t), condition], axis=-1).astype(dtype)
    v = model(noised, data.text[pick].astype(dtype), t.astype(jnp.float32))
    return masked_v_loss(v, SCHEDULE.velocity(z, eps, t), mask if options.masked else None)


def make_step(
    transformer: i2v.Network, vae: i2v.Network, options: Finetune, optimiser: optax.GradientTransformation
) -> Callable[..., tuple[learning.State, dict[str, Array]]]:
    """The training step ``(state, base, vae_state, data, key) -> (state, numbers)``; see `learning.make_step`."""

    def loss(lora: Any, base: Any, vae_state: Any, data: TrainingSet, key: Array) -> Array:
        model = nnx.merge(transformer.graphdef, lora, base)
        return motion_loss(model, nnx.merge(vae.graphdef, vae_state), data, options, key=key)

    return learning.make_step(loss, optimiser)


SMALLER = ("finetune.batch_size", "finetune.rank", "mesh", "vae_tiles", "base_dtype", "num_frames", "height", "width")
STAGE = Stage("finetune", version=1, units=units, run=finetune, smaller=SMALLER)
