"""What the stages ask of a video model: all that differs between families is behind these methods.

A backbone knows the model's files and sizes and holds no parameters: they are loaded by the methods that say so, each
network when it is needed, and handed back to the methods that use them. Those that compute can be traced by jax.jit.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8

from reangle_jax.arrays import AnyArray
from reangle_jax.backbones import registry
from reangle_jax.needs import ALONE, Needs, Shares
from reangle_jax.nn.choices import AUTO, Choice


class Demand(NamedTuple):
    """How much is asked of a backbone: steps of fine-tuning and of sampling one video, videos of a batch and in all.

    ``guided`` says whether two passes are made at each step of sampling, ``variants`` how many of the adapters are in
    memory at once then; ``training`` and ``sampling`` are the devices that divide each.
    """

    steps: int
    batch_size: int
    videos: int
    sampling_steps: int
    guided: bool
    variants: int
    training: Shares = ALONE
    sampling: Shares = ALONE


class Sampling(NamedTuple):
    """How videos are sampled."""

    steps: int  # of denoising
    guidance_scale: float  # classifier-free guidance; 1 and less is none
    dynamic_guidance: bool  # the guidance follows a cosine over the steps
    sampler: str  # one that the family knows


@runtime_checkable
class Sampler(Protocol):
    """A video from its noise, in steps; each is compiled once for all videos, whose key goes to the first two methods.

    What goes into the denoiser is in its dtype. An autoencoder that only conditions may be without its decoder.
    """

    steps: int

    def condition(self, coder: Any, image: UInt8[AnyArray, "B H W 3"], *, key: Array) -> Float[Array, "B t h w C"]:
        """First frames, encoded as the model is conditioned on them; a part of the key draws from their posterior."""
        ...

    def noise(self, size: tuple[int, int, int], *, key: Array) -> Float[Array, "B t h w C"]:
        """The noise to begin with; of so many videos, rows and columns of pixels."""
        ...

    def denoise(
        self,
        lora: Any,
        base: Any,
        noise: Float[Array, "B t h w C"],
        condition: Float[Array, "B t h w C"] | None,
        text: Float[AnyArray, "B L D"],
        negative: Float[AnyArray, "B L D"] | None,
        *,
        key: Array,
        on_step: Callable[[], None],
    ) -> Float[Array, "B t h w C"]:
        """All steps from noise to clean latents; ``on_step`` is called after each.

        Args:
            lora: the denoiser's adapters; an empty state without any.
            base: its other parameters.
            noise: from ``noise``.
            condition: from ``condition``; None for text to video.
            text: embeddings of the prompts.
            negative: those that guidance leads away from, usually of the empty text; None will do without guidance.
            key: of the noise that a sampler adds; or a key for each video, which then is as it would be alone.
            on_step: called after each step.
        """
        ...

    def decode(self, coder: Any, latents: Float[Array, "B t h w C"]) -> UInt8[Array, "B T H W 3"]:
        """Frames of clean latents."""
        ...


@dataclasses.dataclass(frozen=True)
class Backbone(abc.ABC):
    """A video model for clips of one size, with room for adapters."""

    name: str  # of the model, as `config.model` has it
    folders: Mapping[str, Path]  # of its parts' weights
    clip: registry.Clip  # the clips' size
    rank: int  # of the adapters
    alpha: float  # their strength
    choice: Choice = AUTO  # how the networks are computed
    # How the denoiser's frozen parameters are kept: bfloat16, int8, or as they are stored (auto).
    base_dtype: str = "auto"

    @property
    def grid(self) -> registry.Grid:
        """How clips lie on the latent grid."""
        return registry.ENTRIES[self.name].grid

    @property
    @abc.abstractmethod
    def dtype(self) -> str:
        """What the denoiser computes in."""

    @property
    def front(self) -> int:
        """Latent frames that fill up a clip at its front: copies of its first in training, dropped after sampling."""
        return 0

    # Before any work.

    @abc.abstractmethod
    def base_bytes(self) -> int:
        """Bytes of the denoiser's frozen parameters."""

    @abc.abstractmethod
    def check(self, part: str, fields: Mapping[str, Any]) -> None:
        """Refuses a part whose config.json, ``fields``, is another model's, or does not fit the clips.

        Raises:
            InputError: it does not fit.
        """

    @abc.abstractmethod
    def check_adapters(self, file: Path) -> None:
        """Refuses a LoRA that does not fit the model, by its header.

        Raises:
            InputError: it does not fit.
        """

    @abc.abstractmethod
    def needs(self, demand: Demand) -> dict[str, Needs]:
        """What a unit of ``finetune`` and of ``generate`` needs of a device; without weights, the published model's."""

    # Loading. All raise InputError, which names the setting, where a folder is damaged or holds another model.

    @abc.abstractmethod
    def embed(self, prompts: Sequence[str]) -> Float[np.ndarray, "N L D"]:
        """Embeddings of prompts, on the host; the text encoder is loaded and dropped again."""

    @abc.abstractmethod
    def load_coder(self, *, decodes: bool = True) -> Any:
        """The autoencoder's parameters; without its decoder's where nothing is to be decoded."""

    @abc.abstractmethod
    def load_denoiser(self) -> Any:
        """The frozen parameters of the denoiser, without adapters."""

    @abc.abstractmethod
    def init_adapters(self, *, key: Array) -> nnx.State:
        """Fresh adapters, which change nothing yet."""

    @abc.abstractmethod
    def save_adapters(self, folder: Path, adapters: nnx.State) -> None:
        """Writes a run's lora/: the state, and lora.safetensors for others to read."""

    @abc.abstractmethod
    def load_adapters(self, folder: Path | None, given: Sequence[tuple[Path, float]]) -> tuple["Backbone", nnx.State]:
        """What was learnt, in a run's lora/ (or nothing), joined with files of LoRAs at their weights.

        Returns it with the backbone that has room for all of it.
        """

    # Computing.

    @abc.abstractmethod
    def encode(
        self, coder: Any, video: UInt8[Array, "B T H W 3"]
    ) -> tuple[Float[Array, "B t h w C"], Float[Array, "B t h w C"]]:
        """Mean and log variance of a video's latents."""

    @abc.abstractmethod
    def draw(
        self, mean: Float[Array, "B t h w C"], logvar: Float[Array, "B t h w C"], *, key: Array
    ) -> Float[Array, "B t h w C"]:
        """Latents from their posterior, at the denoiser's scale."""

    @abc.abstractmethod
    def condition(self, coder: Any, image: Float[Array, "B H W 3"], *, key: Array) -> Float[Array, "B t h w C"]:
        """First frames in [-1, 1] as the denoiser is conditioned on them, for clips filled up at their front."""

    @abc.abstractmethod
    def times(self, batch: int, *, key: Array) -> Shaped[Array, " B"]:
        """Times of training, drawn alike; the later, the noisier."""

    @abc.abstractmethod
    def noised(
        self, z: Float[Array, "B t h w C"], eps: Float[Array, "B t h w C"], t: Shaped[Array, " B"]
    ) -> tuple[Float[Array, "B t h w C"], Float[Array, "B t h w C"]]:
        """Latents noised as at a time, and what the denoiser is to predict of them."""

    @abc.abstractmethod
    def predict(
        self,
        adapters: Any,
        base: Any,
        noised: Float[Array, "B t h w C"],
        condition: Float[Array, "B t h w C"],
        text: Float[Array, "B L D"],
        t: Shaped[Array, " B"],
    ) -> Float[Array, "B t h w C"]:
        """The denoiser's prediction, computed in its own dtype."""

    @abc.abstractmethod
    def sampler(self, options: Sampling) -> Sampler:
        """Sampling of clips.

        Raises:
            InputError: the family has no such sampler, or cannot take so many steps.
        """
