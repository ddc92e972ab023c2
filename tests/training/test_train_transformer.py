"""The small transformer's shapes: it fits its autoencoder, and begins with what fits of another one."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from training import train_transformer
from training.train_transformer import fitting, inherit


def test_it_fits_its_autoencoder_in_as_many_tokens():
    assert fitting(VAEConfig.tiny()) == TransformerConfig.tiny()
    coarse = dataclasses.replace(VAEConfig.tiny(), block_out_channels=(16, 32, 48, 64), latent_channels=16)
    coarser = fitting(coarse, num_attention_heads=4, num_layers=6)
    assert (coarser.in_channels, coarser.out_channels, coarser.patch_size) == (32, 16, 2)
    assert (coarser.inner_dim, coarser.num_layers) == (256, 6)
    assert coarser.num_video_tokens(5, 16, 24) == TransformerConfig.tiny().num_video_tokens(5, 32, 48) == 480


def test_it_inherits_all_but_what_meets_the_latents():
    small = dataclasses.replace(TransformerConfig.tiny(), num_layers=1, num_attention_heads=1)
    source = Transformer(small, rngs=nnx.Rngs(0))
    model = Transformer(dataclasses.replace(small, in_channels=32, out_channels=16), rngs=nnx.Rngs(1))
    taken = inherit(model, source)
    assert "patch_embed.text_proj.kernel" in taken
    assert not {"patch_embed.proj.kernel", "head.proj_out.kernel", "head.proj_out.bias"} & {*taken}
    ours, theirs = (m.blocks.layers.ff.up.kernel[...] for m in (model, source))
    assert np.array_equal(ours, theirs)


def test_a_step_picks_its_clips_on_the_device(monkeypatch):
    monkeypatch.setattr(train_transformer, "CONDITION_DROPOUT", 0.5)
    monkeypatch.setattr(train_transformer, "TEXT_DROPOUT", 0.5)
    number = np.arange(1, 6, dtype=np.float16)
    data = {
        "video": np.tile(number[:, None, None, None, None], (1, 5, 2, 3, 4)),
        "image": number[:, None, None, None, None] + np.array([0, 0.5], np.float16)[None, :, None, None, None],
        "text": np.tile(number[:, None, None], (1, 7, 2)),
    }
    held = train_transformer.resident(data, np.full((7, 2), -1, np.float16))
    batch = train_transformer.make_batch(np.random.default_rng(0), 0, data=held, size=64)
    assert all(x is y for x, y in zip(batch["data"].values(), held.values(), strict=True))
    found = {name: np.asarray(x) for name, x in train_transformer.gathered(batch).items()}
    assert {name: x.shape for name, x in found.items()} == {
        "video": (64, 5, 2, 3, 4),
        "image": (64, 1, 1, 1),
        "text": (64, 7, 2),
    }
    video, image, text = (x.reshape(64, -1)[:, 0] for x in found.values())
    assert set(video) == set(number)
    blank = image == 0
    assert 0.3 < blank.mean() < 0.7
    assert set((image - video)[~blank]) == {0, 0.5}
    bare = text == -1
    assert 0.3 < bare.mean() < 0.7
    np.testing.assert_array_equal(text[~bare], video[~bare])
    assert (bare & ~blank).any()
    assert (blank & ~bare).any()


def test_times_of_a_batch_are_spread_as_the_noisiest_of_several_uniform_ones_is():
    times = {k: np.asarray(train_transformer.spread_times(100, k, key=jax.random.key(0))) for k in (1, 3)}
    np.testing.assert_array_equal(np.sort(times[1]) // 10, np.arange(100))
    rng = np.random.default_rng(0)
    drawn = rng.integers(1000, size=(100_000, 3)).max(axis=1)
    # A slice of a hundredth is 16 wide where the density is least that is looked at.
    np.testing.assert_allclose(np.quantile(times[3], [0.1, 0.5, 0.9]), np.quantile(drawn, [0.1, 0.5, 0.9]), atol=16)
    assert train_transformer.spread_times(100, 10**9, key=jax.random.key(0)).max() == 999  # where roots round to one
