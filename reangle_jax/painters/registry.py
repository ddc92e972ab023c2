"""The models that `config.first_frames.model` may name, known before anything is loaded."""

import dataclasses
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reangle_jax.painters.interface import Painter


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model.

    Attributes:
        multiple: of pixels, that height and width must be.
        parts: folders of its weights, and the class of the config.json in each.
        painter: the class, or where it is, ``module:Class``: imported when it is first asked for.
        edits: whether it can edit pictures too, and not only fill holes.
    """

    multiple: int
    parts: Mapping[str, str]
    painter: "type[Painter] | str"
    edits: bool = True

    def load(self) -> "type[Painter]":
        """The class."""
        return pkgutil.resolve_name(self.painter) if isinstance(self.painter, str) else self.painter


_FLUX = "reangle_jax.painters.flux.painter:FluxPainter"
_SHARED = {
    "transformer": "FluxConfig",
    "vae": "AutoencoderConfig",
    "text_encoder": "CLIPConfig",
    "text_encoder_2": "T5Config",
}
ENTRIES: dict[str, Entry] = {
    "flux.1-dev": Entry(16, {**_SHARED, "controlnet": "ControlNetConfig"}, _FLUX),
    "flux.1-fill-dev": Entry(16, _SHARED, _FLUX, edits=False),
    # The small family's autoencoder makes 4x4 pixels a cell; patches are 2x2 cells in all of them.
    "tiny": Entry(
        8,
        {
            "flux_transformer": "FluxConfig",
            "flux_controlnet": "ControlNetConfig",
            "flux_autoencoder": "AutoencoderConfig",
            "text_encoder": "T5Config",
        },
        _FLUX,
    ),
}
"""What each name means; one that is added here may be named too."""
