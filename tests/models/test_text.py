import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from manifests import manifest, table_faults

from converters.tables.t5 import TABLE
from reangle_jax.checkpoints import abstract, load_config, load_into, parameter_paths, save_model
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder, relative_buckets
from reangle_jax.models.text.tokenizers import (
    BYTE_OFFSET,
    EOS,
    PAD,
    ByteTokenizer,
    SentencePieceTokenizer,
    for_encoder,
    warn_of_cuts,
)
from reangle_jax.nn.execution import Execution
from tests.conversion import fill

SMALL = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2)


IDS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)


@jax.jit
def encode(model, ids):
    return model(ids)


@pytest.fixture(scope="module")
def small():
    return T5Encoder(SMALL, rngs=nnx.Rngs(0))


def test_full_size_equals_the_manifest():
    facts = manifest("t5-v1_1-xxl.encoder")
    model = abstract(lambda: T5Encoder(T5Config.t5_v1_1_xxl(), rngs=nnx.Rngs(0)))
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    assert sum(int(np.prod(shape)) for shape in targets.values()) == facts["parameters"] == 4_762_310_656
    assert table_faults(facts["tensors"], TABLE, targets) == []
    config = T5Config.t5_v1_1_xxl()
    assert config.relative_max_distance == facts["config"]["relative_attention_max_distance"]
    assert config.norm_eps == facts["config"]["layer_norm_epsilon"]
    assert {variable.dtype for variable in parameter_paths(model).values()} == {jnp.dtype("bfloat16")}


def test_full_size_runs_abstractly():
    model = abstract(lambda: T5Encoder(T5Config.t5_v1_1_xxl(), rngs=nnx.Rngs(0)))
    out = jax.eval_shape(lambda m, ids: m(ids), model, jax.ShapeDtypeStruct((2, 226), jnp.int32))
    assert (out.shape, out.dtype) == ((2, 226, 4096), jnp.bfloat16)


def test_table_faults_are_seen():
    targets = {"embedding": (40, 16), "norm.scale": (16,)}
    tensors = {"shared.weight": {"shape": [40, 17]}, "decoder.weight": {"shape": [1]}}
    faults = "\n".join(table_faults(tensors, TABLE, targets))
    assert "shared.weight" in faults
    assert "decoder.weight: the model knows no such tensor" in faults
    assert "encoder.final_layer_norm.weight: missing" in faults


def test_near_distances_have_their_own_bucket_and_far_ones_share():
    buckets = relative_buckets(300, 32, 128)
    assert buckets.min() == 0
    assert buckets.max() == 31
    # Before the query: 0..15, after it: 17..31; equal distances, equal buckets but for the half.
    np.testing.assert_array_equal(buckets[50, 50:43:-1], np.arange(7))
    np.testing.assert_array_equal(buckets[50, 51:58], 16 + np.arange(1, 8))
    assert (buckets[0, 128:] == 31).all()
    assert (buckets[128:, 0] == 15).all()
    assert (np.diff(buckets[0, 1:]) >= 0).all()


def test_tiny_fits_the_tiny_transformer_and_the_byte_tokenizer():
    config = T5Config.tiny()
    assert config.d_model == TransformerConfig.tiny().text_embed_dim
    assert config.vocab_size == ByteTokenizer.vocab_size
    length = TransformerConfig.tiny().max_text_seq_length
    out = encode(T5Encoder(config, rngs=nnx.Rngs(0)), jnp.asarray(ByteTokenizer()(["a dog", ""], length)))
    assert out.shape == (2, length, config.d_model)
    # Equal pads in different places come out different.
    assert float(jnp.abs(out[1, 10] - out[1, length - 1]).max()) > 1e-3


def test_each_block_has_its_own_initial_values_and_gradients_reach_all(small):
    kernel = small.blocks.layers.attn.q.kernel[...]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.01
    graphdef, state = nnx.split(small)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 16)), jnp.float32)
    grads = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(IDS) * weights)))(state)
    for path, grad in parameter_paths(grads).items():
        assert float(np.abs(np.asarray(grad[...])).max()) > 0, path


def test_remat_and_attention_kernel_change_nothing(small):
    execution = Execution("xla", remat="attention")
    other = abstract(lambda: T5Encoder(SMALL, execution=execution, rngs=nnx.Rngs(0)))
    fill(other, {path: variable[...] for path, variable in parameter_paths(small).items()})
    # Values are of order 1; the two kernels sum in another order.
    np.testing.assert_allclose(encode(other, IDS), encode(small, IDS), atol=2e-6)


def test_it_is_saved_and_loaded(tmp_path, small):
    save_model(tmp_path, small, SMALL)
    config = load_config(tmp_path, T5Config)
    assert config == SMALL
    loaded = load_into(abstract(lambda: T5Encoder(config, rngs=nnx.Rngs(0))), tmp_path)
    np.testing.assert_array_equal(encode(loaded, IDS), encode(small, IDS))


@pytest.mark.parametrize(("field", "value"), [("relative_buckets", 30), ("relative_max_distance", 8)])
def test_impossible_configs_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(SMALL, **{field: value})


def test_bytes_are_offset_padded_and_ended():
    ids = ByteTokenizer()(["ab", "", "é"], 6)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(
        ids,
        [
            [ord("a") + BYTE_OFFSET, ord("b") + BYTE_OFFSET, EOS, PAD, PAD, PAD],
            [EOS, PAD, PAD, PAD, PAD, PAD],
            [0xC3 + BYTE_OFFSET, 0xA9 + BYTE_OFFSET, EOS, PAD, PAD, PAD],
        ],
    )
    assert ByteTokenizer()([], 6).shape == (0, 6)


@pytest.mark.parametrize("text", ["a cat plays", "Καλημέρα", "犬", "\x00\xff"])
def test_bytes_come_back(text):
    assert ByteTokenizer().decode(ByteTokenizer()([text], 40)[0]) == text


def test_long_texts_are_cut_and_keep_their_end():
    ids = ByteTokenizer()(["x" * 100], 8)[0]
    assert ids[-1] == EOS
    assert (ids[:-1] == ord("x") + BYTE_OFFSET).all()
    # A cut through a character leaves a replacement mark, never an error.
    assert ByteTokenizer().decode(ByteTokenizer()(["aé"], 3)[0]) == "a�"


def test_text_that_is_no_unicode_does_no_harm():
    assert ByteTokenizer().decode(ByteTokenizer()(["a\udcff"], 5)[0]) == "a?"


def test_one_string_or_no_room_is_refused():
    with pytest.raises(TypeError, match="sequence"):
        ByteTokenizer()("abc", 5)
    with pytest.raises(ValueError, match="length 0"):
        ByteTokenizer()(["abc"], 0)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A folder with a small Unigram model of T5's conventions: pad 0, end 1, unknown 2, no beginning."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["a cat plays", "the camera moves left around the dog", "hello world", "a red ball rolls down"]
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 20),
            model_writer=file,
            vocab_size=30,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return folder


def test_sentencepiece_follows_the_same_conventions(spiece):
    tokenizer = SentencePieceTokenizer(spiece)
    ids = tokenizer(["a cat plays", "", "hello  world", "hello world"], 24)
    assert (ids.dtype, ids.shape) == (np.int32, (4, 24))
    np.testing.assert_array_equal(ids[1], [EOS] + [PAD] * 23)
    np.testing.assert_array_equal(ids[2], ids[3])
    end = int(np.argmax(ids[0] == EOS))
    assert (ids[0, :end] > 2).all()
    assert (ids[0, end + 1 :] == PAD).all()
    cut = tokenizer(["a cat plays"], 4)[0]
    np.testing.assert_array_equal(cut, [*ids[0, :3], EOS])
    np.testing.assert_array_equal(SentencePieceTokenizer(spiece / "spiece.model")(["a cat plays"], 24)[0], ids[0])
    assert tokenizer.vocab_size == 30


def test_a_missing_or_damaged_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"spiece\.model is missing"):
        SentencePieceTokenizer(tmp_path)
    with pytest.raises(InputError, match="nowhere is missing"):
        SentencePieceTokenizer(tmp_path / "nowhere")
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot be read"):
        SentencePieceTokenizer(tmp_path)


def test_the_tokenizer_must_be_the_encoders(spiece):
    assert isinstance(for_encoder("nowhere", ByteTokenizer.vocab_size), ByteTokenizer)
    assert isinstance(for_encoder(spiece, 130), SentencePieceTokenizer)
    with pytest.raises(InputError, match=r"has 30 pieces and 100 marks, the text encoder beside it only 129"):
        for_encoder(spiece, 129)


def test_what_is_cut_is_said(spiece, caplog):
    for tokenizer in (ByteTokenizer(), SentencePieceTokenizer(spiece)):
        text = "a cat plays, the dog, hello world"
        length = len(tokenizer.ids("a cat plays, the dog,")) + 1
        caplog.clear()
        warn_of_cuts(tokenizer, ["a cat plays", "a cat plays, the dog,"], length)
        assert not caplog.records
        warn_of_cuts(tokenizer, ["a cat", f"up: {text}", text, text], length)
        (record,) = caplog.records
        taken = tokenizer(["up: " + text], length)[0]
        assert f"2 of 3 prompts are longer than the {length} tokens that the text encoder takes" in record.message
        lost = tokenizer.decode(tokenizer.ids(f"up: {text}")[length - 1 :]).strip()
        assert lost.endswith("hello world")
        assert f"{lost!r} has no effect" in record.message
        np.testing.assert_array_equal(taken, [*tokenizer.ids(f"up: {text}")[: length - 1], EOS])
    caplog.clear()
    warn_of_cuts(ByteTokenizer(), ["x" * 5000], 96)
    assert len(caplog.records[0].message) < 500
