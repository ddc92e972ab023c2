"""A small vocabulary of CLIP's kind: all bytes, all bytes that end a word, merges, the two marks."""

import json
from pathlib import Path

WORDS = ["cat", "cats", "the", "dog", "plays", "piano", "old", "house", "camera", "moving", "left", "film", "café"]


def write_clip_tokenizer(folder: Path) -> int:
    """Writes vocab.json and merges.txt, and gives the number of tokens."""
    from tokenizers import pre_tokenizers

    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        ((text, _),) = spelled.pre_tokenize_str(word)
        pieces = [*text[:-1], f"{text[-1]}</w>"]
        while len(pieces) > 1:
            merges += [pair] if (pair := (pieces[0], pieces[1])) not in merges else []
            pieces[:2] = ["".join(pair)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({token: k for k, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(tokens)
