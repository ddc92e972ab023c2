"""Sizes of the CogVideoX transformers (Yang et al., 2024, arXiv 2408.06072), as published and small."""

import dataclasses

from reangle_jax.nn.linear import LoRAConfig


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Everything that a transformer's shapes and numbers depend on; every field can be written as JSON.

    The defaults are those of the models before 1.5, but that these are published in 16 bits.
    """

    num_layers: int  # blocks
    num_attention_heads: int  # heads of each block
    attention_head_dim: int = 64  # width of a head, a multiple of 16 (rope splits it 1/4, 3/8, 3/8, each even)
    in_channels: int = 16  # latent channels in, the image condition's included
    out_channels: int = 16  # latent channels out
    time_embed_dim: int = 512  # width of the time embedding that modulates every norm
    text_embed_dim: int = 4096  # width of the text encoder's output
    max_text_seq_length: int = 226  # text tokens
    sample_frames: int = 49  # video frames (not latent frames) that the learned table was made for
    sample_height: int = 60  # its height in latent pixels; also the base grid of rope
    sample_width: int = 90  # its width in latent pixels
    patch_size: int = 2  # latent pixels a side of one token
    # Latent frames of one token; None where tokens lie in one frame (all models before 1.5).
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4  # video frames per latent frame
    spatial_interpolation_scale: float = 1.875  # divides the rows and columns of the sincos table
    temporal_interpolation_scale: float = 1.0  # divides its frames
    use_rotary: bool = True  # rotate queries and keys of the video tokens
    use_learned: bool = False  # add a learned position table (image-to-video 1.0 has it beside rope)
    ofs_embed_dim: int | None = None  # width of the constant ``ofs`` embedding of image-to-video 1.5; None elsewhere
    norm_eps: float = 1e-5  # epsilon of the norms over the width; those over a head have 1e-6
    lora_rank: int = 0  # rank of the adapters on to_q, to_k, to_v, to_out; 0 for none
    lora_alpha: float = 0.0  # their strength: they add ``alpha / rank`` times the low-rank product
    param_dtype: str = "float32"  # what the base's parameters are stored in; adapters are float32
    # What the blocks' kernels are stored in: ``int8``, with a scale for each output channel; empty: in ``param_dtype``.
    kernel_dtype: str = ""

    def __post_init__(self):
        if self.attention_head_dim % 16:
            raise ValueError(f"attention_head_dim {self.attention_head_dim} is not a multiple of 16")
        if self.sample_height % self.patch_size or self.sample_width % self.patch_size:
            raise ValueError(f"patches of {self.patch_size} do not tile {self.sample_height}x{self.sample_width}")
        if self.use_learned and not self.use_rotary:
            raise ValueError("a learned position table without rope exists in no published model")
        if self.kernel_dtype not in ("", "int8"):
            raise ValueError(f"kernel_dtype {self.kernel_dtype!r} is neither int8 nor empty")
        if self.lora_rank < 0 or (self.lora_rank > 0 and self.lora_alpha <= 0):
            raise ValueError(f"lora_rank {self.lora_rank} needs lora_alpha > 0, not {self.lora_alpha}")

    @property
    def inner_dim(self) -> int:
        """Width of the tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def sample_latent_frames(self) -> int:
        """Latent frames of ``sample_frames``."""
        return (self.sample_frames - 1) // self.temporal_compression_ratio + 1

    @property
    def lora(self) -> LoRAConfig | None:
        """The adapters' rank and strength."""
        return LoRAConfig(self.lora_rank, self.lora_alpha) if self.lora_rank else None

    def num_video_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of a latent video, filled up to whole patches."""
        return -(-frames // (self.patch_size_t or 1)) * (height // self.patch_size) * (width // self.patch_size)

    @classmethod
    def cogvideox_5b_i2v(cls) -> "TransformerConfig":
        """CogVideoX-5b-I2V: learned table and rope; half of the input channels are the image condition."""
        return cls(num_layers=42, num_attention_heads=48, in_channels=32, use_learned=True, param_dtype="bfloat16")

    @classmethod
    def cogvideox_5b(cls) -> "TransformerConfig":
        """CogVideoX-5b, text to video: rope only."""
        return cls(num_layers=42, num_attention_heads=48, param_dtype="bfloat16")

    @classmethod
    def cogvideox_2b(cls) -> "TransformerConfig":
        """CogVideoX-2b, text to video: sincos table only; published in float16."""
        return cls(num_layers=30, num_attention_heads=30, use_rotary=False, param_dtype="bfloat16")

    @classmethod
    def cogvideox1_5_5b_i2v(cls) -> "TransformerConfig":
        """CogVideoX1.5-5B-I2V: tokens over two latent frames, rope on an unscaled grid, the ofs embedding."""
        return cls(
            num_layers=42,
            num_attention_heads=48,
            in_channels=32,
            patch_size_t=2,
            ofs_embed_dim=512,
            sample_frames=81,
            sample_height=300,
            sample_width=300,
            param_dtype="bfloat16",
        )

    @classmethod
    def tiny(cls) -> "TransformerConfig":
        """The project's own small image-to-video model: 17 frames of 128x192, 5x32x48 latents of 12 channels."""
        return cls(
            num_layers=5,
            num_attention_heads=6,
            attention_head_dim=64,
            in_channels=24,
            out_channels=12,
            time_embed_dim=64,
            text_embed_dim=128,
            max_text_seq_length=96,
            sample_frames=17,
            sample_height=32,
            sample_width=48,
            patch_size=4,
            use_learned=True,
        )
