"""The score of a round of candidates at full size, lowered for accelerators that are not there, on a mesh."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.scoring.agreement import Agreement, compared_size
from reangle_jax.scoring.met3r import Met3r

pytestmark = pytest.mark.sharding
DEVICES, ROOM = 4, 5
PARAMETERS = 569e6 + 21.8e6  # DUSt3R-512-DPT; DINO ViT-S/16 with FeatUp


def test_each_device_scores_its_share_of_the_candidates():
    builds = (
        lambda: Dust3r(Dust3rConfig.large("dpt", 512), rngs=nnx.Rngs(0)),
        lambda: FeatUp(FeatUpConfig.vits16(), rngs=nnx.Rngs(0)),
    )
    graphs, states = zip(*(nnx.split(checkpoints.abstract(build)) for build in builds), strict=True)
    size = compared_size(480, 720, 16)
    score = Agreement(Met3r(*graphs), states, size)
    finished = jax.eval_shape(score.metric.describe, states, jax.ShapeDtypeStruct((ROOM, *size, 3), jnp.float32))
    lay = []

    def similarity(arguments, images):
        lay.append(images.shape)
        return score.similarity(arguments[0], images, *arguments[1:])

    mesh = meshes.make_mesh(f"data:{DEVICES}")
    with meshes.use(mesh):
        judged = jax.jit(lambda arguments, images: meshes.by_share(similarity)(arguments, images))
        count, images = (
            jax.ShapeDtypeStruct((), jnp.int32),
            jax.ShapeDtypeStruct((2 * DEVICES, 480, 720, 3), jnp.float32),
        )
        traced = judged.trace((states, finished, count), images)
    assert sum(x.size for x in jax.tree.leaves(states)) == pytest.approx(PARAMETERS, rel=1e-3)
    assert lay == [(2, 480, 720, 3)]
    assert traced.out_info.shape == (2 * DEVICES, ROOM)
    for name in ("cuda", "tpu"):
        lowered = traced.lower(lowering_platforms=(name,)).as_text()
        assert re.search(rf"mhlo.num_partitions = {DEVICES}", lowered)
        assert "tensor<1x256x384x3xf32>" in lowered  # a candidate at a time, as it is compared
