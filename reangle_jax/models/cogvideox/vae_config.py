"""Sizes of the CogVideoX video autoencoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; the defaults are those of CogVideoX-5B.

    Attributes:
        block_out_channels: width at each resolution, finest first; every step but the last halves height and width.
        layers_per_block: residual blocks per resolution in the encoder; the decoder has one more.
        latent_channels: channels of a latent.
        in_channels: channels of a frame.
        norm_num_groups: groups of every normalisation; divides all widths.
        temporal_compression_ratio: frames per latent, a power of two.
        sample_height: native frame height in pixels.
        sample_width: native frame width in pixels.
        scaling_factor: what brings latents to about unit variance for the diffusion model.
        invert_scale_latents: the image latent is divided by the factor, not multiplied (CogVideoX 1.5).
        remat: recompute each residual block in the backward pass instead of keeping its activations.
        dtype: what is computed in.
        param_dtype: what is stored.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    latent_channels: int = 16
    in_channels: int = 3
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 0.7
    invert_scale_latents: bool = False
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        bad = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if bad:
            raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide block_out_channels {bad}")
        ratio = self.temporal_compression_ratio
        if ratio < 1 or ratio & (ratio - 1) or ratio > self.spatial_compression_ratio:
            raise ValueError(
                f"temporal_compression_ratio {ratio} is not a power of two up to {self.spatial_compression_ratio}"
            )

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent cell along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def frames_per_chunk(self) -> int:
        """Frames that are encoded at once; the first chunk takes the remainder too."""
        return 8

    @property
    def latents_per_chunk(self) -> int:
        """Latents that are decoded at once; the first chunk takes the remainder too."""
        return 2

    @classmethod
    def cogvideox_5b(cls) -> "VAEConfig":
        """The published autoencoder of CogVideoX-5B and CogVideoX-5B-I2V."""
        return cls()

    @classmethod
    def cogvideox1_5_5b(cls) -> "VAEConfig":
        """The same tensors with CogVideoX 1.5's way of scaling the image latent."""
        return cls(invert_scale_latents=True)

    @classmethod
    def tiny(cls) -> "VAEConfig":
        """The project's own small autoencoder: the same compression and latent channels at a fraction of the width."""
        return cls(
            block_out_channels=(16, 32, 48, 64),
            layers_per_block=1,
            norm_num_groups=8,
            sample_height=64,
            sample_width=64,
        )
