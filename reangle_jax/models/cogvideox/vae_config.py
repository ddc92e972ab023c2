"""Sizes of the CogVideoX video autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; the defaults are those of CogVideoX-5B and 5B-I2V."""

    # Width at each resolution, finest first; every step but the last halves height and width.
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3  # residual blocks per resolution in the encoder; the decoder has one more
    latent_channels: int = 16  # channels of a latent
    in_channels: int = 3  # channels of a frame
    norm_num_groups: int = 32  # groups of every normalisation; divides all widths
    temporal_compression_ratio: int = 4  # frames per latent, a power of two
    sample_height: int = 480  # native frame height in pixels
    sample_width: int = 720  # native frame width in pixels
    scaling_factor: float = 0.7  # what brings latents to about unit variance for the diffusion model
    invert_scale_latents: bool = False  # the image latent is divided by the factor, not multiplied (CogVideoX 1.5)
    # Rows and columns, in pixels, of the tiles that larger frames are coded in (:meth:`tiled`); None codes whole
    # frames. Other tiles give slightly other values.
    tile_sample: tuple[int, int] | None = None
    tile_overlap: tuple[float, float] = (1 / 6, 1 / 5)  # share of a tile's rows and columns that overlaps its neighbour
    param_dtype: str = "float32"  # what is stored

    def __post_init__(self):
        bad = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if bad:
            raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide block_out_channels {bad}")
        ratio = self.temporal_compression_ratio
        if ratio < 1 or ratio & (ratio - 1) or ratio > self.spatial_compression_ratio:
            raise ValueError(
                f"temporal_compression_ratio {ratio} is not a power of two up to {self.spatial_compression_ratio}"
            )
        for pixels, overlap in zip(self.tile_sample or (), self.tile_overlap, strict=False):
            latents = pixels // self.spatial_compression_ratio
            steps = (int(pixels * (1 - overlap)), int(latents * (1 - overlap)) * self.spatial_compression_ratio)
            kept = (pixels - int(pixels * overlap), (latents - int(latents * overlap)) * self.spatial_compression_ratio)
            # The published code rounds each of the four on its own and loses rows where they come apart.
            if not 0 <= overlap < 1 or len({*steps, *kept}) > 1 or steps[0] == 0:
                raise ValueError(
                    f"tiles of {pixels} pixels with an overlap of {overlap:g} do not fall on whole latents: make tile "
                    f"and overlap multiples of {self.spatial_compression_ratio} pixels"
                )

    def tiled(
        self, tile_sample: tuple[int, int] | None = None, tile_overlap: tuple[float, float] | None = None
    ) -> "VAEConfig":
        """The same coded in tiles, as diffusers' ``enable_tiling`` does.

        Tiles have so many rows and columns of pixels, half of the native size if not given; the overlap is the share of
        a tile, by rows and columns.

        Raises:
            ValueError: tiles or overlaps that are not whole latents.
        """
        return dataclasses.replace(
            self,
            tile_sample=tile_sample or (self.sample_height // 2, self.sample_width // 2),
            tile_overlap=tile_overlap or self.tile_overlap,
        )

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent cell along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def tiny(cls) -> "VAEConfig":
        """The project's own small autoencoder: 4x4x4 and 12 latent channels, at a fraction of the width."""
        return cls(
            block_out_channels=(16, 32, 48),
            layers_per_block=1,
            latent_channels=12,
            norm_num_groups=8,
            sample_height=64,
            sample_width=64,
        )
