"""A weights folder of very small random networks, for tests that need a whole one: 64x64 pixels, any frames."""

from pathlib import Path

from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder

HEIGHT = WIDTH = 64
FRAMES = 5
TEXT_LENGTH = 16

VAE_SMALL = VAEConfig(
    block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=1.0
)
TRANSFORMER_SMALL = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=8,
    out_channels=4,
    time_embed_dim=16,
    text_embed_dim=16,
    max_text_seq_length=TEXT_LENGTH,
    sample_frames=FRAMES,
    sample_height=HEIGHT // 8,
    sample_width=WIDTH // 8,
    use_learned=True,
)
TEXT_SMALL = T5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
DEPTH_SMALL = DepthAnythingConfig(
    width=32, depth=4, heads=2, taps=(1, 2, 3, 4), neck_widths=(8, 8, 8, 8), fusion_width=8, head_width=8, native_grid=5
)


def write_weights(folder: Path) -> Path:
    """Writes transformer/, vae/, text_encoder/ and depth/ under a folder and returns it."""
    parts = {
        "transformer": (Transformer, TRANSFORMER_SMALL),
        "vae": (VAE, VAE_SMALL),
        "text_encoder": (T5Encoder, TEXT_SMALL),
        "depth": (DepthAnything, DEPTH_SMALL),
    }
    for part, (network, config) in parts.items():
        checkpoints.save_model(folder / part, network(config, rngs=nnx.Rngs(0)), config)
    return folder
