"""Networks and geometry in float32 multiply with all its bits on every platform, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import ShapeDtypeStruct as Shape
from jax.lax import Precision

from reangle_jax.geometry.cameras import Cameras
from reangle_jax.geometry.splat import warp_video
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.depth_anything import DepthAnything
from reangle_jax.models.depth_anything.video import _estimate
from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, VisionTransformer
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.t5 import T5Encoder
from reangle_jax.nn.execution import Execution
from reangle_jax.scoring.met3r import Met3r
from tests import jaxprs
from tests.networks import DEPTH_SMALL, TEXT_SMALL, TRANSFORMER_SMALL, VAE_SMALL
from tests.scoring.small_scorer import FEATUP, GEOMETRY, SIZE

PAIR = (Shape((1, 64, 64, 3), jnp.float32),) * 2
DENSE = dataclasses.replace(
    Dust3rConfig.tiny(), decoder_depth=4, neck_widths=(8, 8, 8, 8), fusion_width=8, head_width=8, image_size=64
)
PICTURES = AutoencoderConfig((4, 8), 1, latent_channels=4, norm_num_groups=2)
CLIP = CLIPConfig(vocab_size=32, max_length=16, width=16, mlp_width=32, num_layers=2, num_heads=2)
VIDEO, LATENTS = Shape((1, 5, 32, 32, 3), jnp.float32), Shape((1, 2, 4, 4, 4), jnp.float32)
DIFFUSION = (Shape((1, 2, 16, 16, 8), jnp.float32), Shape((1, 16, 16), jnp.float32), Shape((1,), jnp.float32))
NETWORKS = {
    "dust3r linear": (lambda r: Dust3r(dataclasses.replace(DENSE, head="linear"), rngs=r), PAIR, None),
    "dust3r dpt": (lambda r: Dust3r(dataclasses.replace(DENSE, head="dpt"), rngs=r), PAIR, None),
    "mast3r": (lambda r: Dust3r(dataclasses.replace(DENSE, head="mast3r"), rngs=r), PAIR, None),
    "dino": (lambda r: VisionTransformer(DinoConfig.tiny(), rngs=r), PAIR[:1], "features"),
    "featup": (lambda r: FeatUp(FeatUpConfig.tiny(), rngs=r), PAIR[:1], None),
    "depth anything": (lambda r: DepthAnything(DEPTH_SMALL, rngs=r), (Shape((1, 70, 98, 3), jnp.float32),), None),
    "lpips": (lambda r: Lpips(LpipsConfig(divisor=16), rngs=r), PAIR, None),
    "lpips squeeze": (lambda r: Lpips(LpipsConfig("squeeze", divisor=16), rngs=r), PAIR, None),
    "text": (lambda r: T5Encoder(TEXT_SMALL, rngs=r), (Shape((1, 16), jnp.int32),), None),
    "clip": (lambda r: CLIPTextEncoder(CLIP, rngs=r), (Shape((1, 16), jnp.int32),), None),
    "picture encoder": (lambda r: Autoencoder(PICTURES, rngs=r), PAIR[:1], "encode"),
    "picture decoder": (lambda r: Autoencoder(PICTURES, rngs=r), (Shape((1, 8, 8, 4), jnp.float32),), "decode"),
    "encoder": (lambda r: VAE(VAE_SMALL, rngs=r), (VIDEO,), "encode"),
    "decoder": (lambda r: VAE(VAE_SMALL, rngs=r), (LATENTS,), "decode"),
} | {
    f"transformer {impl}": (
        lambda r, impl=impl: Transformer(TRANSFORMER_SMALL, execution=Execution(impl, remat="attention"), rngs=r),
        DIFFUSION,
        None,
    )
    for impl in ("plain", "mapped", "xla")
}


def assert_all_bits(function, *operands):
    """Traces a function and asserts that it has products, and what precision they have."""
    found = [e for e in jaxprs.equations(jax.make_jaxpr(function)(*operands).jaxpr)
             if e.primitive.name in ("dot_general", "conv_general_dilated")]  # fmt: skip
    assert found
    assert {e.invars[0].aval.dtype for e in found} == {jnp.dtype("float32")}
    assert {e.params["precision"] for e in found} == {(Precision.HIGHEST, Precision.HIGHEST)}


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_networks(name):
    build, operands, method = NETWORKS[name]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def loss(state, *operands):
        model = nnx.merge(graphdef, state)
        outputs = (getattr(model, method) if method else model)(*operands)
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(outputs))

    assert_all_bits(jax.grad(loss), state, *operands)


def test_depth_of_a_video():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: DepthAnything(DEPTH_SMALL, rngs=nnx.Rngs(0))))
    images = Shape((1, 70, 98, 3), jnp.float32)
    assert_all_bits(lambda state, images: _estimate(graphdef, state, images, (64, 96), False), state, images)


def test_score():
    builds = (lambda: Dust3r(GEOMETRY, rngs=nnx.Rngs(0)), lambda: FeatUp(FEATUP, rngs=nnx.Rngs(0)))
    graphdefs, states = zip(*(nnx.split(nnx.eval_shape(build)) for build in builds), strict=True)
    metric = Met3r(*graphdefs)

    def score(states, images):
        first, second = (metric.describe(states, images[k : k + 1]) for k in (0, 1))
        return metric.compare(states, first, second)

    assert_all_bits(score, states, Shape((2, SIZE, SIZE, 3), jnp.float32))


def test_cameras_and_warps():
    def warp(frames, depth, K, poses):
        cameras = Cameras(K, poses)
        return warp_video(frames, depth, cameras, cameras)

    frames, depth = Shape((2, 8, 8, 3), jnp.uint8), Shape((2, 8, 8), jnp.float32)
    assert_all_bits(warp, frames, depth, Shape((2, 3, 3), jnp.float32), Shape((2, 4, 4), jnp.float32))
