"""Sizes of FLUX's picture autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder; the defaults are those of FLUX.1.

    Raises:
        ValueError: the groups do not divide a width.
    """

    # Width at each resolution, finest first; every step but the last halves height and width.
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2  # residual blocks per resolution in the encoder; the decoder has one more
    latent_channels: int = 16  # channels of a latent
    in_channels: int = 3  # channels of a picture
    norm_num_groups: int = 32  # groups of every normalisation; divides all widths
    # What brings latents, less the shift, to about unit variance for the diffusion model.
    scaling_factor: float = 0.3611
    # What is taken off latents before they are scaled.
    shift_factor: float = dataclasses.field(default=0.1159, metadata={"signed": True})
    param_dtype: str = "float32"  # what is stored

    def __post_init__(self):
        bad = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if bad:
            raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide block_out_channels {bad}")

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent cell along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def flux1(cls) -> "AutoencoderConfig":
        """The published autoencoder of FLUX.1-dev and FLUX.1-Fill-dev."""
        return cls()

    @classmethod
    def tiny(cls) -> "AutoencoderConfig":
        """The project's own small autoencoder: 4x4 pixels to a cell, at a fraction of the width and depth."""
        return cls(
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,
            shift_factor=0.0,
        )
