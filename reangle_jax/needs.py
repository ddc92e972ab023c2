"""What a unit of work needs of a device: what each model says of itself, and the plan adds up."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a unit of work needs.

    Attributes:
        phases: device memory of each of its phases, bytes: everything that is there at once.
        flops: operations, two for a multiply-add.
    """

    phases: dict[str, float]
    flops: float

    @property
    def peak_bytes(self) -> float:
        """The most device memory of any phase."""
        return max(self.phases.values())
