"""From text to token ids of a fixed length: T5's SentencePiece model, and bytes for the project's own small encoder.

Both follow T5: padding is 0, and every text ends with the end token 1, also where it is cut off.
"""

import abc
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from reangle_jax.errors import InputError

PAD = 0
EOS = 1
BYTE_OFFSET = 3
"""Id of the byte 0 in :class:`ByteTokenizer`; 2 is T5's unknown token, which no byte is."""
SPIECE = "spiece.model"
SENTINELS = 100
"""T5's span marks, ``<extra_id_0>`` to ``<extra_id_99>``: their ids follow the model's pieces, the last mark first."""
_SPECIAL = re.compile(r"(<pad>|</s>|<unk>|<extra_id_[0-9]{1,2}>)")
_SPECIAL_IDS = {"<pad>": PAD, "</s>": EOS, "<unk>": 2}

_log = logging.getLogger(__name__)


def for_encoder(path: str | os.PathLike, vocab_size: int) -> "ByteTokenizer | SentencePieceTokenizer":
    """The tokenizer of a text encoder's folder, or of its file, for an embedding table of so many rows.

    Raises:
        InputError: the tokenizer's file is missing or damaged, or is another encoder's.
    """
    if vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    tokenizer = SentencePieceTokenizer(path)
    if tokenizer.vocab_size + SENTINELS > vocab_size:
        raise InputError(
            f"{path}: {SPIECE} has {tokenizer.vocab_size} pieces and {SENTINELS} marks, the "
            f"text encoder beside it only {vocab_size}; copy it from the model's tokenizer folder"
        )
    return tokenizer


class Tokenizer(abc.ABC):
    """From texts to rows of tokens."""

    start: tuple[int, ...]  # what a row begins with
    end: int  # what follows its text, also one that is cut
    pad: int  # what fills it up

    @property
    def marks(self) -> int:
        """Tokens that a row has beside its text's."""
        return len(self.start) + 1

    @abc.abstractmethod
    def ids(self, text: str) -> list[int]:
        """Of one text, whole and without marks."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""

    def __call__(self, texts: Sequence[str], length: int) -> Int[np.ndarray, "B L"]:
        """Rows of a length (226 for CogVideoX, 512 and 77 for FLUX), int32: longer texts are cut, shorter ones padded.

        Raises:
            TypeError: one string in place of several.
            ValueError: the length has no room for the marks.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string, not a sequence of strings")
        if length < self.marks:
            raise ValueError(f"length {length} leaves no room for the {'end token' if self.marks == 1 else 'marks'}")
        rows = np.full((len(texts), length), self.pad, np.int32)
        for row, text in zip(rows, texts, strict=True):
            tokens = [*self.start, *self.ids(text)[: length - self.marks], self.end]
            row[: len(tokens)] = tokens
        return rows


def warn_of_cuts(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, *, encoder: str = "the text encoder", others: str = ""
) -> None:
    """Says in the log which end of the texts does not fit into rows of a length: what the longest one loses.

    ``encoder`` is whose rows they are; ``others`` takes more, and so sees what it does not.
    """
    rows = {text: tokenizer.ids(text) for text in texts}
    room = length - tokenizer.marks
    cut = [text for text, ids in rows.items() if len(ids) > room]
    if cut:
        longest = max(cut, key=lambda text: len(rows[text]))
        lost = tokenizer.decode(rows[longest][room:]).strip()
        shown = f"{lost[:80]} ... {lost[-80:]}" if len(lost) > 200 else lost
        _log.warning(
            "%d of %d prompts are longer than the %d tokens that %s takes (up to %d) and are cut: %r %s",
            *(len(cut), len(rows), length, encoder, len(rows[longest]) + tokenizer.marks, shown),
            f"reaches {others} alone" if others else "has no effect; shorten the caption",
        )


class _EndsLikeT5(Tokenizer):
    start, end, pad = (), EOS, PAD


class ByteTokenizer(_EndsLikeT5):
    """UTF-8 bytes, each byte b as the id b + 3."""

    vocab_size = 256 + BYTE_OFFSET

    def ids(self, text: str) -> list[int]:
        """Of one text, whole and without the end token."""
        return [byte + BYTE_OFFSET for byte in text.encode("utf-8", errors="replace")]

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " L"]) -> str:
        """The text of one row, up to its end token; bytes that are no UTF-8 (cut off mid-character) become U+FFFD."""
        ids = np.asarray(ids)
        end = int(np.argmax(ids == EOS)) if (ids == EOS).any() else len(ids)
        return bytes(int(i) - BYTE_OFFSET for i in ids[:end] if i >= BYTE_OFFSET).decode("utf-8", errors="replace")


class SentencePieceTokenizer(_EndsLikeT5):
    """T5's tokenizer: a ``spiece.model``, or the folder that holds one.

    Raises:
        InputError: the file is missing or is no SentencePiece model.
    """

    def __init__(self, path: str | os.PathLike):
        # Imported here: the byte tokenizer, all that the small model needs, does without.
        import sentencepiece

        path = Path(path)
        file = path / SPIECE if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{file} is missing; copy it from the model's tokenizer folder")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
        except (OSError, RuntimeError) as error:
            raise InputError(f"{file} cannot be read ({error}); copy it again") from None
        self.vocab_size: int = self._model.vocab_size()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens; special ones are left out."""
        return self._model.decode([token for token in ids if token < self._model.vocab_size()])

    def ids(self, text: str) -> list[int]:
        """Pieces of one text, whole and without the end token.

        The names of special tokens stand for these tokens, as in the published tokenizer.
        """
        ids: list[int] = []
        for k, part in enumerate(_SPECIAL.split(text)):
            if k % 2 == 0:
                # A lone surrogate has no UTF-8, which the model reads.
                ids += self._model.encode(part.encode("utf-8", errors="replace").decode())
            elif part in _SPECIAL_IDS:
                ids.append(_SPECIAL_IDS[part])
            else:
                number = int(part.removeprefix("<extra_id_").removesuffix(">"))
                ids.append(self._model.vocab_size() + SENTINELS - 1 - number)
        return ids
