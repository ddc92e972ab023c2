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
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float
from tensorboardX import SummaryWriter

from reangle_jax import mesh
from reangle_jax.backbones.cogvideox import image_to_video as i2v
from reangle_jax.backbones.cogvideox import lora as lora_file
from reangle_jax.config import Finetune, Settings
from reangle_jax.data import files
from reangle_jax.diffusion.losses import masked_v_loss
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.geometry import masks, trajectories
from reangle_jax.progress import progress
from reangle_jax.run import Run, Stage, Unit, view_file

SCHEDULE = Schedule.cogvideox_5b()
# The noise on the conditioning frame: sigma = exp(N(mean, deviation)).
LOG_SIGMA_MEAN, LOG_SIGMA_DEVIATION = -3.0, 0.5
LOG_EVERY = 10  # steps
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
            weights=("transformer", "vae", "text_encoder"),
        ),
    )


def finetune(settings: Settings, run: Run) -> None:
    """Writes lora/: the adapters for this library and for diffusers, and the losses."""
    with mesh.use(mesh.make_mesh(settings.mesh, batch_size=settings.finetune.batch_size)):
        _finetune(settings, run)


def _finetune(settings: Settings, run: Run) -> None:
    (unit,) = run.todo
    scratch = run.scratch(unit)
    options = settings.finetune
    transformer = i2v.load_transformer(run.weights("transformer"), lora_rank=options.rank, lora_alpha=options.alpha)
    lora = i2v.init_lora(transformer.config, key=run.key("finetune", "init"))
    optimiser = make_optimiser(options)
    state = TrainState(lora, optimiser.init(lora), np.zeros(options.steps, np.float32), 0)
    if options.steps:  # without any, there is nothing to encode: config.loras may act alone
        vae = i2v.load_vae(run.weights("vae"), tiles=settings.vae_tiles, size=(settings.height, settings.width))
        data = _training_set(settings, run, vae, transformer.config.max_text_seq_length, scratch)
        seen = 100 * float(data.mask.mean())
        _log.info("training on %d videos, %.0f %% of their latents visible", len(data.mean), seen)
        step = make_step(transformer, vae, options, optimiser)
        state = _train(step, state, transformer.state, vae.state, mesh.replicate(data), run, scratch, options)

    with run.save_folder("lora") as folder:
        lora_file.save_folder(folder, state.lora, transformer.config)
        files.atomic_write_json(folder / "losses.json", [float(loss) for loss in state.losses])


def prompts(settings: Settings) -> list[str]:
    """The prompt of each training video: the input's bare caption, then each warp's with its motion before it."""
    views = [trajectories.parse_view(view) for view in settings.train_views]
    return [settings.caption] + [view.prompt(settings.caption, settings.mode) for view in views]


def _training_set(settings: Settings, run: Run, vae: i2v.Network, text_length: int, scratch: Path) -> TrainingSet:
    cached = scratch / "encoded.npz"
    if cached.exists():
        return TrainingSet(**{name: jnp.asarray(value) for name, value in files.load_npz(cached).items()})
    source = run.load_npz("input/frames.npz")["frames"]
    videos, visible = [source], [np.ones(source.shape[:3], bool)]
    for view in settings.train_views:
        warp = run.load_npz(view_file(view, "warp.npz"))
        videos.append(warp["frames"])
        visible.append(warp["visible"])
    data = encode_videos(vae, np.stack(videos), np.stack(visible))
    text = i2v.embed_prompts(run.weights("text_encoder"), prompts(settings), text_length)
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
    dtype = jnp.dtype(model.config.dtype)
    noised = jnp.concatenate([SCHEDULE.add_noise(z, eps, t), condition], axis=-1).astype(dtype)
    v = model(noised, data.text[pick].astype(dtype), t.astype(jnp.float32))
    return masked_v_loss(v, SCHEDULE.velocity(z, eps, t), mask if options.masked else None)


class TrainState(NamedTuple):
    """What a step changes, the losses so far and the number of steps done."""

    lora: Any
    optimiser: Any
    losses: np.ndarray
    done: int


def make_step(
    transformer: i2v.Network, vae: i2v.Network, options: Finetune, optimiser: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any, Array]]:
    """The training step ``(lora, opt_state, base, vae_state, data, key) -> (lora, opt_state, loss)``, jitted.

    The frozen base is an argument that nothing is differentiated by: no gradient and no copy of it is ever made.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(lora: Any, opt_state: Any, base: Any, vae_state: Any, data: TrainingSet, key: Array):
        def loss_of(lora: Any) -> Array:
            model = nnx.merge(transformer.graphdef, lora, base)
            return motion_loss(model, nnx.merge(vae.graphdef, vae_state), data, options, key=key)

        loss, gradients = jax.value_and_grad(loss_of)(lora)
        updates, opt_state = optimiser.update(gradients, opt_state, lora)
        lora = optax.apply_updates(lora, updates)
        # In the layout they came in: one program serves all steps.
        return mesh.constrain(lora), mesh.constrain(opt_state), loss

    return step


def _train(step, state: TrainState, base, vae_state, data: TrainingSet, run: Run, scratch: Path, options: Finetune):
    key = run.key("finetune", "steps")
    manager = ocp.CheckpointManager(scratch / "steps", options=ocp.CheckpointManagerOptions(max_to_keep=1))
    latest = manager.latest_step()
    if latest is not None:
        restored = manager.restore(latest, args=ocp.args.StandardRestore(_as_tree(state)))
        state = TrainState(restored["lora"], restored["optimiser"], np.array(restored["losses"]), latest)
        _log.info("finetune goes on after step %d", latest)
    lora, opt_state, losses = state.lora, state.optimiser, state.losses
    pending: list[Array] = []
    schedule = learning_rate(options)

    def rate(number: int) -> float:
        return np.asarray(schedule(number)).item() if callable(schedule) else schedule

    def settle(done: int) -> None:
        # Losses stay on the device until they are wanted: the next step need not wait for the number.
        losses[done - len(pending) : done] = [float(loss) for loss in pending]
        for number, loss in enumerate(losses[done - len(pending) : done], start=done - len(pending)):
            writer.add_scalar("finetune/loss", float(loss), number)
            writer.add_scalar("finetune/learning_rate", rate(number), number)
        pending.clear()

    writer = SummaryWriter(str(run.path("logs/finetune")), purge_step=state.done)
    with manager, run.stop_at_safe_points() as stop, progress(options.steps, "finetune", initial=state.done) as bar:
        for number in range(state.done, options.steps):
            lora, opt_state, loss = step(lora, opt_state, base, vae_state, data, jax.random.fold_in(key, number))
            pending.append(loss)
            done = number + 1
            if done % LOG_EVERY == 0 or done == options.steps or stop.requested:
                settle(done)
                bar.set(loss=float(losses[max(0, done - 50) : done].mean()), rate=rate(number))
            bar.update()
            due = options.checkpoint_every and done % options.checkpoint_every == 0
            if done < options.steps and (due or stop.requested):
                settle(done)
                manager.save(done, args=ocp.args.StandardSave(_as_tree(TrainState(lora, opt_state, losses, done))))
            if stop.requested:
                manager.wait_until_finished()
                stop.now()
        manager.wait_until_finished()
    writer.close()
    return TrainState(lora, opt_state, losses, options.steps)


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {"lora": state.lora, "optimiser": state.optimiser, "losses": state.losses}


STAGE = Stage("finetune", version=1, units=units, run=finetune)
