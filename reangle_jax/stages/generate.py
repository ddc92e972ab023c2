"""Sampling (method, stage 4): a video for every view from its first frame and its prompt."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reangle_jax import chosen_models, mesh
from reangle_jax.arrays import Picture
from reangle_jax.backbones.interface import Backbone, Sampler, Sampling
from reangle_jax.cameras.views import folder_name
from reangle_jax.config import UNTUNED, Sample, Settings
from reangle_jax.data import files, lora_files, pictures, video
from reangle_jax.diffusion.guidance import is_guided
from reangle_jax.errors import NotFiniteError, wider
from reangle_jax.geometry import cameras, noise
from reangle_jax.progress import progress
from reangle_jax.randomness import named_key
from reangle_jax.run import External, Stage, Unit, Work, view_file, view_paths

# Stands for all of lora/: unlike the Orbax state beside it, it has the same bytes whenever the adapters are the same.
ADAPTERS = "lora/lora.safetensors"
_CARRIED = ("input/depth.npz", "input/cameras.json")

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view, and one more for what the untuned model makes of it."""
    keys = ("caption", "mode", "num_frames", "height", "width", "vae_tiles", "model", "base_dtype", "seed")
    keys += tuple(f"sample.{name}" for name in Sampling._fields)
    keys += () if settings.sample.shared_noise == "off" else ("sample.shared_noise",)
    keys += view_paths.prompt_keys(settings)
    networks = chosen_models.of_model(settings)
    loras = tuple(file for text in settings.loras for file in lora_files.read_from(text))
    given, keys_tuned = ((External("config.loras", loras),), (*keys, "loras")) if loras else ((), keys)
    result = []
    for view in settings.views:
        inputs = ("input/frames.npz", view_file(view, "first_frame.png"), *view_paths.prompt_inputs(settings, (view,)))
        if settings.sample.shared_noise == "warped":
            inputs += (*_CARRIED, view_file(view, "cameras.json"))
        outputs = (view_file(view, "frames.npz"), view_file(view, "video.mp4"))
        result.append(Unit(view, keys_tuned, (*inputs, ADAPTERS), outputs, external=given, weights=networks, view=view))
        if settings.evaluate.untuned:
            outputs = (view_file(view, "untuned.npz"),)
            result.append(Unit(f"{folder_name(view)} {UNTUNED}", keys, inputs, outputs, weights=networks, view=view))
    return tuple(result)


def generate(settings: Settings, folder: Path, work: Work) -> None:
    """Writes views/NAME/frames.npz and video.mp4; views/NAME/untuned.npz if asked for."""
    with chosen_models.on_mesh(settings, "generate"):
        _generate(settings, folder, work)


def _generate(settings: Settings, folder: Path, work: Work) -> None:
    # Each network is loaded when it is needed and dropped after: together they would not fit where each does.
    backbone = chosen_models.backbone(settings)
    sampler = _sampler(settings.sample, backbone)
    waiting = [unit for unit in work.todo if not _latents(work, unit).exists()]
    if waiting:
        views = list(dict.fromkeys(unit.view for unit in waiting))  # once, though a view may have an untuned video too
        empty, *prompts = backbone.embed(["", *(view_paths.prompt(settings, folder, view) for view in views)])
        images = [pictures.read(folder / view_file(view, "first_frame.png")) for view in views]
        keys = [named_key(settings.seed, "generate", view) for view in views]
        conditions = _conditions(sampler, backbone.load_coder(decodes=False), images, keys)
        given = dict(zip(views, zip(prompts, conditions, strict=True), strict=True))
        _sample(settings, folder, work, backbone, waiting, empty, given)
    _decode(sampler, backbone.load_coder(), folder, work)


def _sampler(options: Sample, backbone: Backbone) -> Sampler:
    return backbone.sampler(Sampling(**{name: getattr(options, name) for name in Sampling._fields}))


def _latents(work: Work, unit: Unit) -> Path:
    """Where a unit's sampled latents wait to be decoded."""
    return work.scratch(unit) / "latents.npz"


def _conditions(sampler: Sampler, coder: Any, images: list[Picture], keys: list[Array]) -> list[np.ndarray]:
    """First frames, encoded."""
    pairs = zip(images, keys, strict=True)
    return [mesh.on_host(sampler.condition(coder, image[None], key=key)) for image, key in pairs]


def _sample(
    settings: Settings,
    folder: Path,
    work: Work,
    backbone: Backbone,
    units: list[Unit],
    empty: np.ndarray,
    given: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Keeps the latents of each unit in its scratch; ``given`` are a view's embedded prompt and its condition."""
    learnt = folder / "lora" if settings.finetune.steps or not settings.loras else None
    backbone, tuned = backbone.load_adapters(learnt, [lora_files.choice(text) for text in settings.loras])
    # Zeros change nothing: the untuned model.
    fresh = None if all(ADAPTERS in unit.inputs for unit in units) else jax.tree.map(jnp.zeros_like, tuned)
    base, sampler = backbone.load_denoiser(), _sampler(settings.sample, backbone)
    done = (len(work.todo) - len(units)) * settings.sample.steps
    with progress(len(work.todo) * settings.sample.steps, "generate", initial=done) as bar:

        def stepped(videos: int) -> None:
            bar.update(videos)
            work.stop.now()  # Python drops what a signal raises while it collects garbage

        at_once = max(1, mesh.room() // (1 + is_guided(settings.sample.guidance_scale)))  # which compares two videos
        for group in _groups(units, at_once):
            views = [unit.view for unit in mesh.filled(group, at_once)]
            prompts, conditions = zip(*(given[view] for view in views), strict=True)
            bar.set(view=", ".join(unit.name for unit in group))
            latents = sampler.denoise(
                tuned if ADAPTERS in group[0].inputs else fresh,
                base,
                jnp.concatenate([_noise(settings, folder, backbone, sampler, view) for view in views]),
                jnp.concatenate([jnp.asarray(condition) for condition in conditions]),
                np.stack(prompts),
                np.stack([empty] * at_once),
                # The untuned model starts from the same noise: the two differ by the adapters alone.
                key=jnp.stack([jax.random.fold_in(named_key(settings.seed, "generate", view), 1) for view in views]),
                on_step=functools.partial(stepped, len(group)),
            )
            _keep(work, group, mesh.on_host(latents), backbone.dtype)


def _groups(units: list[Unit], at_once: int) -> list[list[Unit]]:
    """Units in their order, as many together as there is room for, of the same adapters."""
    kinds = [[unit for unit in units if (ADAPTERS in unit.inputs) == tuned] for tuned in (True, False)]
    groups = [kind[k : k + at_once] for kind in kinds for k in range(0, len(kind), at_once)]
    return sorted(groups, key=lambda group: units.index(group[0]))


def _keep(work: Work, group: list[Unit], latents: np.ndarray, dtype: str) -> None:
    for unit, found in zip(group, latents.astype(np.float32), strict=False):  # what filled the group up is left
        if not np.isfinite(found).all():
            raise NotFiniteError(
                f"generate: the latents of {unit.name} are not finite: {wider(dtype)}lower "
                "config.finetune.learning_rate, or leave out config.loras"
            )
        files.atomic_savez(_latents(work, unit), latents=found[None])
        work.finish_part(unit)


def _noise(
    settings: Settings, folder: Path, backbone: Backbone, sampler: Sampler, view: str
) -> Float[Array, "1 t h w C"]:
    """What a view's video begins with."""
    shared = settings.sample.shared_noise

    def of(name: str) -> Array:
        return sampler.noise((1, settings.height, settings.width), key=named_key(settings.seed, "generate", name))

    if shared != "warped":
        return of("all views" if shared == "same" else view)
    own, common = of(view), of("all views")
    z = files.load_npz(folder / _CARRIED[0])["depth"]
    source, target = (cameras.load_cameras(folder / name)[0] for name in (_CARRIED[1], view_file(view, "cameras.json")))
    # The frame that each latent one begins with; those that fill up the clip at its front stand for its first.
    at = np.clip((np.arange(own.shape[1]) - backbone.front) * backbone.grid.frames, 0, len(z) - 1)
    source, target = (jax.tree.map(lambda x: x[at], c) for c in (source, target))
    common, own = mesh.on_host((common[0], own[0]))
    return jnp.asarray(noise.carried(common, own, z[at], source, target)[None])


def _decode(sampler: Sampler, coder: Any, folder: Path, work: Work) -> None:
    """Writes each unit's frames."""
    fps = float(files.load_npz(folder / "input/frames.npz")["fps"])
    at_once = mesh.room()
    with progress(len(work.todo), "generate: decode", unit="video") as bar:
        for start in range(0, len(work.todo), at_once):
            group = work.todo[start : start + at_once]
            latents = mesh.from_own_rows(
                lambda row, units=group: files.load_npz(_latents(work, units[row]))["latents"][0],
                mesh.filled(range(len(group)), at_once),
            )
            # What filled the group up is left.
            for unit, frames in zip(group, mesh.on_host(sampler.decode(coder, latents)), strict=False):
                files.atomic_savez(folder / unit.outputs[0], frames=frames)
                if len(unit.outputs) > 1:
                    video.write_video(folder / unit.outputs[1], frames, fps)
                work.finish(unit)
                bar.update()


SMALLER = ("mesh", "base_layout", "vae_tiles", "base_dtype", "num_frames", "height", "width")
STAGE = Stage("generate", version=2, units=units, run=generate, smaller=SMALLER, together=True)
