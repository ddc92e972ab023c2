"""Annotations are checked while the tests run (conftest.py): a call that breaks one must raise."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from converters.sources.tensors import Tensor
from reangle_jax.diffusion.losses import masked_loss
from reangle_jax.geometry.cameras import default_intrinsics, identity_cameras
from reangle_jax.geometry.splat import warp_video
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.resize import bilinear_matrix


def test_an_axis_too_few_is_refused():
    with pytest.raises(TypeCheckError, match="B H W C"):
        Conv2D(3, 4, 3, rngs=nnx.Rngs(0))(jnp.zeros((8, 8, 3)))


def test_shapes_that_do_not_agree_are_refused():
    with pytest.raises(TypeCheckError, match="v_true"):
        masked_loss(jnp.zeros((1, 1, 2, 2, 3)), jnp.zeros((1, 1, 2, 3, 3)), None)


def test_another_dtype_is_refused():
    cameras = identity_cameras(default_intrinsics(4, 6), 1)
    with pytest.raises(TypeCheckError, match="depth"):
        warp_video(np.zeros((1, 4, 6, 3), np.uint8), np.zeros((1, 4, 6), np.int32), cameras, cameras)


def test_jax_and_numpy_are_taken_alike():
    cameras = identity_cameras(default_intrinsics(4, 6), 1)
    frames, depth = np.zeros((1, 4, 6, 3), np.uint8), np.ones((1, 4, 6), np.float32)
    for make in (np.asarray, jnp.asarray):
        warped, visible = warp_video(make(frames), make(depth), cameras, cameras)
        assert warped.shape == frames.shape
        assert visible.all()


def test_results_are_checked(monkeypatch):
    monkeypatch.setattr(np, "zeros", lambda shape: np.ones(shape, np.float32))
    with pytest.raises(TypeCheckError, match="return value"):
        bilinear_matrix(4, 8, align_corners=False)


def test_the_converters_too_and_dataclasses(tmp_path):
    with pytest.raises(TypeCheckError, match="shape"):
        Tensor(name="x", dtype=np.dtype(np.float32), shape="4", file=tmp_path / "x", offset=0)  # pyright: ignore
