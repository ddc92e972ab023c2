"""The real fine-tuning step and the real sampling step, lowered for accelerators that are not there, on meshes."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from reangle_jax import learning
from reangle_jax import mesh as meshes
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.backbones.cogvideox.networks import Network
from reangle_jax.backbones.cogvideox.sampling import Sampler
from reangle_jax.backbones.interface import Sampling
from reangle_jax.backbones.registry import Clip
from reangle_jax.diffusion.samplers import init_state
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.nn.attention import compiling_for
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.splash import padded_length
from reangle_jax.stages import finetune
from tests.networks import FRAMES, HEIGHT, TEXT_LENGTH, TRANSFORMER_SMALL, VAE_SMALL, WIDTH
from tests.stages.test_finetune import OPTIONS

pytestmark = [pytest.mark.sharding, pytest.mark.usefixtures("optax_promotion", "cudnn")]
HEADS, VIDEOS = 4, 2  # guidance makes two of one video, too
MESHES = ["data:2", "u:4", "r:2,u:2"]
# The platform as kernels and as JAX call it, its kernel, and how that shows in a lowered program.
PLATFORMS = {"tpu": ("tpu", "splash", "tpu_custom_call"), "gpu": ("cuda", "cudnn", "__cudnn$fmhaSoftmax")}
LATENTS = (VIDEOS, 2, HEIGHT // 4, WIDTH // 4, 4)


def abstract(tree, mesh):
    """Shapes in place of arrays, laid out as the run lays them out."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        meshes.shardings(tree, mesh),
    )


def networks(mesh, impl):
    config = dataclasses.replace(
        TRANSFORMER_SMALL, num_attention_heads=HEADS, attention_head_dim=64, param_dtype="bfloat16",
        lora_rank=8, lora_alpha=8.0,
    )  # fmt: skip
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    assert model.execution == Execution(impl, remat="attention", dtype="bfloat16")  # as this platform does it best
    transformer = nnx.split(model, nnx.LoRAParam, ...)
    coder = nnx.eval_shape(lambda: VAE(VAE_SMALL, rngs=nnx.Rngs(0)))
    vae = nnx.split(coder)
    lora, base, vae_state = (abstract(state, mesh) for state in (*transformer[1:], vae[1]))
    return (
        Network(config, model.execution, transformer[0], base),
        Network(VAE_SMALL, coder.execution, vae[0], vae_state),
        lora,
    )


def finetuning_step(mesh, impl):
    transformer, vae, lora = networks(mesh, impl)
    options = dataclasses.replace(OPTIONS, batch_size=VIDEOS)
    optimiser = finetune.make_optimiser(options)
    data = finetune.TrainingSet(
        mean=jax.ShapeDtypeStruct(LATENTS, jnp.float32),
        logvar=jax.ShapeDtypeStruct(LATENTS, jnp.float32),
        mask=jax.ShapeDtypeStruct(LATENTS[:-1], jnp.float32),
        text=jax.ShapeDtypeStruct((VIDEOS, TEXT_LENGTH, 16), jnp.float32),
        first=jax.ShapeDtypeStruct((VIDEOS, HEIGHT, WIDTH, 3), jnp.uint8),
    )
    state = abstract(jax.eval_shape(lambda lora: learning.init(lora, optimiser), lora), mesh)
    backbone = CogVideoXBackbone.of_networks(transformer, vae, Clip(FRAMES, HEIGHT, WIDTH, "off"))
    step = finetune.make_step(backbone, options, optimiser)
    return step.trace(state, transformer.state, vae.state, data, jax.eval_shape(jax.random.key, 0))


def sampling_step(mesh, impl):
    transformer, vae, lora = networks(mesh, impl)
    options = Sampling(3, guidance_scale=6.0, dynamic_guidance=True, sampler="ddim")
    sampler = Sampler(transformer, vae, Schedule(), options, num_frames=FRAMES)
    state = jax.eval_shape(init_state, jax.ShapeDtypeStruct((1, *LATENTS[1:]), jnp.bfloat16))
    batch = jax.NamedSharding(mesh, jax.P(meshes.DATA))  # as denoise lays the two halves
    condition = jax.ShapeDtypeStruct(LATENTS, jnp.bfloat16, sharding=batch)
    text = jax.ShapeDtypeStruct((VIDEOS, TEXT_LENGTH, 16), jnp.float32, sharding=batch)
    key, index = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    return sampler._step.trace(state, index, key, lora, transformer.state, condition, text)


@pytest.mark.parametrize("text", MESHES)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("make", [finetuning_step, sampling_step])
def test_step_lowers_and_divides_its_attention(make, platform, text):
    name, impl, call = PLATFORMS[platform]
    mesh = meshes.make_mesh(text)
    with meshes.use(mesh), compiling_for(platform):
        lowered = make(mesh, impl).lower(lowering_platforms=(name,)).as_text()
    calls = [line for line in lowered.splitlines() if call in line]
    # Training: the forward kernel and the backward one, each once for all layers.
    assert len(calls) == (2 if make is finetuning_step else 1)
    videos, heads = VIDEOS // mesh.shape["data"], HEADS // mesh.shape["u"]
    tokens = (TEXT_LENGTH + 2 * (HEIGHT // 16) * (WIDTH // 16)) // mesh.shape["r"]
    # The splash kernel's pads are masked by a channel more, in whole lanes.
    tokens, channels = (padded_length(tokens), 128) if impl == "splash" else (tokens, 64)
    for line in calls:
        queries = next(map(int, shape.split("x")) for shape in re.findall(r"tensor<([\dx]+)xbf16>", line))
        assert math.prod(queries) == videos * heads * tokens * channels
