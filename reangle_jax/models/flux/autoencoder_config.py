"""Sizes of FLUX's picture autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder; the defaults are those of FLUX.1.

    Attributes:
        block_out_channels: width at each resolution, finest first; every step but the last halves height and width.
        layers_per_block: residual blocks per resolution in the encoder; the decoder has one more.
        latent_channels: channels of a latent.
        in_channels: channels of a picture.
        norm_num_groups: groups of every normalisation; divides all widths.
        scaling_factor: what brings latents, less the shift, to about unit variance for the diffusion model.
        shift_factor: what is taken off latents before they are scaled.
        param_dtype: what is stored.

    Raises:
        ValueError: the groups do not divide a width.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    in_channels: int = 3
    norm_num_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float = dataclasses.field(default=0.1159, metadata={"signed": True})
    param_dtype: str = "float32"

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
