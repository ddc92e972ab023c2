"""Very small random networks of the score, as the converter leaves them."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, VisionTransformer
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from tests.networks import fill_randomly

SIZE = 32
GEOMETRY = Dust3rConfig(
    encoder_width=32, encoder_depth=2, encoder_heads=2, decoder_width=32, decoder_depth=2, decoder_heads=2,
    head="linear", image_size=SIZE, patch_size=8,
)  # fmt: skip
FEATUP = dataclasses.replace(FeatUpConfig.tiny(), patch_size=4, stages=2)  # each doubling is compiled by itself


def write_weights(folder: Path, *, depth: float = 2.0) -> Path:
    """Writes dust3r/, featup/ and dino/ under a folder and returns it.

    DUSt3R's two decoders and heads are equal, so that both images of a pair are seen alike: a picture and its copy must
    score 0.

    Args:
        folder: made if missing.
        depth: added to the z of all points before their length is stretched; below 0 all lie behind the camera.
    """
    geometry = random(lambda: Dust3r(GEOMETRY, rngs=nnx.Rngs(0)), 1)
    variables = checkpoints.parameter_paths(geometry)
    bias = np.array(variables["head1.proj.bias"][...]).reshape(4, -1)
    bias[2] += depth
    variables["head1.proj.bias"].set_value(jnp.asarray(bias.reshape(-1)))
    for path, variable in variables.items():
        if ".first." in path or path.startswith("head1."):
            twin = path.replace(".first.", ".second.").replace("head1.", "head2.")
            variables[twin].set_value(variable[...])
    checkpoints.save_model(folder / "dust3r", geometry, GEOMETRY)
    featup = random(lambda: FeatUp(FEATUP, rngs=nnx.Rngs(0)), 2)
    checkpoints.save_model(folder / "featup", featup, FEATUP)
    dino = random(lambda: VisionTransformer(DinoConfig.tiny(), rngs=nnx.Rngs(0)), 3)
    checkpoints.save_model(folder / "dino", dino, DinoConfig.tiny())
    return folder


def random(build, seed):
    model = checkpoints.abstract(build)
    fill_randomly(model, seed)
    return model
