"""CLIP's tokenizer: byte-pair merges within words of lower-case text, between a start and an end token."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from reangle_jax.errors import InputError
from reangle_jax.models.text.tokenizers import Tokenizer

VOCABULARY = "vocab.json"
MERGES = "merges.txt"
START = "<|startoftext|>"
END = "<|endoftext|>"
"""Ends a text, pads it, and stands for what the vocabulary lacks."""
WORD_END = "</w>"
# What a word is: a mark, the end of a contraction, letters, one digit, or other signs.
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer(Tokenizer):
    """CLIP's tokenizer, of a folder with ``vocab.json`` and ``merges.txt``, for an encoder of so many tokens.

    Raises:
        InputError: a file is missing or damaged, or is another encoder's.
    """

    def __init__(self, folder: str | os.PathLike, vocab_size: int):
        # Imported here: whoever needs no CLIP does without.
        import tokenizers
        from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

        vocabulary, merges = _read_vocabulary(Path(folder) / VOCABULARY), _read_merges(Path(folder) / MERGES)
        if len(vocabulary) != vocab_size:
            raise InputError(
                f"{Path(folder) / VOCABULARY} has {len(vocabulary)} tokens, the text encoder beside it "
                f"{vocab_size}; copy it from the model's tokenizer folder"
            )
        try:
            model = models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix=WORD_END, fuse_unk=False)
        except Exception as error:  # the library has no narrower one: merges of pieces that the vocabulary lacks
            raise InputError(
                f"{Path(folder) / MERGES} does not go with {VOCABULARY} ({error}); copy both again"
            ) from None
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens([START, END])
        self.start, self.end, self.pad = (vocabulary[START],), vocabulary[END], vocabulary[END]
        if self.end != vocab_size - 1:
            raise InputError(f"{Path(folder) / VOCABULARY}: {END} is not its last token; copy it again")

    def ids(self, text: str) -> list[int]:
        """Of one text, whole and without start and end.

        The names of the two marks stand for them, as in the published tokenizer.
        """
        # A lone surrogate has no UTF-8, which the library reads.
        clean = text.encode("utf-8", errors="replace").decode()
        return self._tokenizer.encode(clean, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, in lower case; the marks are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).replace(WORD_END, " ").strip()


def _missing(file: Path) -> InputError:
    return InputError(f"{file} is missing; copy it from the model's tokenizer folder")


def _damaged(file: Path, why: object) -> InputError:
    return InputError(f"{file} cannot be read ({why}); copy it again")


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(file) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from None
    if not isinstance(found, dict) or any(type(value) is not int for value in found.values()):
        raise _damaged(file, "it is no table of tokens and numbers")
    if sorted(found.values()) != list(range(len(found))):
        raise _damaged(file, "its numbers do not count from 0 without a gap")
    lost = [mark for mark in (START, END) if mark not in found]
    if lost:
        raise _damaged(file, f"it has no {lost[0]}")
    return found


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise _missing(file) from None
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong:
        raise _damaged(file, f"{' '.join(wrong)[:40]!r} is no pair")
    return [(first, second.rstrip("\r")) for first, second in pairs]
