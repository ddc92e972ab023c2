"""Sizes of DINO (Caron et al., 2021, arXiv 2104.14294) and FeatUp (Fu et al., 2024, arXiv 2403.10516)."""

import dataclasses

from reangle_jax.nn.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class DinoConfig(ViTConfig):
    """A `ViTConfig` that is DINO's unless told otherwise: patches of 16, squares of 224 pixels, no LayerScale.

    The network is `reangle_jax.nn.vit.VisionTransformer`; DINOv2 is the same with LayerScale and patches of 14.
    """

    patch_size: int = 16
    native_grid: int = 14
    layer_scale: bool = False

    @classmethod
    def vits16(cls) -> "DinoConfig":
        """DINO ViT-S/16, 21.7 million parameters; with FeatUp's upsampler 21.8."""
        return cls(width=384, depth=12, heads=6)

    @classmethod
    def dinov2(cls, width: int, depth: int, heads: int) -> "DinoConfig":
        """DINOv2 (Oquab et al., 2023, arXiv 2304.07193) without registers: S has 22, B 87, L 304 million parameters."""
        return cls(width, depth, heads, patch_size=14, native_grid=37, layer_scale=True)

    @classmethod
    def tiny(cls) -> "DinoConfig":
        """The small family's: 0.3 million parameters, for images of 128x192 pixels (16x24 patches of 8)."""
        return cls(width=64, depth=5, heads=2, patch_size=8, native_grid=20)


@dataclasses.dataclass(frozen=True)
class FeatUpConfig(DinoConfig):
    """A backbone's numbers and those of the upsampler behind it."""

    key_width: int = 32  # channels in which colours are compared
    radius: int = 3  # of the neighbourhood that each pixel is averaged over, pixels
    # How many times the features are doubled; ``patch_size = 2**stages`` reaches the image's resolution.
    stages: int = 4
    # Whether features are normalised over channels before they are upsampled, as the published ``use_norm=True``
    # weights want.
    use_norm: bool = True

    @classmethod
    def tiny(cls) -> "FeatUpConfig":
        """The small family's: `DinoConfig.tiny` and three doublings, 0.3 million parameters."""
        return cls(width=64, depth=5, heads=2, patch_size=8, native_grid=20, stages=3)
