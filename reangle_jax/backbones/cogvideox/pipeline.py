"""CogVideoX for its own sake: a folder of converted weights, a prompt, perhaps an image, and out comes a video.

    import cv2, jax
    from reangle_jax.backbones.cogvideox.pipeline import CogVideoX

    model = CogVideoX.load("weights/cogvideox-5b-i2v")
    image = cv2.resize(cv2.imread("cat.png"), (720, 480))[..., ::-1]
    frames = model("A cat plays the piano.", image, key=jax.random.key(0))  # uint8 [1, 49, 480, 720, 3]

Text-to-video models (5b, 2b) take no image: ``CogVideoX.load("weights/cogvideox-2b")("A cat.", key=...)``.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from reangle_jax.backbones.cogvideox import networks
from reangle_jax.backbones.cogvideox.sampling import Sampler
from reangle_jax.backbones.interface import Sampling
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig

SCHEDULER = "scheduler_config.json"


def load_schedule(folder: Path, config: TransformerConfig) -> Schedule:
    """The schedule of a transformer's folder: from its scheduler_config.json, else the one published with its kind.

    Raises:
        InputError: the file is unreadable or describes a schedule of another kind.
    """
    path = Path(folder) / SCHEDULER
    try:
        return Schedule.from_published(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Schedule() if config.use_rotary else Schedule(snr_shift_scale=3.0)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); convert the weights again") from None


class CogVideoX:
    """Image to video or text to video, whichever the folder's transformer is for; :meth:`load` makes one.

    Args:
        transformer: the transformer, without adapters.
        vae: the autoencoder.
        text_encoder: folder of the text encoder, which is loaded for each call and dropped again: it is as large as
            the transformer.
        schedule: of the noise.
    """

    def __init__(self, transformer: networks.Network, vae: networks.Network, text_encoder: Path, schedule: Schedule):
        self.transformer, self.vae, self.text_encoder, self.schedule = transformer, vae, text_encoder, schedule
        self._samplers: dict[tuple, Sampler] = {}

    @classmethod
    def load(cls, folder: str | Path, *, tiles: str = "off") -> "CogVideoX":
        """Loads a folder with transformer/, vae/ and text_encoder/, as ``python -m converters`` writes it.

        With ``tiles="on"`` frames are coded in tiles, which needs less memory and gives slightly other values.

        Raises:
            InputError: the folder is missing or damaged, or holds another model.
        """
        part = {name: Path(folder) / name for name in ("transformer", "vae", "text_encoder")}
        transformer = networks.load(networks.describe_transformer(part["transformer"]), part["transformer"])
        vae = networks.load(networks.describe_vae(part["vae"], tiles=tiles), part["vae"])
        schedule = load_schedule(part["transformer"], transformer.config)
        return cls(transformer, vae, part["text_encoder"], schedule)

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: UInt8[np.ndarray, "*B H W 3"] | None = None,
        *,
        key: Array,
        negative_prompt: str = "",
        videos_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int = 50,
        guidance_scale: float = 6.0,
        dynamic_guidance: bool = False,
        sampler: str = "ddim",
    ) -> UInt8[np.ndarray, "N T H W 3"]:
        """Generates.

        Args:
            prompt: one text or several.
            image: the first frame, one for all prompts or one for each; None for text to video.
            key: of all randomness.
            negative_prompt: what guidance leads away from.
            videos_per_prompt: how many of each prompt; they come one after the other.
            num_frames: T = 1 + 4k; the model's own count if not given.
            height: in pixels, for text to video; the model's own if not given. Images bring their size.
            width: likewise.
            steps: of denoising.
            guidance_scale: classifier-free guidance; 1 or less is none.
            dynamic_guidance: the guidance follows a cosine over the steps.
            sampler: ``ddim`` or ``dpm``.

        Returns:
            The videos, prompt by prompt.

        Raises:
            InputError: what is asked for is not what the model can give.
        """
        config: TransformerConfig = self.transformer.config
        prompts = [text for text in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(videos_per_prompt)]
        num_frames = num_frames or config.sample_frames
        start = self._images(image, len(prompts), videos_per_prompt, height, width)
        self._check_size(num_frames, *(start if isinstance(start, tuple) else start.shape)[1:3])
        options = Sampling(steps, guidance_scale, dynamic_guidance, sampler)
        run = self._samplers.get((num_frames, options))
        if run is None:
            run = Sampler(self.transformer, self.vae, self.schedule, options, num_frames=num_frames)
            self._samplers[num_frames, options] = run
        texts = networks.embed_prompts(self.text_encoder, [negative_prompt, *prompts], config.max_text_seq_length)
        negative = np.repeat(texts[:1], len(prompts), axis=0)
        noise = run.noise(start if isinstance(start, tuple) else start.shape[:3], key=key)
        condition = None if isinstance(start, tuple) else run.condition(self.vae.state, start, key=key)
        latents = run.denoise(
            nnx.State({}), self.transformer.state, noise, condition, texts[1:], negative, key=jax.random.fold_in(key, 1)
        )
        return np.asarray(run.decode(self.vae.state, latents))

    def _images(
        self, image: np.ndarray | None, count: int, each: int, height: int | None, width: int | None
    ) -> np.ndarray | tuple[int, int, int]:
        config, channels = self.transformer.config, self.vae.config.latent_channels
        ratio = self.vae.config.spatial_compression_ratio
        takes_image = config.in_channels == 2 * channels
        if takes_image != (image is not None):
            raise InputError(f"this model makes videos from {'an image and a text' if takes_image else 'a text alone'}")
        if image is None:
            return count, height or config.sample_height * ratio, width or config.sample_width * ratio
        if height is not None or width is not None:
            raise InputError("height and width are the image's: resize the image instead")
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
            raise InputError(f"image is {image.dtype} of shape {image.shape}: give bytes [H, W, 3] or [B, H, W, 3]")
        images = image[None] if image.ndim == 3 else np.repeat(image, each, axis=0)
        if images.shape[0] not in (1, count):
            raise InputError(f"{images.shape[0] // each} images for {count // each} prompts: give one for each, or one")
        return np.broadcast_to(images, (count, *images.shape[1:]))

    def _check_size(self, num_frames: int, height: int, width: int) -> None:
        config, ratio = self.transformer.config, self.vae.config.spatial_compression_ratio
        unit = ratio * config.patch_size
        if num_frames < 1 or (num_frames - 1) % self.vae.config.temporal_compression_ratio:
            raise InputError(f"num_frames={num_frames} is not 1 + 4k: give such as {num_frames // 4 * 4 + 1}")
        if height % unit or width % unit:
            raise InputError(f"{height}x{width} are not multiples of {unit} pixels: resize the image")
        native = (config.sample_height * ratio, config.sample_width * ratio)
        if config.use_learned and (height, width) != native:
            raise InputError(f"{height}x{width} pixels: this model's positions are for {native[0]}x{native[1]} only")
