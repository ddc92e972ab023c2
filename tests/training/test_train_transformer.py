"""The small transformer's shapes: it fits its autoencoder, and begins with what fits of another one."""

import dataclasses

import numpy as np
from flax import nnx

from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from training.train_transformer import fitting, inherit


def test_it_fits_its_autoencoder_in_as_many_tokens():
    assert fitting(VAEConfig.tiny()) == TransformerConfig.tiny()
    finer = fitting(dataclasses.replace(VAEConfig.tiny(), block_out_channels=(16, 32, 48), latent_channels=12))
    assert (finer.in_channels, finer.out_channels, finer.patch_size) == (24, 12, 4)
    assert finer.num_video_tokens(5, 32, 48) == TransformerConfig.tiny().num_video_tokens(5, 16, 24) == 480


def test_it_inherits_all_but_what_meets_the_latents():
    small = dataclasses.replace(TransformerConfig.tiny(), num_layers=1, num_attention_heads=1)
    source = Transformer(small, rngs=nnx.Rngs(0))
    model = Transformer(dataclasses.replace(small, in_channels=24, out_channels=12), rngs=nnx.Rngs(1))
    taken = inherit(model, source)
    assert "patch_embed.text_proj.kernel" in taken
    assert not {"patch_embed.proj.kernel", "head.proj_out.kernel", "head.proj_out.bias"} & {*taken}
    ours, theirs = (m.blocks.layers.ff.up.kernel[...] for m in (model, source))
    assert np.array_equal(ours, theirs)
