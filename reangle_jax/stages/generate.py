"""Sampling (method, stage 4): a video for every view from its first frame and its prompt."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Float

from reangle_jax import checkpoints, mesh, weights
from reangle_jax.backbones.cogvideox import image_to_video as i2v
from reangle_jax.backbones.cogvideox import lora as lora_file
from reangle_jax.backbones.cogvideox.sampling import Sampler
from reangle_jax.config import Settings
from reangle_jax.data import files, lora_files, pictures, video
from reangle_jax.diffusion.guidance import is_guided
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import NotFiniteError
from reangle_jax.geometry import trajectories
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.progress import progress
from reangle_jax.randomness import named_key
from reangle_jax.run import External, Stage, Unit, Work, view_file

SCHEDULE = Schedule.cogvideox_5b()
UNTUNED = "untuned"
# Stands for all of lora/: unlike the Orbax state beside it, it has the same bytes whenever the adapters are the same.
ADAPTERS = "lora/lora.safetensors"

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view, and one more for what the untuned model makes of it."""
    keys = ("caption", "mode", "num_frames", "height", "width", "vae_tiles", "sample", "model", "seed")
    networks = weights.folders(settings, "transformer", "vae", "text_encoder")
    loras = tuple(file for text in settings.loras for file in lora_files.read_from(text))
    given, keys_tuned = ((External("config.loras", loras),), (*keys, "loras")) if loras else ((), keys)
    result = []
    for view in settings.views:
        inputs = ("input/frames.npz", view_file(view, "first_frame.png"))
        outputs = (view_file(view, "frames.npz"), view_file(view, "video.mp4"))
        result.append(Unit(view, keys_tuned, (*inputs, ADAPTERS), outputs, external=given, weights=networks, view=view))
        if settings.evaluate.untuned:
            outputs = (view_file(view, "untuned.npz"),)
            result.append(Unit(f"{view} {UNTUNED}", keys, inputs, outputs, weights=networks, view=view))
    return tuple(result)


def generate(settings: Settings, folder: Path, work: Work) -> None:
    """Writes views/NAME/frames.npz and video.mp4; views/NAME/untuned.npz if asked for."""
    batch_size = 2 if is_guided(settings.sample.guidance_scale) else 1  # guidance compares two videos
    with mesh.use(mesh.make_mesh(settings.mesh, batch_size=batch_size)):
        _generate(settings, folder, work)


def _generate(settings: Settings, folder: Path, work: Work) -> None:
    # Each network is loaded when it is needed and dropped after: together they would not fit where each does.
    waiting = [unit for unit in work.todo if not _latents(work, unit).exists()]
    if waiting:
        text = _text(settings, waiting)
        conditions = _conditions(settings, folder, waiting)
        _sample(settings, folder, work, waiting, text, conditions)
    _decode(settings, folder, work)


def _latents(work: Work, unit: Unit) -> Path:
    """Where a unit's sampled latents wait to be decoded."""
    return work.scratch(unit) / "latents.npz"


def _text(settings: Settings, units: list[Unit]) -> Float[np.ndarray, "N L D"]:
    """Embeddings of the empty text and of each unit's prompt."""
    texts = ["", *(trajectories.parse_view(unit.view).prompt(settings.caption, settings.mode) for unit in units)]
    length = i2v.describe_transformer(weights.folder(settings, "transformer")).config.max_text_seq_length
    return i2v.embed_prompts(weights.folder(settings, "text_encoder"), texts, length, choice=settings.execution)


def _conditions(settings: Settings, folder: Path, units: list[Unit]) -> list[np.ndarray]:
    """Each unit's first frame, encoded."""
    vae, sampler = _coder(settings)
    images = [pictures.read(folder / view_file(unit.view, "first_frame.png"))[None] for unit in units]
    return [
        np.asarray(sampler.condition(vae.state, image, key=named_key(settings.seed, "generate", unit.view)))
        for unit, image in zip(units, images, strict=True)
    ]


def _sample(
    settings: Settings, folder: Path, work: Work, units: list[Unit], text: np.ndarray, conditions: list[np.ndarray]
) -> None:
    """Keeps the latents of each unit in its scratch."""
    transformer, tuned = _tuned(settings, folder)
    # Zeros change nothing: the untuned model.
    fresh = None if all(ADAPTERS in unit.inputs for unit in units) else jax.tree.map(jnp.zeros_like, tuned)
    sampler = _sampler(
        settings, transformer, i2v.describe_vae(weights.folder(settings, "vae"), choice=settings.execution)
    )
    done = (len(work.todo) - len(units)) * settings.sample.steps
    with progress(len(work.todo) * settings.sample.steps, "generate", initial=done) as bar:
        for unit, prompt, condition in zip(units, text[1:], conditions, strict=True):
            bar.set(view=unit.name)
            # The untuned model starts from the same noise: the two differ by the adapters alone.
            key = named_key(settings.seed, "generate", unit.view)
            latents = sampler.denoise(
                tuned if ADAPTERS in unit.inputs else fresh,
                transformer.state,
                sampler.noise((1, settings.height, settings.width), key=key),
                jnp.asarray(condition),
                prompt[None],
                text[:1],
                key=jax.random.fold_in(key, 1),
                on_step=bar.update,
            )
            found = np.asarray(latents, np.float32)
            if not np.isfinite(found).all():
                raise NotFiniteError(
                    f"generate: the latents of {unit.name} are not finite: lower config.finetune.learning_rate, leave "
                    "out config.loras, or set config.execution.dtype=float32 (it is "
                    f"{transformer.execution.dtype})"
                )
            files.atomic_savez(_latents(work, unit), latents=found)
            work.finish_part(unit)


def _decode(settings: Settings, folder: Path, work: Work) -> None:
    """Writes each unit's frames."""
    vae, sampler = _coder(settings)
    fps = float(files.load_npz(folder / "input/frames.npz")["fps"])
    for unit in progress(work.todo, "generate: decode", unit="video"):
        latents = files.load_npz(_latents(work, unit))["latents"]
        frames = np.asarray(sampler.decode(vae.state, jnp.asarray(latents)))[0]
        files.atomic_savez(folder / unit.outputs[0], frames=frames)
        if len(unit.outputs) > 1:
            video.write_video(folder / unit.outputs[1], frames, fps)
        work.finish(unit)


def _coder(settings: Settings) -> tuple[i2v.Network, Sampler]:
    """The autoencoder, and a sampler that codes by it."""
    size, choice = (settings.height, settings.width), settings.execution
    vae = i2v.load_vae(weights.folder(settings, "vae"), tiles=settings.vae_tiles, size=size, choice=choice)
    transformer = i2v.describe_transformer(weights.folder(settings, "transformer"), choice=choice)
    return vae, _sampler(settings, transformer, vae)


def _sampler(settings: Settings, transformer: i2v.Network, vae: i2v.Network) -> Sampler:
    return Sampler(transformer, vae, SCHEDULE, num_frames=settings.num_frames, **dataclasses.asdict(settings.sample))


def _tuned(settings: Settings, folder: Path) -> tuple[i2v.Network, nnx.State]:
    """The transformer with room for what finetune learnt and for the LoRAs given, and these."""
    options, where = settings.finetune, weights.folder(settings, "transformer")
    rank, alpha = options.rank, options.alpha
    config = dataclasses.replace(checkpoints.load_config(where, TransformerConfig), lora_rank=rank, lora_alpha=alpha)
    lora = i2v.init_lora(config, key=jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        lora = checkpointer.restore(folder / "lora" / lora_file.STATE, lora)
    if settings.loras:
        parts = [(lora_file.read(path, config), weight) for path, weight in map(lora_files.choice, settings.loras)]
        # Adapters that were never trained are zero: they need no room.
        own = [(lora_file.from_state(lora, config), 1.0)] if options.steps else []
        joined = lora_file.combine([*own, *parts])
        rank, alpha = joined.rank, joined.alpha
        lora = lora_file.to_state(joined, dataclasses.replace(config, lora_rank=rank, lora_alpha=alpha))
    return i2v.load_transformer(where, lora_rank=rank, lora_alpha=alpha, choice=settings.execution), lora


SMALLER = ("mesh", "vae_tiles", "base_dtype", "num_frames", "height", "width")
STAGE = Stage("generate", version=2, units=units, run=generate, smaller=SMALLER)
