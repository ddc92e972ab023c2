"""Sizes of I3D (Carreira and Zisserman, 2017, arXiv 1705.07750)."""

import dataclasses

Mixed = tuple[int, int, int, int, int, int]
# Widths of an Inception module: 1x1; 1x1 then 3x3; 1x1 then 3x3; 1x1 behind a pool.
_MIXED: tuple[tuple[Mixed, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


@dataclasses.dataclass(frozen=True)
class I3DConfig:
    """Every number of the network."""

    stem: tuple[int, int, int] = (64, 64, 192)  # widths of the first three convolutions
    # Widths of the Inception modules, by the resolution at which they work.
    mixed: tuple[tuple[Mixed, ...], ...] = _MIXED
    classes: int = 400  # of Kinetics
    epsilon: float = 1e-3  # of the batch norms
    param_dtype: str = "float32"  # what is stored

    def __post_init__(self):
        # As JSON reads them.
        object.__setattr__(self, "stem", tuple(self.stem))
        object.__setattr__(self, "mixed", tuple(tuple(tuple(m) for m in group) for group in self.mixed))
        if len(self.mixed) != 3:
            raise ValueError(f"mixed has {len(self.mixed)} groups: it must have three, a pool before each")

    @classmethod
    def kinetics400(cls) -> "I3DConfig":
        """DeepMind's of RGB, trained on Kinetics-400: 12.7 million parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> "I3DConfig":
        """Fewer modules, a few channels wide: for tests."""
        narrow: Mixed = (2, 3, 4, 1, 2, 1)
        return cls(stem=(3, 4, 5), mixed=((narrow,), (narrow,) * 2, (narrow,)), classes=7)
