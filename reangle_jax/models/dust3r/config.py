"""Sizes of DUSt3R (Wang et al., 2023, arXiv 2312.14132) and MASt3R (Leroy et al., 2024, arXiv 2406.09756)."""

import dataclasses

from reangle_jax.nn.vit import ViTConfig

HEADS = ("linear", "dpt", "mast3r")


@dataclasses.dataclass(frozen=True)
class Dust3rConfig:
    """Every number of the network; flat, so that it can be kept as JSON beside the weights."""

    encoder_width: int  # token width of the encoder that both images share
    encoder_depth: int  # its blocks
    encoder_heads: int  # its attention heads
    decoder_width: int  # token width of the two decoders
    decoder_depth: int  # the blocks of each
    decoder_heads: int  # the attention heads of each
    # ``linear`` (one projection per patch), ``dpt`` (convolutions over four levels) or ``mast3r`` (``dpt``, and a
    # perceptron for descriptors).
    head: str
    image_size: int  # the longer side that the network was trained at, pixels; 224 means squares of that size
    patch_size: int = 16  # pixels per token and side
    rope_theta: float = 100.0  # the longest wavelength of the rotary positions over 2 pi, in tokens
    # Add sines and cosines of each token's place in the picture before encoder and decoders, as the first CroCo does;
    # no published DUSt3R has it. Rotary positions tell tokens only how far apart they are: a large network finds out
    # from that where the picture ends, a small one does not.
    absolute_positions: bool = False
    # Channels of the dense head's four levels before fusion.
    neck_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    fusion_width: int = 256  # its channels while fusing
    head_width: int = 128  # its channels after the first convolution behind fusion
    descriptor_width: int = 24  # channels of MASt3R's descriptors
    mlp_ratio: int = 4  # hidden width of the feed-forward parts over the token width
    epsilon: float = 1e-6  # of the layer norms
    param_dtype: str = "float32"  # what is stored

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"head {self.head!r} is not one of {', '.join(HEADS)}")
        if self.head != "linear" and (self.patch_size != 16 or self.decoder_depth < 4):
            raise ValueError(f"head {self.head!r} needs patches of 16 pixels and 4 decoder blocks or more")

    @property
    def encoder(self) -> ViTConfig:
        """The encoder's blocks."""
        return self._blocks(self.encoder_width, self.encoder_depth, self.encoder_heads)

    @property
    def decoder(self) -> ViTConfig:
        """The blocks of each decoder."""
        return self._blocks(self.decoder_width, self.decoder_depth, self.decoder_heads)

    @property
    def taps(self) -> tuple[int, int, int]:
        """Which decoder blocks (counted from 1) feed the dense head, beside the encoder's output."""
        return self.decoder_depth * 2 // 4, self.decoder_depth * 3 // 4, self.decoder_depth

    def _blocks(self, width: int, depth: int, heads: int) -> ViTConfig:
        return ViTConfig(
            width=width,
            depth=depth,
            heads=heads,
            patch_size=self.patch_size,
            layer_scale=False,
            mlp_ratio=self.mlp_ratio,
            epsilon=self.epsilon,
            param_dtype=self.param_dtype,
        )

    @classmethod
    def large(cls, head: str, image_size: int) -> "Dust3rConfig":
        """A ViT-L encoder and two ViT-B decoders.

        Published are linear 224 and 512 (532 million parameters), dpt 512 (569 million: the method's default) and
        mast3r 512 (686 million).
        """
        return cls(
            encoder_width=1024,
            encoder_depth=24,
            encoder_heads=16,
            decoder_width=768,
            decoder_depth=12,
            decoder_heads=12,
            head=head,
            image_size=image_size,
        )

    @classmethod
    def tiny(cls) -> "Dust3rConfig":
        """The small family's: 2.8 million parameters, for images of 128x192 pixels (8x12 patches)."""
        return cls(
            encoder_width=128,
            encoder_depth=4,
            encoder_heads=4,
            decoder_width=128,
            decoder_depth=3,
            decoder_heads=4,
            head="linear",
            image_size=192,
            absolute_positions=True,
        )
