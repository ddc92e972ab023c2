"""The models that `config.model` may name: their latent grid and their parts, known before anything is loaded."""

import dataclasses
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from reangle_jax.backbones.interface import Backbone


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a clip lies on a model's latent grid: the first frame alone, then groups of frames, each cell a square."""

    frames: int  # of the video in one latent frame, after the first
    pixels: int  # along a side of a latent's cell
    multiple: int  # of pixels, that height and width must be

    def latents(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip."""
        return (num_frames - 1) // self.frames + 1, height // self.pixels, width // self.pixels


class Clip(NamedTuple):
    """The clips that a backbone is asked for; ``tiles`` says whether frames are coded in tiles: on, off or auto."""

    num_frames: int
    height: int
    width: int
    tiles: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model."""

    grid: Grid  # its latent grid
    # Folders of its weights, and the class of the config.json in each; the one that has adapters first.
    parts: Mapping[str, str]
    backbone: "type[Backbone] | str"  # the class, or where it is, ``module:Class``: imported when it is first asked for

    def load(self) -> "type[Backbone]":
        """The class."""
        return pkgutil.resolve_name(self.backbone) if isinstance(self.backbone, str) else self.backbone


_COGVIDEOX = Entry(
    Grid(frames=4, pixels=8, multiple=16),  # the autoencoder's 8 times the transformer's 2 x 2 patch
    {"transformer": "TransformerConfig", "vae": "VAEConfig", "text_encoder": "T5Config"},
    "reangle_jax.backbones.cogvideox.backbone:CogVideoXBackbone",
)
ENTRIES: dict[str, Entry] = {
    # Its autoencoder keeps finer latents, and its transformer takes 4 x 4 of them to a token: as many tokens.
    "tiny": dataclasses.replace(_COGVIDEOX, grid=Grid(frames=4, pixels=4, multiple=16)),
    "cogvideox-5b-i2v": _COGVIDEOX,
    "cogvideox1.5-5b-i2v": _COGVIDEOX,
}
"""What each name means; one that is added here may be named too."""
