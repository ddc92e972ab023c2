"""Memory and operations of the full-size programs, compiled for a TPU that need not be there.

    pip install "libtpu==0.0.42.*"      # beside jax 0.10.2
    python benchmarks/full_size.py --topology v6e:1x1 --program finetune
    python benchmarks/full_size.py --topology v5p:1x1x1 --program sample
    python benchmarks/full_size.py --program score
    python benchmarks/full_size.py --program paint

The real fine-tuning step (LoRA of rank 128 on all 42 blocks, the noised first frame encoded, AdamW), the real guided
sampling step of CogVideoX-5B-I2V at 49 frames of 480x720, the score of 25 candidates against up to six finished
views of 256x256 (DUSt3R-512-DPT, FeatUp over DINO ViT-S/16), or a round of candidates of FLUX.1-dev with its
inpainting ControlNet at 480x720, decoded, is lowered with abstract arguments and compiled. The compiler enforces the
chip's memory: a program that does not fit fails here with its figure. Nothing is executed, and no weights are needed.
Compiling takes minutes on one core.
"""

import argparse
import dataclasses
import os
import time
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reangle_jax import config as settings_module
from reangle_jax import learning
from reangle_jax import mesh as mesh_module
from reangle_jax.backbones.cogvideox import conditioning, networks
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.backbones.registry import Clip
from reangle_jax.diffusion import guidance, samplers
from reangle_jax.diffusion.control import Best
from reangle_jax.diffusion.flow import Coefficients
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.nn.attention import compiling_for
from reangle_jax.painters.flux import networks as flux_networks
from reangle_jax.painters.flux.painter import Arguments, FluxPainter
from reangle_jax.scoring.met3r import Met3r
from reangle_jax.stages import finetune

GIB = 2.0**30


def one_chip(topology: str) -> Mesh:
    """A 1x1x1 mesh over the first device of a topology (``v6e:1x1``)."""
    single = {"chips_per_host_bounds": (1, 1, 1)} if "1x1" in topology else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **single).devices
    return Mesh(np.asarray(devices[:1]).reshape(1, 1, 1), mesh_module.AXES)


def abstract(tree, where: NamedSharding):
    """The same shapes and dtypes, placed."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def full_size(rank: int, layers: int | None) -> tuple[networks.Network, networks.Network, nnx.State]:
    """The full-size transformer, its autoencoder and the adapters, without arrays."""
    fields = {"lora_rank": rank, "lora_alpha": float(rank)}
    config = TransformerConfig.cogvideox_5b_i2v()
    config = type(config)(**{**vars(config), **fields, "num_layers": layers or config.num_layers})
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graphdef, lora, base = nnx.split(model, nnx.LoRAParam, ...)
    vae = nnx.eval_shape(lambda: VAE(VAEConfig.cogvideox_5b(), rngs=nnx.Rngs(0)))
    transformer = networks.Network(config, model.execution, graphdef, base)
    return transformer, networks.Network(vae.config, vae.execution, *nnx.split(vae)), lora


def lower_finetune(rank: int, layers: int | None, where: NamedSharding):
    """The fine-tuning step of the paper's settings: seven videos, batch 1."""
    transformer, vae, lora = full_size(rank, layers)
    settings = settings_module.get_default()
    settings.video = "clip.mp4"
    options = settings_module.parse(settings).finetune
    optimiser, encoder = finetune.make_optimiser(options), networks.encoder_alone(vae)
    backbone = CogVideoXBackbone.of_networks(transformer, vae, Clip(49, 480, 720, "off"))
    step = finetune.make_step(backbone, options, optimiser)
    latents, text = (7, 13, 60, 90, 16), (7, 226, 4096)
    data = finetune.TrainingSet(
        mean=jax.ShapeDtypeStruct(latents, jnp.float32),
        logvar=jax.ShapeDtypeStruct(latents, jnp.float32),
        mask=jax.ShapeDtypeStruct(latents[:-1], jnp.float32),
        text=jax.ShapeDtypeStruct(text, jnp.float32),
        first=jax.ShapeDtypeStruct((7, 480, 720, 3), jnp.uint8),
    )
    state = jax.eval_shape(lambda lora: learning.init(lora, optimiser), lora)
    arguments = (state, transformer.state, encoder.state, data, jax.eval_shape(jax.random.key, 0))
    return step.lower(*(abstract(argument, where) for argument in arguments))


def lower_sample(rank: int, layers: int | None, where: NamedSharding):
    """One guided step of sampling a video, its two passes in one batch."""
    transformer, _, lora = full_size(rank, layers)
    schedule, steps = Schedule.cogvideox_5b(), 40
    scales = guidance.guidance_scales(schedule.timesteps(steps), steps, 6.0, True)
    denoise = guidance.guided(conditioning.predictor(transformer.graphdef), scales)
    step = samplers.make_step(denoise, sampler="ddim", steps=steps, schedule=schedule)
    latents = jax.ShapeDtypeStruct((1, 13, 60, 90, 16), jnp.bfloat16)
    condition = jax.ShapeDtypeStruct((2, *latents.shape[1:]), jnp.bfloat16)
    text = jax.ShapeDtypeStruct((2, 226, 4096), jnp.bfloat16)
    state = jax.eval_shape(samplers.init_state, latents)
    arguments = (state, jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(jax.random.key, 0))
    arguments += (lora, transformer.state, condition, text)
    return step.lower(*(abstract(argument, where) for argument in arguments))


def lower_score(rank: int, layers: int | None, where: NamedSharding):
    """MEt3R of stochastic control guidance; it has neither adapters nor layers to leave out."""
    del rank, layers
    builds = (
        lambda: Dust3r(Dust3rConfig.dpt_512(), rngs=nnx.Rngs(0)),
        lambda: FeatUp(FeatUpConfig.vits16(), rngs=nnx.Rngs(0)),
    )
    graphs, states = zip(*(nnx.split(nnx.eval_shape(build)) for build in builds), strict=True)
    metric = Met3r(*graphs)
    candidates, finished = (jax.ShapeDtypeStruct((n, 256, 256, 3), jnp.float32) for n in (25, 6))
    views = jax.eval_shape(metric.describe, states, finished)
    arguments = (states, candidates, views, jax.ShapeDtypeStruct((), jnp.int32))
    return jax.jit(metric.against).lower(*(abstract(argument, where) for argument in arguments))


def trace_paint(where: NamedSharding):
    """A round of candidates of stochastic control at 480x720, one a device: evaluated, decoded, the best kept.

    What chooses among them here is a mean of colours: the score itself is another program.
    """
    sizes = {
        "transformer": FluxConfig.dev(),
        "controlnet": ControlNetConfig.inpainting_beta(),
        "vae": dataclasses.replace(AutoencoderConfig.flux1(), param_dtype="bfloat16"),  # as it is converted
    }
    found = {role: flux_networks.build(role, config) for role, config in sizes.items()}
    painter = FluxPainter.of_networks(found, (480, 720))

    def array(*shape: int, dtype=jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    state, number = array(60, 90, 16), array(dtype=jnp.int32)
    arguments = Arguments(
        flux_networks.Parameters(**{role: network.state for role, network in found.items()}),
        flux_networks.Text(array(1, 512, 4096), array(1, 768)),
        condition=array(1, 30 * 45, 68),
        known=None,
        guidance=array(1),
        control_scale=array(),
    )
    step = Coefficients(*[array()] * len(Coefficients._fields))
    key = jax.eval_shape(jax.random.key, 0)
    given = (Best(array(), number, state, state), state, state, number, number, step, key, arguments, array())
    return painter._control._round.trace(
        *(abstract(each, where) for each in given), scores=lambda _, pictures: pictures.mean((1, 2))
    )


def lower_paint(rank: int, layers: int | None, where: NamedSharding):
    """`trace_paint`; it has neither adapters nor layers to leave out."""
    del rank, layers
    return trace_paint(where).lower()


def main() -> None:
    """Compiles one program and prints what the compiler says of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v6e:1x1", help="one chip: v5e:1x1, v6e:1x1, v5p:1x1x1")
    parser.add_argument("--program", choices=("finetune", "sample", "score", "paint"), default="finetune")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--layers", type=int, default=None, help="fewer blocks than 42, for a quick look")
    args = parser.parse_args()
    mesh = one_chip(args.topology)
    lower = {"finetune": lower_finetune, "sample": lower_sample, "score": lower_score, "paint": lower_paint}[
        args.program
    ]
    start = time.perf_counter()
    with mesh_module.use(mesh), compiling_for("tpu"):
        lowered = lower(args.rank, args.layers, NamedSharding(mesh, PartitionSpec()))
        compiled = lowered.compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "the compiler said nothing of memory"
    print(
        f"{args.program} on {args.topology}: arguments {memory.argument_size_in_bytes / GIB:.1f} GiB, temporaries "
        f"{memory.temp_size_in_bytes / GIB:.1f} GiB, peak {memory.peak_memory_in_bytes / GIB:.1f} GiB; traced and "
        f"compiled in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
