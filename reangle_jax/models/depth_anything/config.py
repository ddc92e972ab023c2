"""Sizes of Depth Anything V2 (Yang et al., 2024, arXiv 2406.09414)."""

import dataclasses

from reangle_jax.nn.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class DepthAnythingConfig:
    """Every number of the network; flat, so that it can be kept as JSON beside the weights."""

    width: int  # the backbone's token width
    depth: int  # its blocks
    heads: int  # its attention heads
    taps: tuple[int, int, int, int]  # which blocks' outputs (counted from 1) feed the head, shallow to deep
    neck_widths: tuple[int, int, int, int]  # channels of the four levels before fusion
    fusion_width: int  # channels while fusing
    head_width: int = 32  # channels before the last convolution
    patch_size: int = 14  # pixels per token and side
    native_grid: int = 37  # tokens per side that the position table was made for
    # None for relative inverse depth; else metres at which the metric variants saturate, 20 of the indoor weights, 80
    # of the outdoor ones.
    max_depth: float | None = None
    pos_interpolation: str = "authors"  # how the position table is resized: `ViTConfig` says
    param_dtype: str = "float32"  # what is stored

    @property
    def short_side(self) -> int:
        """The frame's shorter side that the network is made for, pixels."""
        return self.patch_size * self.native_grid

    @property
    def backbone(self) -> ViTConfig:
        """The backbone's part."""
        return ViTConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch_size=self.patch_size,
            native_grid=self.native_grid,
            pos_interpolation=self.pos_interpolation,
            param_dtype=self.param_dtype,
        )

    @classmethod
    def small(cls) -> "DepthAnythingConfig":
        """ViT-S, 24.8 million parameters."""
        return cls(width=384, depth=12, heads=6, taps=(3, 6, 9, 12), neck_widths=(48, 96, 192, 384), fusion_width=64)

    @classmethod
    def base(cls) -> "DepthAnythingConfig":
        """ViT-B, 97.5 million parameters."""
        return cls(width=768, depth=12, heads=12, taps=(3, 6, 9, 12), neck_widths=(96, 192, 384, 768), fusion_width=128)

    @classmethod
    def large(cls) -> "DepthAnythingConfig":
        """ViT-L, 335.3 million parameters: the method's default."""
        return cls(
            width=1024,
            depth=24,
            heads=16,
            taps=(5, 12, 18, 24),
            neck_widths=(256, 512, 1024, 1024),
            fusion_width=256,
        )

    @classmethod
    def tiny(cls) -> "DepthAnythingConfig":
        """The small family's first: 1.3 million parameters, short side 126; trained by `training.train_depth`."""
        return cls(
            width=96,
            depth=8,
            heads=3,
            taps=(2, 4, 6, 8),
            neck_widths=(24, 48, 96, 96),
            fusion_width=32,
            head_width=16,
            native_grid=9,
        )
