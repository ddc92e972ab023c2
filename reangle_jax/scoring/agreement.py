"""Whether pictures of one moment agree, as first frames are chosen by it: MEt3R of whole frames, at a modest size."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from reangle_jax.data.weights_folder import check_whole, read_config
from reangle_jax.errors import InputError
from reangle_jax.scoring import networks, video
from reangle_jax.scoring.met3r import Described, Met3r, pad_views

SHORT_SIDE = 256  # pixels at most of what is compared, as MEt3R is published; the frame's proportions are kept


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The score of pictures of one size, which are compared at another: by MEt3R's networks and their parameters."""

    metric: Met3r
    states: tuple[Any, Any]
    size: tuple[int, int]

    @classmethod
    def load(cls, folder: Path, height: int, width: int) -> "Agreement":
        """The score of pictures of height x width; see `check` for its networks."""
        metric, states = networks.load(folder, features(folder))
        return cls(metric, states, compared_size(height, width, networks.patch_multiple(metric, states)))

    def resized(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w 3"]:
        """Pictures of any size at the one at which they are compared, averaged where they shrink."""
        return _resized(images, self.size)

    def describe(self, pictures: UInt8[np.ndarray, "K H W 3"], room: int) -> Described:
        """What is kept of finished pictures, with room for some more."""
        parts = [video.describe(self.metric, self.states, jnp.asarray(image)) for image in self._small(pictures)]
        return pad_views(jax.tree.map(lambda *x: jnp.concatenate(x), *parts), room)

    def similarity(
        self, states: tuple[Any, Any], candidates: Float[Array, "S H W 3"], finished: Described, count: Int[Array, ""]
    ) -> Float[Array, "S K"]:
        """1 - MEt3R of candidates, values 0 to 1, with the first `count` finished pictures; 0 with what shares nothing.

        Traced: see `Met3r.against`.
        """
        met3r = self.metric.against(states, self.resized(candidates), finished, count)
        return jnp.where(jnp.isnan(met3r), 0.0, 1.0 - met3r)

    def with_finished(
        self, picture: UInt8[np.ndarray, "H W 3"], finished: UInt8[np.ndarray, "K H W 3"]
    ) -> list[float | None]:
        """MEt3R of a picture with others; None where they have nothing in common."""
        pairs = [(0, number) for number in range(1, 1 + len(finished))]
        images = self._small([picture, *finished])
        return [pair.met3r for pair in video.score_views(self.metric, self.states, images, pairs=pairs)]

    def pairs(self, pictures: list[UInt8[np.ndarray, "H W 3"]]) -> list[video.PairScore]:
        """MEt3R of all pairs."""
        return list(video.score_views(self.metric, self.states, self._small(pictures)))

    def _small(self, pictures: Iterable[UInt8[np.ndarray, "H W 3"]]) -> list[UInt8[np.ndarray, "h w 3"]]:
        return [np.asarray(_small(jnp.asarray(picture), self.size)) for picture in pictures]


def _resized(images: Float[Array, "B H W 3"], size: tuple[int, int]) -> Float[Array, "B h w 3"]:
    shape = (len(images), *size, 3)
    return images if images.shape == shape else jax.image.resize(images, shape, "linear", antialias=True)


@functools.partial(jax.jit, static_argnums=1)
def _small(picture: UInt8[Array, "H W 3"], size: tuple[int, int]) -> UInt8[Array, "h w 3"]:
    shown = _resized(picture[None].astype(jnp.float32), size)[0]
    return jnp.clip(jnp.round(shown), 0.0, 255.0).astype(jnp.uint8)


def compared_size(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns at which pictures are compared: multiples of a patch."""
    scale = min(1.0, SHORT_SIDE / min(height, width))
    rows, columns = (max(patch, round(side * scale / patch) * patch) for side in (height, width))
    return rows, columns


def features(folder: Path) -> str:
    """Which feature network lies in a folder of weights.

    Raises:
        InputError: none does.
    """
    found = networks.features_in(folder)
    if found is None:
        raise InputError(
            f"{folder} holds no {' or '.join(networks.FEATURES)}/: the score, which makes the first frames "
            "agree, needs one (`python -m converters --list`)"
        )
    return found


def check(folder: Path) -> None:
    """Refuses a folder without the score's networks, by their headers.

    Raises:
        InputError: one is missing, damaged or of another kind.
    """
    if not (folder / networks.GEOMETRY).is_dir():
        raise InputError(
            f"{folder / networks.GEOMETRY} is missing: the score, which makes the first frames agree, needs it "
            "(`python -m converters --list`)"
        )
    name = features(folder)
    for part, kind in ((networks.GEOMETRY, "Dust3rConfig"), (name, networks.FEATURES[name][0].__name__)):
        found = read_config(folder / part).get("class")
        if found != kind:
            raise InputError(f"{folder / part} holds {found}, not {kind}: give its folder")
        check_whole(folder / part)


def there(folder: Path) -> bool:
    """Whether a folder of weights has any network of the score's: without candidates to choose among none is needed."""
    return (folder / networks.GEOMETRY).is_dir() or networks.features_in(folder) is not None


def parts(folder: Path) -> tuple[tuple[str, Path], ...]:
    """Name and folder of each of the score's networks; of the features' the one that is there, as in `features`."""
    name = networks.features_in(folder) or networks.PUBLISHED
    return tuple((part, folder / part) for part in (networks.GEOMETRY, name))
