import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_files import write_clip_tokenizer
from flax import nnx
from networks import TEXT_SMALL, fill_randomly
from spiece import write_spiece

from reangle_jax import checkpoints
from reangle_jax.checkpoints import abstract, load_into, save_model
from reangle_jax.errors import InputError
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.clip_tokenizer import CLIPTokenizer
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.models.text.tokenizers import SentencePieceTokenizer
from reangle_jax.painters.flux.networks import DEV, T5_LENGTH, TINY, embed

PROMPTS = ["the cat plays", "a dog", "the cat plays"]


def save(folder, network, config):
    model = abstract(lambda: network(config, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    save_model(folder, model, config)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    folders = {part: folder / part for part in ("text_encoder", "text_encoder_2")}
    tokens = write_clip_tokenizer(folders["text_encoder"])
    clip = CLIPConfig(tokens, width=16, mlp_width=24, num_layers=2, num_heads=2)
    save(folders["text_encoder"], CLIPTextEncoder, clip)
    write_spiece(folders["text_encoder_2"] / "spiece.model")
    config = T5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    save(folders["text_encoder_2"], T5Encoder, config)
    return folders, clip, config


def test_flux_is_told_by_t5_and_clip(published, caplog):
    folders, small, config = published
    long = "the cat plays " * 40
    text = embed(DEV, folders, [*PROMPTS, long])
    assert (text.tokens.shape, text.pooled.shape) == ((4, 512, 8), (4, 16))
    assert text.tokens.dtype == text.pooled.dtype == np.float32
    np.testing.assert_array_equal(text.pooled[0], text.pooled[2])
    assert np.abs(text.pooled[0] - text.pooled[1]).max() > 1e-2

    clip = load_into(abstract(lambda: CLIPTextEncoder(small, rngs=nnx.Rngs(0))), folders["text_encoder"])
    # Without any padding: the end token sees nothing of it.
    tokenizer = CLIPTokenizer(folders["text_encoder"], small.vocab_size)
    alone = tokenizer([PROMPTS[1]], len(tokenizer.ids(PROMPTS[1])) + 2)
    np.testing.assert_allclose(text.pooled[1], clip(jnp.asarray(alone))[0][0, -1], atol=1e-5)
    t5 = load_into(abstract(lambda: T5Encoder(config, rngs=nnx.Rngs(0))), folders["text_encoder_2"])
    ids = SentencePieceTokenizer(folders["text_encoder_2"])([PROMPTS[1]], 512)
    np.testing.assert_allclose(text.tokens[1], t5(jnp.asarray(ids))[0], atol=1e-5)

    (record,) = caplog.records
    assert "1 of 3 prompts are longer than the 77 tokens that CLIP takes (up to 122)" in record.message
    assert record.message.endswith("reaches T5 alone")


def test_the_small_family_is_told_by_its_one_encoder(tmp_path):
    save(tmp_path, T5Encoder, TEXT_SMALL)
    text = embed(TINY, {"text_encoder": tmp_path}, PROMPTS)
    assert (text.tokens.shape, text.pooled.shape) == ((3, T5_LENGTH[TINY], 16), (3, 16))
    # Padding included, as its training does.
    np.testing.assert_allclose(text.pooled[1], text.tokens[1].mean(axis=0), atol=1e-6)
    assert np.abs(text.pooled[0] - text.pooled[1]).max() > 1e-3


def test_a_missing_tokenizer_is_named(published, tmp_path):
    folders, small, _ = published
    save(tmp_path, CLIPTextEncoder, small)
    with pytest.raises(InputError, match=r"vocab\.json is missing"):
        embed(DEV, {**folders, "text_encoder": tmp_path}, PROMPTS)


def test_one_text_encoder_is_in_memory_at_a_time_and_none_afterwards(published, monkeypatch):
    """FLUX's transformer takes the memory that they leave."""
    folders, *_ = published
    gc.collect()
    before, held = len(jax.live_arrays()), []
    load = checkpoints.load_into

    def loaded(*arguments):
        gc.collect()
        held.append(len(jax.live_arrays()) - before)
        return load(*arguments)

    monkeypatch.setattr(checkpoints, "load_into", loaded)
    embed(DEV, folders, PROMPTS)
    gc.collect()
    assert held == [0, 0]
    assert len(jax.live_arrays()) == before
