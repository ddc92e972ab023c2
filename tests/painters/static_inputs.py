"""What a run of static view transport starts from, with a toy painter and the second family's video model."""

import contextlib

import numpy as np

from reangle_jax import main
from reangle_jax.backbones import registry as backbones
from reangle_jax.data import video
from reangle_jax.painters import registry as painters
from tests.backbones import flowing
from tests.painters import toy
from tests.scoring import small_scorer

FRAMES, HEIGHT, WIDTH = 3, 32, 48
VIEWS = {"left:12": "left_12", "right:6": "right_6", "up:9": "up_9"}


@contextlib.contextmanager
def registered():
    """The second family and the toy painter are among those that a run may name."""
    backbones.ENTRIES[flowing.NAME] = flowing.ENTRY
    painters.ENTRIES[toy.NAME] = toy.ENTRY
    yield
    backbones.ENTRIES.pop(flowing.NAME)
    painters.ENTRIES.pop(toy.NAME)


def call(inputs, workdir, *arguments):
    """The command's exit code."""
    return main.main(["main", f"--config={inputs / 'config.py'}", f"--workdir={workdir}", *arguments])


def write(folder):
    """A clip of a wall and a nearer bar, its depth, all weights and a config."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.stack([127 + 100 * np.sin(np.stack([x + 2 * t, y, x + y], axis=-1) / 6) for t in range(FRAMES)])
    depth = np.full((FRAMES, HEIGHT, WIDTH), 4.0, np.float32)
    frames[:, 8:24, 20:28], depth[:, 8:24, 20:28] = (220, 60, 40), 2.5
    video.write_video(folder / "clip.mp4", frames.astype(np.uint8), 8)
    np.save(folder / "depth.npy", depth)
    flowing.write_weights(folder / "weights")
    small_scorer.write_weights(toy.write_weights(folder / "painter"))
    (folder / "config.py").write_text(
        "from reangle_jax.config import get_default\n"
        "def get_config():\n"
        "    c = get_default()\n"
        f"    c.video, c.depth, c.depth_kind = {str(folder / 'clip.mp4')!r}, {str(folder / 'depth.npy')!r}, 'metric'\n"
        f"    c.num_frames, c.height, c.width = {FRAMES}, {HEIGHT}, {WIDTH}\n"
        f"    c.model, c.weights, c.caption = {flowing.NAME!r}, {str(folder / 'weights')!r}, 'waves'\n"
        f"    c.mode, c.views, c.train_views = 'static', {tuple(VIEWS)!r}, ('left:12', 'down:5')\n"
        "    c.finetune.steps, c.finetune.rank, c.finetune.alpha, c.sample.steps = 2, 2, 2.0, 2\n"
        f"    c.first_frames.model, c.first_frames.weights = {toy.NAME!r}, {str(folder / 'painter')!r}\n"
        "    c.first_frames.steps, c.first_frames.candidates = 4, 3\n"
        "    return c\n"
    )
    return folder
