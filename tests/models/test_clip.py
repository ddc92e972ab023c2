import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_files import write_clip_tokenizer
from flax import nnx
from manifests import manifest, table_faults

from converters.tables.clip import table
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.errors import InputError
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.clip_tokenizer import CLIPTokenizer
from reangle_jax.models.text.tokenizers import warn_of_cuts


@pytest.fixture(scope="module")
def full_size():
    return abstract(lambda: CLIPTextEncoder(CLIPConfig.clip_l(), rngs=nnx.Rngs(0)))


def test_full_size_equals_the_manifest(full_size):
    facts = manifest("flux.1-dev.clip-l")
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(full_size).items()}
    assert sum(int(np.prod(shape)) for shape in targets.values()) == facts["parameters"] == 123_060_480
    assert table_faults(facts["tensors"], table(), targets) == []


def test_full_size_runs_abstractly(full_size):
    tokens, pooled = jax.eval_shape(lambda m, ids: m(ids), full_size, jax.ShapeDtypeStruct((2, 77), jnp.int32))
    assert (tokens.shape, tokens.dtype) == ((2, 77, 768), jnp.bfloat16)
    assert (pooled.shape, pooled.dtype) == ((2, 768), jnp.bfloat16)


def test_longer_texts_than_the_table_are_refused(full_size):
    with pytest.raises(ValueError, match="78 tokens are more than CLIP's 77"):
        jax.eval_shape(lambda m, ids: m(ids), full_size, jax.ShapeDtypeStruct((1, 78), jnp.int32))
    with pytest.raises(ValueError, match="5 heads do not divide the width 768"):
        CLIPConfig(num_heads=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def size(folder):
    return write_clip_tokenizer(folder)


def test_a_caption_too_long_is_cut_and_said_in_one_line(folder, size, caplog):
    tokenizer = CLIPTokenizer(folder, size)
    text = "the cat plays " * 25 + "the old piano"
    assert len(tokenizer.ids(text)) == 78
    ids = tokenizer([text], 77)[0]
    assert (ids[0],) == tokenizer.start
    np.testing.assert_array_equal(ids[1:76], tokenizer.ids(text)[:75])
    assert ids[76] == tokenizer.end == size - 1
    warn_of_cuts(tokenizer, [text, "a cat"], 77, encoder="CLIP", others="T5")
    (record,) = caplog.records
    assert record.message == (
        "1 of 2 prompts are longer than the 77 tokens that CLIP takes (up to 80) and are cut: 'the old piano' "
        "reaches T5 alone"
    )
    caplog.clear()
    warn_of_cuts(tokenizer, ["the cat plays " * 25], 77)
    assert not caplog.records


def test_one_string_or_no_room_is_refused(folder, size):
    with pytest.raises(TypeError, match="sequence"):
        CLIPTokenizer(folder, size)("a cat", 77)
    with pytest.raises(ValueError, match="length 1 leaves no room"):
        CLIPTokenizer(folder, size)(["a cat"], 1)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("vocab.json", None, r"vocab\.json is missing"),
        ("merges.txt", None, r"merges\.txt is missing"),
        ("vocab.json", "{", r"vocab\.json cannot be read"),
        ("vocab.json", "[]", "no table of tokens"),
        ("vocab.json", '{"a": 1}', "do not count from 0"),
        ("vocab.json", '{"a": 0}', r"has no <\|startoftext\|>"),
        ("merges.txt", "a b c", "'a b c' is no pair"),
        ("merges.txt", "Ж Ж", r"does not go with vocab\.json"),
    ],
)
def test_missing_and_damaged_files_are_named(folder, size, tmp_path, file, text, words):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        CLIPTokenizer(tmp_path, size)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_must_be_the_encoders(folder, size):
    with pytest.raises(InputError, match=f"has {size} tokens, the text encoder beside it 49408"):
        CLIPTokenizer(folder, 49408)
