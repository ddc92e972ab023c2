"""Which licences the weights of a run have: as the converters' registry says, which the tests compare."""

from typing import NamedTuple

from reangle_jax import checkpoints, chosen_models, tiny
from reangle_jax.config import Settings
from reangle_jax.errors import InputError
from reangle_jax.models.depth_anything import DepthAnythingConfig

OWN = "Apache-2.0"
UNKNOWN = "not known here: see where the weights come from"
PUBLISHED = {
    "cogvideox-5b-i2v": "CogVideoX licence (research, and registered commercial use)",
    "cogvideox1.5-5b-i2v": "CogVideoX licence (research, and registered commercial use)",
    "flux.1-dev": "FLUX.1 [dev] non-commercial",
    "flux.1-dev-controlnet-inpainting-beta": "FLUX.1 [dev] non-commercial",
    "flux.1-fill-dev": "FLUX.1 [dev] non-commercial",
    "depth-anything-v2-small": "Apache-2.0",
    "depth-anything-v2-base": "CC-BY-NC-4.0",
    "depth-anything-v2-large": "CC-BY-NC-4.0",
    "dust3r-512-dpt": "CC-BY-NC-SA-4.0",
    "dino-vits16": "Apache-2.0",
    "featup-dino16": "MIT",
}
T5, CLIP = "Apache-2.0", "MIT"


class Used(NamedTuple):
    """Weights that a run has used, and what for."""

    purpose: str
    name: str
    licence: str


def used(settings: Settings) -> list[Used]:
    """The weights that a run with these settings uses."""
    found = [_depth(settings)] if settings.depth == "model" else []
    found += _model("video", settings.model, own=bool(settings.weights))
    if chosen_models.paints(settings):
        chosen = settings.first_frames
        found += _model("first frames", chosen.model, own=bool(chosen.weights))
        if chosen.model == "flux.1-dev":
            name = "flux.1-dev-controlnet-inpainting-beta"
            found.append(Used("first frames", name, PUBLISHED[name]))
        if chosen.model in PUBLISHED:
            found.append(Used("first frames' prompt", "CLIP ViT-L/14", CLIP))
    if settings.mode == "static":
        found += _score(settings)
    return found + [Used("LoRA", lora, UNKNOWN) for lora in settings.loras]


def _model(purpose: str, name: str, *, own: bool) -> list[Used]:
    if name == "tiny":
        return [Used(purpose, "of your own" if own else "the small family", UNKNOWN if own else OWN)]
    prompt = [Used(f"{purpose}: prompt", "T5 v1.1 XXL", T5)] if name in PUBLISHED else []
    return [Used(purpose, name, PUBLISHED.get(name, UNKNOWN)), *prompt]


def _score(settings: Settings) -> list[Used]:
    if chosen_models.painter_folder(settings) == tiny.WEIGHTS:
        return [Used("agreement", "the small family", OWN)]
    return [Used("agreement", name, PUBLISHED[name]) for name in ("dust3r-512-dpt", "dino-vits16", "featup-dino16")]


def _depth(settings: Settings) -> Used:
    folder = chosen_models.folder(settings, "depth")
    if folder.is_relative_to(tiny.WEIGHTS):
        return Used("depth", "the small family", OWN)
    try:
        width = checkpoints.load_config(folder, DepthAnythingConfig).width
    except InputError:
        width = 0
    sizes = {DepthAnythingConfig.small().width: "small", DepthAnythingConfig.base().width: "base"}
    sizes[DepthAnythingConfig.large().width] = "large"
    name = f"depth-anything-v2-{sizes[width]}" if width in sizes else "of your own"
    return Used("depth", name, PUBLISHED.get(name, UNKNOWN))
