"""What the score of first frames needs in memory and operations: arithmetic on the models' sizes, nothing is run.

Operations count two per multiply-add. Rendering, which multiplies little, is left out.
"""

from pathlib import Path

from reangle_jax import checkpoints
from reangle_jax.models.dino import FeatUpConfig
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.nn.dpt import FACTORS
from reangle_jax.nn.vit import ViTConfig
from reangle_jax.scoring import networks
from reangle_jax.scoring.agreement import compared_size

_KEPT = 6  # a candidate's features are there as often while it is compared


def of_choosing(folder: Path, height: int, width: int, finished: float, candidates: int) -> tuple[float, float]:
    """Bytes of the score's networks and of what is kept of pictures, and operations of scoring candidates.

    Each of so many candidates is compared with the finished pictures. The published networks count while the folder has
    none.
    """
    geometry = checkpoints.config_or(folder / networks.GEOMETRY, Dust3rConfig, lambda: Dust3rConfig.large("dpt", 512))
    name = networks.features_in(folder) or networks.PUBLISHED
    semantics = checkpoints.config_or(folder / name, networks.FEATURES[name][0], FeatUpConfig.vits16)
    rows, columns = compared_size(height, width, geometry.patch_size)
    kept = 4.0 * semantics.width * rows * columns * (finished + _KEPT)
    each = describing(geometry, semantics, rows, columns) + finished * comparing(geometry, rows, columns)
    weights = checkpoints.bytes_of(Dust3r, geometry) + checkpoints.bytes_of(networks.FEATURES[name][1], semantics)
    return weights + kept, candidates * each


def describing(geometry: Dust3rConfig, semantics: ViTConfig, rows: int, columns: int) -> float:
    """Operations of a picture's tokens and features, which are its own."""
    return _transformer(geometry.encoder, rows, columns) + _features(semantics, rows, columns)


def comparing(c: Dust3rConfig, rows: int, columns: int) -> float:
    """Operations of a pair's point maps, both ways: two decoders and heads each."""
    height, width = rows // c.patch_size, columns // c.patch_size
    tokens = height * width
    # A block attends twice, to its own tokens and to the other's.
    block = (16 + 4 * c.mlp_ratio) * c.decoder_width**2 * tokens + 8.0 * tokens**2 * c.decoder_width
    return 4 * (c.decoder_depth * block + 2 * c.encoder_width * c.decoder_width * tokens + _head(c, height, width))


def _transformer(c: ViTConfig, rows: int, columns: int) -> float:
    """Of a picture of at least one patch a side, as it is resized to whole patches."""
    height, width = (max(1, round(side / c.patch_size)) for side in (rows, columns))
    tokens = height * width
    block = (8 + 4 * c.mlp_ratio) * c.width**2 * tokens + 4.0 * tokens**2 * c.width
    return c.depth * block + 2 * 3 * c.patch_size**2 * c.width * tokens


def _features(c: ViTConfig, rows: int, columns: int) -> float:
    total = _transformer(c, rows, columns)
    if not isinstance(c, FeatUpConfig):
        return total
    height, width, taps = rows // c.patch_size, columns // c.patch_size, (2 * c.radius + 1) ** 2
    for _ in range(c.stages):
        total += _doubled(c.width, height, width)
        height, width = 2 * height, 2 * width
        likeness = 3 * c.key_width + c.key_width**2 + taps * c.key_width
        total += 2.0 * height * width * (likeness + (taps + 3) * taps + taps**2 + taps * c.width)
    return total + 2.0 * height * width * c.width**2


def _doubled(channels: int, height: float, width: float) -> float:
    """Of enlarging to twice the size, each axis by a matrix."""
    return 4.0 * channels * height * width * (height + 2 * width)


def _head(c: Dust3rConfig, height: int, width: int) -> float:
    """Of one head for one picture."""
    tokens = height * width
    if c.head == "linear":
        return 2.0 * c.decoder_width * 4 * c.patch_size**2 * tokens
    fused, total = c.fusion_width, 0.0
    sources = (c.encoder_width, *(c.decoder_width,) * 3)
    for source, neck, factor in zip(sources, c.neck_widths, FACTORS, strict=True):
        scale = factor or 0.5
        pixels = tokens * scale**2
        total += 2 * source * neck * tokens
        total += 2 * 9 * neck**2 * pixels if factor is None else 2 * neck**2 * pixels * (factor > 1)
        total += 2 * 9 * neck * fused * pixels
        # Two residual convolutions, two more where a level is added, and a projection.
        total += (2 if factor is None else 4) * 2 * 9 * fused**2 * pixels + 2 * fused**2 * pixels
        total += _doubled(fused, height * scale, width * scale)
    total += _doubled(c.head_width, 8 * height, 8 * width)
    total += 2 * 9 * fused * c.head_width * 64 * tokens
    total += 2 * (9 * c.head_width**2 + 4 * c.head_width) * 256 * tokens
    if c.head == "mast3r":
        both = c.encoder_width + c.decoder_width
        total += 2 * 4 * both * (both + (c.descriptor_width + 1) * c.patch_size**2) * tokens
    return total
