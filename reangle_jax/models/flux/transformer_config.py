"""Sizes of FLUX's diffusion transformers and of the ControlNet beside them."""

import dataclasses
from typing import Any

from reangle_jax.nn.linear import LoRAConfig

_DEV: dict[str, Any] = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "text_embed_dim": 4096,
    "pooled_embed_dim": 768,
    "param_dtype": "bfloat16",
}
_TINY: dict[str, Any] = {
    "num_layers": 3,
    "num_single_layers": 6,
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "text_embed_dim": 128,
    "pooled_embed_dim": 128,
}


def _joint_only(blocks: int) -> dict[str, Any]:
    return {"num_layers": blocks, "num_single_layers": 0}


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """Everything that a transformer's shapes and numbers depend on; every field can be written as JSON.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    num_layers: int  # joint blocks, in which text and picture have weights of their own
    num_single_layers: int  # single blocks after them, which treat all tokens alike
    num_attention_heads: int  # heads of each block
    attention_head_dim: int  # width of a head: the sum of ``axes_dims_rope``
    # Channels of a head that turn with the first id (always 0 here), the row and the column; even.
    axes_dims_rope: tuple[int, ...]
    text_embed_dim: int  # width of the text tokens
    pooled_embed_dim: int  # width of the vector that stands for the whole text
    # Channels of a packed token: 64 of the noised latent; FLUX.1-Fill adds 64 of the masked picture's and 256 of the
    # mask.
    in_channels: int = 64
    out_channels: int = 64  # channels of a predicted token
    guidance_embeds: bool = True  # take the guidance as an input; off in FLUX.1-schnell's shape
    lora_rank: int = 0  # rank of the adapters on to_q, to_k, to_v, to_out of the picture's tokens; 0 for none
    lora_alpha: float = 0.0  # their strength: they add ``alpha / rank`` times the low-rank product
    param_dtype: str = "float32"  # what the base's parameters are stored in; adapters are float32
    # What the blocks' kernels are stored in: ``int8``, with a scale for each output channel; empty: in ``param_dtype``.
    kernel_dtype: str = ""

    def __post_init__(self):
        object.__setattr__(self, "axes_dims_rope", tuple(self.axes_dims_rope))
        if len(self.axes_dims_rope) != 3 or any(width % 2 for width in self.axes_dims_rope):
            raise ValueError(f"axes_dims_rope {self.axes_dims_rope} must be three even numbers")
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(f"axes_dims_rope {self.axes_dims_rope} do not add up to {self.attention_head_dim}")
        if self.kernel_dtype not in ("", "int8"):
            raise ValueError(f"kernel_dtype {self.kernel_dtype!r} is neither int8 nor empty")
        if self.lora_rank < 0 or (self.lora_rank > 0 and self.lora_alpha <= 0):
            raise ValueError(f"lora_rank {self.lora_rank} needs lora_alpha > 0, not {self.lora_alpha}")

    @property
    def inner_dim(self) -> int:
        """Width of the tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def lora(self) -> LoRAConfig | None:
        """The adapters' rank and strength."""
        return LoRAConfig(self.lora_rank, self.lora_alpha) if self.lora_rank else None

    @classmethod
    def dev(cls) -> "FluxConfig":
        """FLUX.1-dev."""
        return cls(**_DEV)

    @classmethod
    def fill_dev(cls) -> "FluxConfig":
        """FLUX.1-Fill-dev: the masked picture and the mask beside the noised latent."""
        return cls(**_DEV, in_channels=384)

    @classmethod
    def tiny(cls) -> "FluxConfig":
        """The project's own small picture model."""
        return cls(**_TINY)


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(FluxConfig):
    """Sizes of an inpainting ControlNet: a `FluxConfig` of its own (without single blocks), and what it is beside.

    Attributes:
        condition_channels: channels of a packed token of the condition: the masked picture's latent and the mask.
        base_layers: joint blocks of the transformer that it serves.
    """

    condition_channels: int = 68
    base_layers: int = 19

    def __post_init__(self):
        super().__post_init__()
        if self.num_single_layers:
            raise ValueError(f"num_single_layers {self.num_single_layers}: no published inpainting ControlNet has any")

    @property
    def interval(self) -> int:
        """Joint blocks of the transformer that share one residual."""
        return -(-self.base_layers // self.num_layers)

    @property
    def used_layers(self) -> int:
        """Blocks whose residual reaches the transformer: where the interval is rounded up, the last ones do not."""
        return -(-self.base_layers // self.interval)

    @classmethod
    def inpainting_beta(cls) -> "ControlNetConfig":
        """alimama-creative's FLUX.1-dev-Controlnet-Inpainting-Beta: five of its six blocks are used."""
        return cls(**_DEV | _joint_only(6))

    @classmethod
    def tiny(cls) -> "ControlNetConfig":
        """The small picture model's."""
        return cls(**_TINY | _joint_only(2), base_layers=_TINY["num_layers"])
