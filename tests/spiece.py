"""A small SentencePiece model of T5's kind, trained in the test."""

import io
from pathlib import Path

import numpy as np

SENTENCE = "a cat and the dog play an old piano in two green houses while rain falls softly, filmed in 4K, 1920s-like"
WORDS = SENTENCE.split(" ")


def write_spiece(path: Path, *, pieces: int = 150) -> Path:
    """Trains on made-up sentences and writes the model: unigram, NFKC, no byte fallback, T5's first three ids."""
    import sentencepiece

    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, 9)).capitalize() + rng.choice([".", "!", " (again)."]) for _ in range(500)]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=buffer,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path
