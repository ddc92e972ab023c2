"""I3D's shapes; its tensors are in tests/converters/test_check.py, its values in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.i3d import I3D, I3DConfig
from reangle_jax.models.i3d.model import _same


def build(config):
    return abstract(lambda: I3D(config, rngs=nnx.Rngs(0)))


def test_shapes():
    model = build(I3DConfig.kinetics400())
    sizes = [np.prod(variable.shape) for variable in parameter_paths(model).values()]
    assert (len(sizes), sum(sizes)) == (230, 12_704_544)
    graphdef, state = nnx.split(model)

    def apply(state, videos):
        return nnx.merge(graphdef, state)(videos)

    videos = jax.ShapeDtypeStruct((2, 16, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(apply, state, videos).shape == (2, 400)
    for shape in ((1, 8, 224, 224, 3), (1, 16, 224, 225, 3)):
        with pytest.raises(ValueError, match="I3D sees 9 frames or more of 224x224"):
            jax.eval_shape(apply, state, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(("size", "kernel", "stride", "expected"), [
    (224, 7, 2, (2, 3)), (16, 7, 2, (2, 3)), (9, 7, 2, (3, 3)), (5, 3, 1, (1, 1)), (7, 1, 1, (0, 0)),
])  # fmt: skip
def test_padding_same(size, kernel, stride, expected):
    """TensorFlow's: what is missing, halved, and the odd one behind."""
    assert _same(size, kernel, stride) == expected
