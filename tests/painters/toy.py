"""A toy painter: a flow towards a flat colour that its text names, in pixels. It exists to be another one."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.needs import Needs
from reangle_jax.nn.linear import Linear
from reangle_jax.painters import registry
from reangle_jax.painters.interface import Chosen, Painter
from tests.networks import fill_randomly

NAME, MULTIPLE = "toy", 4


@dataclasses.dataclass(frozen=True)
class PaletteConfig:
    words: int = 256


class Palette(nnx.Module):
    """A colour for each byte of a text; the picture's is their mean."""

    def __init__(self, config, *, rngs):
        self.table = Linear(config.words, 3, rngs=rngs)


def write_weights(folder):
    """Writes palette/ with random values."""
    model = checkpoints.abstract(lambda: Palette(PaletteConfig(), rngs=nnx.Rngs(0)))
    fill_randomly(model)
    checkpoints.save_model(folder / "palette", model, PaletteConfig())
    return folder


@dataclasses.dataclass(frozen=True)
class ToyPainter(Painter):
    """See `reangle_jax.painters.interface.Painter`."""

    def check(self, part, fields):
        pass

    def needs(self, painting, editing, shares=None):
        evaluations = 1 + (painting.steps - 1) * painting.candidates
        each = 10.0 * self.size[0] * self.size[1]
        return {
            "first_frames": Needs({"paint": each * painting.candidates}, each * evaluations),
            "first_warps": Needs({"edit": each}, 2 * each * (editing.steps - editing.skip)),
        }

    def embed(self, prompts):
        return [np.frombuffer(prompt.encode() or b" ", np.uint8) for prompt in prompts]

    def load(self, *, to_edit=False):
        model = checkpoints.abstract(lambda: Palette(PaletteConfig(), rngs=nnx.Rngs(0)))
        return checkpoints.load_into(model, self.folders["palette"]).table.kernel[...]

    def _colour(self, table, text):
        return jax.nn.sigmoid(8.0 * table[np.asarray(text)].mean(axis=0))

    @staticmethod
    def _decode(x):
        """Latents [S, h, w, 3] to pictures: cells of flat colour."""
        return jnp.clip(jnp.repeat(jnp.repeat(x, MULTIPLE, 1), MULTIPLE, 2), 0, 1)

    def paint(self, networks, text, picture, visible, how, *, key, reward, saved=None, on_step):
        known = jnp.asarray(picture[::MULTIPLE, ::MULTIPLE], jnp.float32) / 255.0
        seen = jnp.asarray(visible[::MULTIPLE, ::MULTIPLE])[..., None]
        colour = self._colour(networks, text[0])

        def clean(x):
            """What is expected of a state [S, h, w, 3]: what is known, and the colour with some of the noise."""
            return jnp.where(seen[None], known[None], colour[None, None, None] + 0.3 * jnp.tanh(x))

        times = np.linspace(1.0, 0.0, how.steps + 1)
        done = int(saved["step"]) if saved else 0
        x = jnp.asarray(saved["x"]) if saved else jax.random.normal(jax.random.fold_in(key, 0), known.shape)
        for step in range(done, how.steps):
            t, after = times[step], times[step + 1]
            mean = (1 - after) * clean(x[None])[0] + after * x
            chosen = None
            first, last = how.window
            if reward and step < how.steps - 1 and first <= step / how.steps < last and step % how.every == 0:
                keys = jax.random.fold_in(key, 1 + step)
                noise = jax.random.normal(keys, (how.candidates, *x.shape))
                candidates = mean[None] + how.eta * after * (t - after) * 4 * noise
                scores = np.asarray(self._scores(reward.scores)(reward.arguments, clean(candidates)))
                chosen = Chosen(step, scores, int(scores.sum(axis=1).argmax()))
                mean = candidates[chosen.kept]
            x = mean
            on_step({"x": np.asarray(x), "step": np.int64(step + 1)}, chosen)
        return np.asarray(self._decode(x[None])[0])

    def _scores(self, scores):
        if scores not in _SCORES:
            _SCORES[scores] = jax.jit(lambda arguments, x: scores(arguments, self._decode(x)))
        return _SCORES[scores]

    def edit(self, networks, text, picture, how, *, key, on_step):
        source, target = (self._colour(networks, words) for words in text)
        x = jnp.asarray(picture, jnp.float32) / 255.0
        for _ in range(how.steps - how.skip):
            x = x + (target - source)[None, None] / how.steps
            on_step()
        return np.clip(np.asarray(x), 0, 1)


_SCORES = {}
ENTRY = registry.Entry(MULTIPLE, {"palette": "PaletteConfig"}, ToyPainter)


def far_from_holes(visible, reach=7):
    """Pixels that no seam reaches."""
    return cv2.distanceTransform(visible.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) >= reach
