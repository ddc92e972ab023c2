"""Trains the small family's text encoder: a T5 encoder over bytes that learns to fill in what was blotted out.

``python -m training.train_text --workdir DIR --scenes DIR [--steps N | --minutes M]``

Data: the prompts of the rendered clips under changing motion prefixes, and their phrases recombined. Loss: the cross
entropy of the bytes under spans that were replaced by the unknown token.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.geometry.trajectories import parse_view
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.models.text.tokenizers import EOS, PAD, ByteTokenizer
from reangle_jax.nn.linear import Linear
from training import training
from training.dataset import load_clips, random_view

WEIGHTS = tiny.WEIGHTS / "text_encoder"
UNKNOWN = 2
LENGTH = TransformerConfig.tiny().max_text_seq_length
HELD_OUT = 10  # every tenth prompt


class Speller(nnx.Module):
    """The encoder with a linear map back to bytes, which only training needs."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.encoder = T5Encoder(config, rngs=rngs)
        self.to_bytes = Linear(config.d_model, config.vocab_size, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits of every position's byte."""
        return self.to_bytes(self.encoder(ids))


def bare(prompt: str) -> str:
    """A prompt without its motion."""
    return re.sub(r"^(CAMERA_\w+ )+Camera movement .*?, ", "", prompt)


def random_prompt(captions: list[str], rng: np.random.Generator) -> str:
    """A caption, or parts of two, under a random motion's prefix; now and then nothing."""
    if rng.random() < 0.03:
        return ""
    caption = str(rng.choice(captions))
    if rng.random() < 0.5:
        other = str(rng.choice(captions))
        parts = caption.split(", ") + other.split(" and ")
        caption = ", ".join(rng.permutation(parts)[: rng.integers(1, 4)])
    view = random_view(rng)
    return (parse_view(view).prompt_prefix if view else "") + caption


def make_batch(rng: np.random.Generator, step: int, *, captions: list[str], size: int = 32) -> dict[str, np.ndarray]:
    """Token ids and which of them are blotted out: spans of one to eight bytes, about a fifth of the text."""
    del step
    ids = ByteTokenizer()([random_prompt(captions, rng) for _ in range(size)], LENGTH)
    hidden = np.zeros(ids.shape, bool)
    for row in hidden:
        for _ in range(LENGTH // 20):
            first = rng.integers(LENGTH)
            row[first : first + rng.integers(1, 9)] = True
    return {"ids": ids, "hidden": hidden & (ids != PAD) & (ids != EOS)}


def loss(parameters: nnx.State, batch: dict[str, jax.Array], key: jax.Array, *, graphdef: nnx.GraphDef):
    """Cross entropy in nats a hidden byte."""
    del key
    ids, hidden = batch["ids"], batch["hidden"]
    logits = nnx.merge(graphdef, parameters)(jnp.where(hidden, UNKNOWN, ids))
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
    count = jnp.maximum(jnp.sum(hidden), 1).astype(jnp.float32)
    right = (jnp.argmax(logits, -1) == ids) & hidden
    value = -jnp.sum(jnp.where(hidden, scores, 0.0)) / count
    return value, {"accuracy": jnp.sum(right).astype(jnp.float32) / count}


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=4000, out=str(WEIGHTS), rate=1e-3)
    parser.add_argument("--scenes", required=True, help="a folder of rendered clips (training.dataset)")
    args = parser.parse_args()
    config = T5Config.tiny()
    graphdef, parameters = nnx.split(Speller(config, rngs=nnx.Rngs(args.seed)))
    captions = [bare(clip.prompt) for clip in load_clips(args.scenes, "prompt")]
    kept = [c for k, c in enumerate(captions) if k % HELD_OUT]
    unseen = [make_batch(np.random.default_rng([1, k]), k, captions=captions[::HELD_OUT]) for k in range(4)]
    measure = jax.jit(partial(loss, graphdef=graphdef))

    def evaluate(mean: nnx.State) -> dict[str, float]:
        results = [measure(mean, batch, jax.random.key(0)) for batch in unseen]
        return {
            "heldout_loss": float(np.mean([float(value) for value, _ in results])),
            "heldout_accuracy": float(np.mean([float(numbers["accuracy"]) for _, numbers in results])),
        }

    mean = training.train(
        partial(loss, graphdef=graphdef),
        parameters,
        partial(make_batch, captions=kept),
        training.TrainConfig.of(args),
        args.workdir,
        evaluate=evaluate,
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean).encoder, config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
