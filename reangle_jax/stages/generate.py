"""Sampling (method, stage 4): a video for every view from its first frame and its prompt."""

import dataclasses
import logging
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from reangle_jax import checkpoints, mesh
from reangle_jax.arrays import Picture
from reangle_jax.backbones.cogvideox import image_to_video as i2v
from reangle_jax.backbones.cogvideox import lora as lora_file
from reangle_jax.backbones.cogvideox.sampling import Sampler
from reangle_jax.config import Settings
from reangle_jax.data import lora_files
from reangle_jax.diffusion.guidance import is_guided
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.geometry import trajectories
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.progress import progress
from reangle_jax.run import Run, Stage, Unit, view_file

SCHEDULE = Schedule.cogvideox_5b()
UNTUNED = "untuned"
# Stands for all of lora/: unlike the Orbax state beside it, it has the same bytes whenever the adapters are the same.
ADAPTERS = "lora/lora.safetensors"

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view, and one more for what the untuned model makes of it."""
    keys = ("caption", "mode", "num_frames", "height", "width", "vae_tiles", "sample", "model", "seed")
    weights = ("transformer", "vae", "text_encoder")
    given = ("loras",) if settings.loras else ()
    result = []
    for view in settings.views:
        inputs = ("input/frames.npz", view_file(view, "first_frame.png"))
        outputs = (view_file(view, "frames.npz"), view_file(view, "video.mp4"))
        inputs_tuned, keys_tuned = (*inputs, ADAPTERS), (*keys, *given)
        result.append(Unit(view, keys_tuned, inputs_tuned, outputs, external=given, weights=weights, view=view))
        if settings.evaluate.untuned:
            outputs = (view_file(view, "untuned.npz"),)
            result.append(Unit(f"{view} {UNTUNED}", keys, inputs, outputs, weights=weights, view=view))
    return tuple(result)


def generate(settings: Settings, run: Run) -> None:
    """Writes views/NAME/frames.npz and video.mp4; views/NAME/untuned.npz if asked for."""
    batch_size = 2 if is_guided(settings.sample.guidance_scale) else 1  # guidance compares two videos
    with mesh.use(mesh.make_mesh(settings.mesh, batch_size=batch_size)):
        _generate(settings, run)


def _generate(settings: Settings, run: Run) -> None:
    vae = i2v.load_vae(run.weights("vae"), tiles=settings.vae_tiles, size=(settings.height, settings.width))
    transformer, tuned = _tuned(settings, run)
    fresh = jax.tree.map(jnp.zeros_like, tuned)  # changes nothing: the untuned model
    texts = ["", *(trajectories.parse_view(unit.view).prompt(settings.caption, settings.mode) for unit in run.todo)]
    text = i2v.embed_prompts(run.weights("text_encoder"), texts, transformer.config.max_text_seq_length)
    fps = float(run.load_npz("input/frames.npz")["fps"])
    sampler = Sampler(transformer, vae, SCHEDULE, num_frames=settings.num_frames, **dataclasses.asdict(settings.sample))
    with progress(len(run.todo) * settings.sample.steps, "generate") as bar:
        for k, unit in enumerate(run.todo, start=1):
            bar.set(view=unit.name)
            lora = tuned if ADAPTERS in unit.inputs else fresh
            image = read_png(run.view_path(unit.view, "first_frame.png"))
            # The untuned model starts from the same noise: the two differ by the adapters alone.
            key = run.key("generate", unit.view)
            noise, condition = sampler.start(vae.state, image[None], key=key)
            latents = sampler.denoise(
                lora,
                transformer.state,
                noise,
                condition,
                text[k : k + 1],
                text[:1],
                key=jax.random.fold_in(key, 1),
                on_step=bar.update,
            )
            frames = np.asarray(sampler.decode(vae.state, latents))[0]
            run.save_npz(unit.outputs[0], frames=frames)
            if len(unit.outputs) > 1:
                run.save_video(unit.outputs[1], frames, fps)
            run.finish(unit)


def _tuned(settings: Settings, run: Run) -> tuple[i2v.Network, nnx.State]:
    """The transformer with room for what finetune learnt and for the LoRAs given, and these."""
    options, folder = settings.finetune, run.weights("transformer")
    rank, alpha = options.rank, options.alpha
    config = dataclasses.replace(checkpoints.load_config(folder, TransformerConfig), lora_rank=rank, lora_alpha=alpha)
    lora = i2v.init_lora(config, key=jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        lora = checkpointer.restore(run.path("lora") / lora_file.STATE, lora)
    if settings.loras:
        parts = [(lora_file.read(path, config), weight) for path, weight in map(lora_files.choice, settings.loras)]
        # Adapters that were never trained are zero: they need no room.
        own = [(lora_file.from_state(lora, config), 1.0)] if options.steps else []
        joined = lora_file.combine([*own, *parts])
        rank, alpha = joined.rank, joined.alpha
        lora = lora_file.to_state(joined, dataclasses.replace(config, lora_rank=rank, lora_alpha=alpha))
    return i2v.load_transformer(folder, lora_rank=rank, lora_alpha=alpha), lora


def read_png(path: Any) -> Picture:
    """An image as RGB bytes."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None, f"{path} was written by an earlier stage"
    return np.ascontiguousarray(image[..., ::-1])


STAGE = Stage("generate", version=2, units=units, run=generate)
