"""Sampling (method, stage 4): a video for every view from its first frame and its prompt."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, UInt8

from reangle_jax.config import Sample, Settings
from reangle_jax.diffusion import guidance, samplers
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.geometry import trajectories
from reangle_jax.models.cogvideox import image_to_video as i2v
from reangle_jax.progress import progress
from reangle_jax.run import Run, Stage, Unit, view_file

SCHEDULE = Schedule.cogvideox_5b()
UNTUNED = "untuned"
# Stands for all of lora/: unlike the Orbax state beside it, it has the same bytes whenever the adapters are the same.
ADAPTERS = "lora/lora.safetensors"

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view, and one more for what the untuned model makes of it."""
    keys = ("caption", "mode", "num_frames", "height", "width", "sample", "model", "seed")
    weights = ("transformer", "vae", "text_encoder")
    result = []
    for view in settings.views:
        inputs = ("input/frames.npz", view_file(view, "first_frame.png"))
        outputs = (view_file(view, "frames.npz"), view_file(view, "video.mp4"))
        result.append(Unit(view, keys, (*inputs, ADAPTERS), outputs, weights=weights, view=view))
        if settings.evaluate.untuned:
            outputs = (view_file(view, "untuned.npz"),)
            result.append(Unit(f"{view} {UNTUNED}", keys, inputs, outputs, weights=weights, view=view))
    return tuple(result)


def generate(settings: Settings, run: Run) -> None:
    """Writes views/NAME/frames.npz and video.mp4; views/NAME/untuned.npz if asked for."""
    vae = i2v.load_vae(run.weights("vae"))
    options = settings.finetune
    transformer = i2v.load_transformer(run.weights("transformer"), lora_rank=options.rank, lora_alpha=options.alpha)
    fresh = i2v.init_lora(transformer.config, key=jax.random.key(0))  # changes nothing: the untuned model
    tuned = fresh
    if any(ADAPTERS in unit.inputs for unit in run.todo):
        with ocp.StandardCheckpointer() as checkpointer:
            tuned = checkpointer.restore(run.path("lora/state"), fresh)
    texts = ["", *(trajectories.parse_view(unit.view).prompt(settings.caption, settings.mode) for unit in run.todo)]
    text = i2v.embed_prompts(run.weights("text_encoder"), texts, transformer.config.max_text_seq_length)
    fps = float(run.load_npz("input/frames.npz")["fps"])
    sample = make_sampler(transformer, vae, settings.sample, settings.num_frames)
    with progress(len(run.todo) * settings.sample.steps, "generate") as bar:
        for k, unit in enumerate(run.todo, start=1):
            bar.set(view=unit.name)
            lora = tuned if ADAPTERS in unit.inputs else fresh
            image = read_png(run.view_path(unit.view, "first_frame.png"))
            # The untuned model starts from the same noise: the two differ by the adapters alone.
            key = run.key("generate", unit.view)
            frames = sample(
                lora, transformer.state, vae.state, image, text[:1], text[k : k + 1], key=key, on_step=bar.update
            )
            run.save_npz(unit.outputs[0], frames=frames)
            if len(unit.outputs) > 1:
                run.save_video(unit.outputs[1], frames, fps)
            run.finish(unit)


def make_sampler(
    transformer: i2v.Network, vae: i2v.Network, options: Sample, num_frames: int
) -> Callable[..., UInt8[np.ndarray, "T H W 3"]]:
    """Image, text and noise to a video: ``sample(lora, base, vae_state, image, empty_text, text, key=, on_step=)``.

    One program encodes, one makes every step, one decodes; each is compiled once for all views.

    Args:
        transformer: the transformer's configuration and graph.
        vae: the autoencoder's.
        options: the sampler, its steps and guidance.
        num_frames: T = 1 + 4k.
    """
    ratio = vae.config.temporal_compression_ratio
    latent_frames = (num_frames - 1) // ratio + 1
    timesteps = SCHEDULE.timesteps(options.steps)
    scales = guidance.guidance_scales(timesteps, options.steps, options.guidance_scale, options.dynamic_guidance)
    guided = options.dynamic_guidance or options.guidance_scale != 1.0
    denoise = guidance.guided(i2v.predictor(transformer.graphdef), scales if guided else None)
    step = samplers.make_step(denoise, sampler=options.sampler, steps=options.steps, schedule=SCHEDULE)
    dtype = jnp.dtype(transformer.config.dtype)

    @jax.jit
    def start(vae_state: Any, image: Array, key: Array) -> tuple[Array, Array]:
        noise_key, image_key = jax.random.split(key)
        model = nnx.merge(vae.graphdef, vae_state)
        condition = i2v.image_condition(model, i2v.to_unit(image)[None], latent_frames, key=image_key).astype(dtype)
        return jax.random.normal(noise_key, condition.shape, jnp.float32).astype(dtype), condition

    @jax.jit
    def decode(vae_state: Any, latents: Array) -> Array:
        model = nnx.merge(vae.graphdef, vae_state)
        # An even number t of latents decodes to 4 t frames (the published way), not to 4 t - 3: one more in front makes
        # it odd, and its four frames are dropped.
        spare = 1 - latents.shape[1] % 2
        latents = jnp.concatenate([latents[:, :spare], latents], axis=1)
        return i2v.to_bytes(model.decode(model.unscale_latents(latents.astype(jnp.float32)))[0, ratio * spare :])

    def sample(lora, base, vae_state, image, empty_text, text, *, key, on_step: Callable[[], None]) -> np.ndarray:
        latents, condition = start(vae_state, jnp.asarray(image), key)
        both = functools.partial(jnp.concatenate, axis=0)
        condition = both([condition, condition]) if guided else condition
        embeddings = both([jnp.asarray(empty_text), jnp.asarray(text)]) if guided else jnp.asarray(text)
        state = samplers.init_state(latents)
        sampler_key = jax.random.fold_in(key, 1)
        for index in range(options.steps):
            state = step(state, jnp.int32(index), sampler_key, lora, base, condition, embeddings)
            # Waiting here keeps the bar true and the queue of dispatched steps short.
            jax.block_until_ready(state)
            on_step()
        return np.asarray(decode(vae_state, state.latents))

    return sample


def read_png(path: Any) -> UInt8[np.ndarray, "H W 3"]:
    """An image as RGB bytes."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None, f"{path} was written by an earlier stage"
    return np.ascontiguousarray(image[..., ::-1])


STAGE = Stage("generate", version=1, units=units, run=generate)
