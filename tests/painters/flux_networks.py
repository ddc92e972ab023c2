"""Very small random FLUX networks in a folder as the small family's, for pictures of 16x24 pixels."""

import numpy as np
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.models.text.t5 import T5Encoder
from reangle_jax.painters.flux.painter import FluxPainter
from tests.networks import TEXT_SMALL, fill_randomly

SIZE = (16, 24)
GRID = (4, 6)
RATIO = 2
VAE = AutoencoderConfig(
    block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, scaling_factor=1.5
)
_SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "text_embed_dim": TEXT_SMALL.d_model,
    "pooled_embed_dim": TEXT_SMALL.d_model,
    "out_channels": 16,
}
TRANSFORMER = FluxConfig(num_layers=2, num_single_layers=1, in_channels=16, **_SIZES)
FILL = FluxConfig(num_layers=1, num_single_layers=1, in_channels=16 + 16 + 4 * RATIO**2, **_SIZES)
CONTROLNET = ControlNetConfig(
    num_layers=1, num_single_layers=0, in_channels=16, condition_channels=20, base_layers=2, **_SIZES
)
PARTS = {
    "flux_transformer": (FluxTransformer, TRANSFORMER),
    "flux_controlnet": (FluxControlNet, CONTROLNET),
    "flux_autoencoder": (Autoencoder, VAE),
    "text_encoder": (T5Encoder, TEXT_SMALL),
}
FILL_PARTS = {"transformer": (FluxTransformer, FILL), "vae": (Autoencoder, VAE)}


def write_weights(folder, parts=PARTS):
    """Writes the parts under a folder and returns it."""
    for seed, (part, (network, config)) in enumerate(parts.items()):
        model = checkpoints.abstract(lambda network=network, config=config: network(config, rngs=nnx.Rngs(0)))
        fill_randomly(model, seed)
        checkpoints.save_model(folder / part, model, config)
    return folder


def painter(folder, name="tiny", parts=PARTS):
    return FluxPainter(name, {part: folder / part for part in parts}, SIZE)


def picture():
    """Waves, and a hole of some cells and a line of one pixel."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = 127 + 100 * np.sin(np.stack([x, y, x + y], axis=-1) / 4)
    visible = np.ones(SIZE, bool)
    visible[4:12, 10:17] = visible[:, 3] = False
    return np.where(visible[..., None], waves, 0).astype(np.uint8), visible
