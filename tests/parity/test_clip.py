"""CLIP's text tower and tokenizer against transformers', on random weights and a vocabulary made here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.families.text_encoders import write_clip
from converters.tables.clip import table
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.clip_tokenizer import CLIPTokenizer
from tests import quick_compilation
from tests.clip_files import write_clip_tokenizer
from tests.conversion import convert, fill, revert
from tests.parity.test_tokenizers import ODD

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = CLIPConfig(vocab_size=60, max_length=20, width=32, mlp_width=48, num_layers=3, num_heads=4)
LENGTH = 77


def original(eos):
    """transformers' tower with every parameter away from its initial value."""
    torch.manual_seed(0)
    fields = {key: value for key, value in write_clip(SMALL).items() if key not in ("architectures", "model_type")}
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**fields, "eos_token_id": eos})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(("norm" in name and name.endswith("weight")) + 0.3 * torch.randn(parameter.shape))
            elif "embedding" in name:
                parameter.copy_(torch.randn(parameter.shape))
            else:
                parameter.copy_(torch.randn(parameter.shape) * parameter.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def towers():
    theirs, ours = original(2), abstract(lambda: CLIPTextEncoder(SMALL, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(ours).items()}
    # This release's names have no prefix.
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if "position_ids" not in name}
    parameters = convert(tensors, table(""), shapes)
    fill(ours, parameters)
    back = revert(parameters, table(""))
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    return theirs, ours


@pytest.mark.parametrize("eos", [2, SMALL.vocab_size - 1])
def test_tower(towers, rng, eos):
    """Texts that end early, late and at once; padded with the end token, as published, which pools at the first."""
    theirs, ours = towers
    theirs.eos_token_id = eos
    ids = rng.integers(3, SMALL.vocab_size - 1, (3, 20))
    for row, end in zip(ids, (7, 19, 1), strict=True):
        row[end:] = SMALL.vocab_size - 1
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids))
    call = jax.jit(lambda model, ids: model(ids), compiler_options=quick_compilation.USERS_LOOPS)
    tokens, pooled = call(ours, jnp.asarray(ids, jnp.int32))
    # Float32 on both sides, outputs of order 1 (they end in a norm); sums in another order.
    assert 0.3 < expected.last_hidden_state.std() < 3
    np.testing.assert_allclose(tokens, expected.last_hidden_state.numpy(), atol=2e-5)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=2e-5)
    np.testing.assert_array_equal(pooled[0], tokens[0, 7])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    size = write_clip_tokenizer(folder)
    return CLIPTokenizer(folder, size), transformers.CLIPTokenizer.from_pretrained(folder)


def theirs_on(tokenizer, texts, length=LENGTH):
    """As the published pipelines call it."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids


TEXTS = {
    **ODD,
    "contractions": "It's the dog's; we're moving, they'll've PLAYS'D",
    "marks": "a cat <|endoftext|> plays <|startoftext|>piano",
    "marks_in_capitals": "a cat <|EndOfText|> plays",
    "digits": "in 1920 at 4K",
}


@pytest.mark.parametrize("name", TEXTS)
def test_odd_texts(both, name):
    ours, original = both
    np.testing.assert_array_equal(ours([TEXTS[name]], LENGTH), theirs_on(original, [TEXTS[name]]))


@pytest.mark.parametrize("words", [74, 75, 76, 300])
def test_truncation(both, words):
    ours, original = both
    texts = [" ".join(["cat"] * words), "the dog"]
    ids = ours(texts, LENGTH)
    np.testing.assert_array_equal(ids, theirs_on(original, texts))
    assert (ids[:, 0] == ours.start[0]).all()
    assert (ids[:, -1] == ours.end).all()


def test_random_characters(both):
    ours, original = both
    rng = np.random.default_rng(1)
    texts = ["".join(map(chr, rng.integers(32, 0x2FFF, 40))) for _ in range(30)]
    texts += ["".join(rng.choice(list("catdog \n\t.,!éß"), 60)) for _ in range(30)]
    np.testing.assert_array_equal(ours(texts, LENGTH), theirs_on(original, texts))


def test_what_is_decoded_is_theirs(both):
    ours, original = both
    ids = ours.ids("The cat's old house, Moving LEFT.")
    assert ours.decode(ids) == original.decode(ids, skip_special_tokens=True)
