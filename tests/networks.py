"""A weights folder of very small random networks, for tests that need a whole one: 64x64 pixels, any frames."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.backbones.registry import Clip
from reangle_jax.data import weights_folder
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
    block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=1.0
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
    sample_height=HEIGHT // 4,
    sample_width=WIDTH // 4,
    patch_size=4,
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
        model = checkpoints.abstract(lambda network=network, config=config: network(config, rngs=nnx.Rngs(0)))
        fill_randomly(model)
        checkpoints.save_model(folder / part, model, config)
    return folder


def fill_randomly(model: nnx.Module, seed: int = 0) -> None:
    """Gives an abstract model values from NumPy: a hundred small compilations fewer than its own initialisation."""
    rng = np.random.default_rng(seed)
    for path, variable in checkpoints.parameter_paths(model).items():
        value = rng.uniform(-1, 1, variable.shape).astype(np.float32)
        if path.endswith("scale"):
            value = 1 + 0.1 * value
        elif path.endswith("kernel"):
            # Kernels are [..., in, out]; a stack's leading axis is no input.
            fan_in = np.prod(variable.shape[:-1]) if len(variable.shape) != 3 else variable.shape[1]
            value = value / np.sqrt(fan_in)
        else:
            value = 0.1 * value
        variable.set_value(jnp.asarray(value, variable.dtype))


def backbone(weights: Path, *, rank: int = 2, alpha: float = 2.0) -> CogVideoXBackbone:
    """The very small networks of a folder as the stages see them, for clips of FRAMES x HEIGHT x WIDTH."""
    folders = {part: weights / part for part in ("transformer", "vae", "text_encoder")}
    return CogVideoXBackbone("tiny", folders, Clip(FRAMES, HEIGHT, WIDTH, "off"), rank, alpha)


def write_forms(root: Path, model: nnx.Module, config: Any) -> Path:
    """Writes a model as the converters write it, ``orbax``, and as the small family is kept, ``safetensors``."""
    save_sharded(root / "orbax", model, config)
    checkpoints.save_model(root / "safetensors", model, config)
    return root


def save_sharded(folder: Path, model: nnx.Module, config: Any) -> None:
    """Writes a model's base parameters and its config as the converters do: ``params/`` in chunks, and a manifest."""
    variables = checkpoints.parameter_paths(checkpoints.base_parameters(model))
    arrays = {path: (tuple(variable.shape), np.dtype(variable.dtype)) for path, variable in variables.items()}
    folder.mkdir(parents=True, exist_ok=True)
    params = folder / weights_folder.PARAMS
    with weights_folder.ParamsWriter(params, arrays) as writer:
        for path, variable in variables.items():
            writer.put(path, (), np.asarray(jax.device_get(variable[...])))
    weights_folder.describe_to_orbax(params, list(arrays))
    weights_folder.save_manifest(folder, {})
    checkpoints.save_config(folder, config)
