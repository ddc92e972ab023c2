"""Candidates divided over devices: the same ones are kept, and each device decodes its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax import mesh as meshes
from reangle_jax.painters.interface import Painting, Reward
from tests.painters import flux_networks

HOW = Painting(4, 3.5, 0.9, candidates=6, eta=1.0, noise="ddim", window=(0.0, 1.0), every=1, reimpose=False)


def paint(folder, text):
    """The picture, the kept candidates, and how many are made at once in all, and judged by one device."""
    lay = []

    def redness(target, images):
        lay.append(images.shape[0])  # while it is traced
        return -jnp.abs(images[..., 0].mean((1, 2)) - target)[:, None]

    with meshes.use(meshes.make_mesh(text)):
        painter, steps = flux_networks.painter(folder), []
        made = painter.paint(
            painter.load(),
            painter.embed(["waves"]),
            *flux_networks.picture(),
            HOW,
            key=jax.random.key(2),
            reward=Reward(redness, jnp.float32(0.3)),
            on_step=lambda saved, chosen: steps.append(chosen),
        )
        assert painter._control._round._cache_size() == 1
        return made, steps, (painter._control.round_size, set(lay))


@pytest.mark.slow
def test_painting_equals_one_devices(tmp_path):
    folder = flux_networks.write_weights(tmp_path)
    expected, steps, _ = paint(folder, "data:1")
    made, others, shares = paint(folder, "data:4")  # two rounds, the second of which has room for two more
    assert shares == (4, {1})
    assert [step and step.kept for step in others] == [step and step.kept for step in steps]
    assert sum(step is not None for step in steps) == 2
    for one, other in zip(steps, others, strict=True):
        if one:
            assert len(set(one.scores[:, 0])) == 6
            np.testing.assert_allclose(other.scores, one.scores, atol=1e-5)
    np.testing.assert_allclose(made, expected, atol=2e-5)
