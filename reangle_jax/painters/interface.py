"""What the stages ask of a picture model: it paints what a warped picture lacks, and edits pictures by a text.

Like a video model (`reangle_jax.backbones.interface`) it knows its files and sizes and holds no parameters: they are
loaded by the methods that say so and handed back to those that use them. What candidates are chosen by is the caller's:
a painter knows nothing of scores.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from reangle_jax.arrays import Picture
from reangle_jax.needs import ALONE, Needs, Shares
from reangle_jax.nn.choices import AUTO, Choice


class Painting(NamedTuple):
    """How a picture is painted.

    Attributes:
        steps: from noise to the picture.
        guidance_scale: the model's own guidance.
        control_scale: how strongly a ControlNet holds to what is known; models without one do not use it.
        candidates: next states, S, that a choosing step draws; 1 chooses nothing, nor does any without a reward.
        eta: strength of the candidates' noise, 0 to 1.
        noise: its form, one of `reangle_jax.diffusion.flow.NOISES`.
        window: the share of the steps that choose, from and to, of 0 to 1; see `reangle_jax.diffusion.control`.
        every: of these, each k-th.
        reimpose: whether what is known is put back into the latents at every step.
        infill: whether the picture has its holes filled, and the model is shown that filling where it is otherwise
            shown its own colour of holes.
        strength: the share of noise, over the filled picture, that painting begins with; 1: nothing but noise.
        fewest: candidates of the last step that chooses, to which S falls evenly; 0 keeps S.
    """

    steps: int
    guidance_scale: float
    control_scale: float
    candidates: int
    eta: float
    noise: str
    window: tuple[float, float]
    every: int
    reimpose: bool
    infill: bool = False
    strength: float = 1.0
    fewest: int = 0


class Editing(NamedTuple):
    """How a picture is edited (FlowEdit); the more of the steps are skipped, at the beginning, the less changes.

    Guidance is towards the edit's text, and by the one that says what the picture shows.
    """

    steps: int
    skip: int
    guidance_scale: float
    source_guidance_scale: float


class Reward(NamedTuple):
    """What candidates are chosen by.

    Attributes:
        scores: ``(arguments, images [S, H, W, 3] of values 0 to 1) -> [S, K]``, traced; their sum over K decides, the
            more, the better. A program is compiled for each function object: make it once.
        arguments: arrays that it reads, of the same shapes for all pictures: one program serves them all.
    """

    scores: Callable[[Any, Float[Array, "S H W 3"]], Float[Array, "S K"]]
    arguments: Any


class Chosen(NamedTuple):
    """A step that chose, by its number from 0: every candidate's scores, and the one kept, first of the largest sum."""

    step: int
    scores: Float[np.ndarray, "S K"]
    kept: int


@dataclasses.dataclass(frozen=True)
class Painter(abc.ABC):
    """A picture model for pictures of one size.

    Attributes:
        name: of the model, as `config.first_frames.model` has it.
        folders: of its parts' weights, by the names that its entry in `registry` has.
        size: rows and columns of the pictures, multiples of the entry's.
        choice: how the networks are computed.
        base_dtype: how the parameters of what predicts are kept: bfloat16, int8, or as they are stored (auto).
    """

    name: str
    folders: Mapping[str, Path]
    size: tuple[int, int]
    choice: Choice = AUTO
    base_dtype: str = "auto"

    # Before any work.

    @abc.abstractmethod
    def check(self, part: str, fields: Mapping[str, Any]) -> None:
        """Refuses a part whose config.json, ``fields``, is another model's.

        Raises:
            InputError: it is.
        """

    @abc.abstractmethod
    def needs(self, painting: Painting, editing: Editing, shares: Shares = ALONE) -> dict[str, Needs]:
        """What one picture of ``first_frames`` needs, and one of ``first_warps``, the edited one, if it can edit.

        Of one of the devices that divide it. Without weights, of the published model. The reward's networks and work
        are not in it.
        """

    # Loading. All raise InputError, which names the setting, where a folder is damaged or holds another model.

    @abc.abstractmethod
    def embed(self, prompts: Sequence[str]) -> Any:
        """Embeddings of prompts, on the host; the text encoders are loaded and dropped again."""

    @abc.abstractmethod
    def load(self, *, to_edit: bool = False) -> Any:
        """The parameters of the networks that `paint` uses, or only of those that `edit` does; no text encoder's."""

    # Computing.

    @abc.abstractmethod
    def paint(
        self,
        networks: Any,
        text: Any,
        picture: Picture,
        visible: Bool[np.ndarray, "H W"],
        how: Painting,
        *,
        key: Array,
        reward: Reward | None,
        saved: Mapping[str, np.ndarray] | None = None,
        on_step: Callable[[Mapping[str, np.ndarray], Chosen | None], None],
    ) -> Float[np.ndarray, "H W 3"]:
        """Paints a picture whose known pixels are given. They come back changed a little: the caller pastes them back.

        Args:
            networks: from `load`.
            text: from `embed`, of one prompt.
            picture: what is known, of the painter's size; elsewhere the filling, or anything without ``how.infill``.
            visible: where it is known.
            how: the options.
            key: of all randomness.
            reward: what candidates are chosen by; None chooses nothing.
            saved: what ``on_step`` was last given, to go on after that step; the other arguments are the same as then.
            on_step: called after every step with what `saved` takes, and with what the step chose, if it did.

        Returns:
            The picture, values 0 to 1.
        """

    @abc.abstractmethod
    def edit(
        self, networks: Any, text: Any, picture: Picture, how: Editing, *, key: Array, on_step: Callable[[], None]
    ) -> Float[np.ndarray, "H W 3"]:
        """Edits a picture of the painter's size, values 0 to 1.

        The text is of two prompts: what the picture shows, and what it shall show; ``on_step`` is called after every
        step that is taken.
        """
