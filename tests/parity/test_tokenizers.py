"""T5's tokenizer against transformers', on a SentencePiece model trained here."""

import numpy as np
import pytest

from reangle_jax.models.text.tokenizers import SentencePieceTokenizer
from tests.manifests import manifest
from tests.spiece import WORDS, write_spiece

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")

LENGTH = 226

ODD = {
    "plain": "A cat plays piano in an old house.",
    "empty": "",
    "space": " ",
    "whitespace": " \t\n\r\v\f  \u00a0\u2003\u3000 ",
    "inner_whitespace": "  a\tcat \n\n plays\u00a0\u00a0piano\u3000slowly  ",
    "line_separators": "a\u2028cat\u2029plays",
    "unknown": "zyx Ж 猫がピアノを弾く",
    "accents_composed": "café naïve Ångström",
    "accents_decomposed": "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "compatibility": "\ufb01lm \u2460 \u00bd \u2122 \uff26\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48",
    "emoji": "a cat 😀👩‍👩‍👧‍👦🇫🇷 plays",
    "right_to_left": "قط يعزف a cat",
    "control": "a\x00cat\x01\x1b[31mplays\x7fpiano",
    "zero_width": "ca\u200bt\ufeff do\u200dg",
    "soft_hyphen": "pia\u00adno",
    "underscores": "▁a▁cat __ ▁▁",
    "replacement": "a \ufffd cat",
    "special_names": "a cat <extra_id_0> plays <extra_id_99></s> piano<pad> <unk>.",
    "almost_special": "<extra_id_100> <extra_id_> < /s> <PAD>",
    "punctuation": "!?.,;:'\"()[]{}<>@#$%^&*-_=+|\\/~`",
    "numbers": "1920s 4K 3.14 1e-5",
    "one_long_word": "piano" * 300,
    "astral": "\U0001d538 \U0001d554\U0001d552\U0001d565 \U00010348",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    file = write_spiece(tmp_path_factory.mktemp("tokenizer") / "spiece.model")
    # Read as the published folders are: from spiece.model alone.
    return SentencePieceTokenizer(file), transformers.T5Tokenizer.from_pretrained(file.parent)


def theirs(tokenizer, texts, length):
    """As the published pipelines call it."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, add_special_tokens=True).input_ids


@pytest.mark.parametrize("name", ODD)
def test_odd_texts(both, name):
    ours, original = both
    np.testing.assert_array_equal(ours([ODD[name]], LENGTH), theirs(original, [ODD[name]], LENGTH))


def test_next_line_is_no_space_to_the_model(both):
    """Here transformers 5 splits words and SentencePiece itself, with which T5 was trained, does not."""
    ours, original = both
    text = ["plays\u0085piano"]
    assert 2 in ours(text, 8)
    assert 2 not in theirs(original, text, 8)[0]


@pytest.mark.parametrize("words", [200, 223, 224, 225, 226, 227, 2000])
def test_truncation(both, words):
    ours, original = both
    text = " ".join(np.random.default_rng(words).choice(WORDS, words))
    ids = ours([text], LENGTH)
    np.testing.assert_array_equal(ids, theirs(original, [text], LENGTH))
    assert words < LENGTH or ids[0, -1] == 1


@pytest.mark.parametrize("length", [1, 2, 16])
def test_batches_and_short_lengths(both, length):
    ours, original = both
    texts = ["A cat plays.", "", "the old house " * 20]
    np.testing.assert_array_equal(ours(texts, length), theirs(original, texts, length))


def test_random_characters(both):
    ours, original = both
    rng = np.random.default_rng(1)
    # Every plane that has letters, but for surrogates, which no UTF-8 file holds.
    texts = ["".join(map(chr, rng.integers(32, 0x2FFF, 40))) for _ in range(50)]
    texts += ["".join(rng.choice(list("catdog \n\t.,!éß"), 60)) for _ in range(50)]
    np.testing.assert_array_equal(ours(texts, LENGTH), theirs(original, texts, LENGTH))


def test_sentinels_are_where_the_published_model_has_them(both):
    """32100 ids of 32000 pieces: the same rule gives 32099 for the first mark."""
    facts = manifest("tokenizers")["t5 (CogVideoX tokenizer/, FLUX tokenizer_2/)"]
    ours, _ = both
    ids = ours(["<extra_id_0><extra_id_99>"], 3)[0]
    offset = facts["pieces"] - 100 - ours.vocab_size
    assert facts["extra_ids"] == f"<extra_id_0>={ids[0] + offset} ... <extra_id_99>={ids[1] + offset}"
    assert (facts["pad"], facts["eos"], facts["unk"]) == tuple(ours(["<pad></s><unk>"], 4)[0, :3])
