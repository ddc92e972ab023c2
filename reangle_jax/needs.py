"""What a unit of work needs of a device: what each model says of itself, and the plan adds up."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a unit of work needs: bytes of device memory in each of its phases, all that is there at once, and `flops`.

    Those are two for a multiply-add.
    """

    phases: dict[str, float]
    flops: float

    @property
    def peak_bytes(self) -> float:
        """The most device memory of any phase."""
        return max(self.phases.values())


class Shares(NamedTuple):
    """Over how many devices work is divided, of which one's share is counted (`reangle_jax.mesh.shares`)."""

    videos: int = 1  # of a batch
    rows: int = 1  # of frames
    columns: int = 1  # of frames
    base_whole: bool = False  # whether each device has a denoiser's frozen parameters whole

    @property
    def video(self) -> int:
        """Devices that divide one video: its tokens, and the parameters."""
        return self.rows * self.columns

    @property
    def all(self) -> int:
        """How many devices there are."""
        return self.videos * self.video

    def of_batch(self, count: int) -> int:
        """How many of a batch a device has: all of one that does not divide evenly."""
        return count if count % self.videos else count // self.videos

    def faster(self, count: int, at_once: int, passes: int = 1) -> float:
        """How many times as fast as one device all of them work on videos.

        Args:
            count: of the videos.
            at_once: how many of them lie beside each other.
            passes: of each, which count as videos, too: guidance's two.
        """
        rounds = -(-count // at_once)
        return count * passes * self.video / (rounds * self.of_batch(at_once * passes))

    def of_base(self, size: float, *, whole: float = 0.0, copied: float = 1.0, beside: float) -> float:
        """Bytes of a denoiser's frozen parameters on a device.

        Args:
            size: of all.
            whole: of those that are divided nowhere.
            copied: how often a device's share of the others is there.
            beside: of blocks that are gathered beside the divided ones.
        """
        if self.base_whole or self.video == 1:
            return size
        return whole + copied * (size - whole) / self.video + beside


ALONE = Shares()
_REACH = 2  # rows or columns that a convolution's window reaches over, from both neighbours together


def coded_pixels(levels: Sequence[tuple[float, int]], height: int, width: int, shares: Shares) -> float:
    """Pixels of a frame that a device holds while an autoencoder codes it, in pixels of the finest resolution.

    Rows and columns are divided at each resolution that has a multiple of the devices' number.

    Args:
        levels: how large a pixel of each resolution is, the finest's being 1, and how often it was halved.
        height: of the frame.
        width: of the frame.
        shares: of the devices.

    Returns:
        Of the resolution where this is the most.
    """

    def held(length: int, ways: int) -> float:
        return length if ways == 1 or length % ways else length / ways + _REACH

    return max(size * held(height >> n, shares.rows) * held(width >> n, shares.columns) for size, n in levels)
