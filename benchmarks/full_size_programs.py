"""The full-size programs and the shapes that they are called with, laid out on a mesh as a run lays them out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reangle_jax import checkpoints, learning
from reangle_jax import config as settings_module
from reangle_jax import mesh as meshes
from reangle_jax.backbones.cogvideox import networks
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.backbones.cogvideox.sampling import Sampler
from reangle_jax.backbones.interface import Sampling
from reangle_jax.backbones.registry import Clip
from reangle_jax.diffusion import samplers
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
from reangle_jax.nn.choices import Choice
from reangle_jax.nn.execution import Execution
from reangle_jax.painters.flux import networks as flux_networks
from reangle_jax.painters.flux.painter import Arguments, FluxPainter
from reangle_jax.scoring.met3r import Met3r
from reangle_jax.stages import finetune

VIDEOS = 7  # the input and six warps


class Program(NamedTuple):
    """A jitted function and what it is called with.

    Attributes:
        function: jitted.
        arguments: shapes, laid out on the mesh.
        static: keyword arguments that are part of the program.
        fixed: values of arguments that decide what is computed, by their place.
        following: from a call's arguments and what it gave to the next call's arguments.
    """

    function: Any
    arguments: tuple[Any, ...]
    static: Mapping[str, Any] = {}
    fixed: Mapping[int, Any] = {}
    following: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] = lambda arguments, result: arguments

    def trace(self) -> Any:
        """The program of these arguments, as ``jax.jit`` traces it."""
        return self.function.trace(*self.arguments, **self.static)


class Case(NamedTuple):
    """What is compiled.

    Attributes:
        base: ``auto``, as published, or ``int8``.
        remat: see `reangle_jax.nn.remat.rematerialised`.
        rank: of the adapters.
        videos: of a training batch, or sampled at once.
        short: two blocks and 2,026 tokens.
        tiles: whether the autoencoder codes frames in tiles (`config.vae_tiles`).
    """

    base: str = "auto"
    remat: str = "attention"
    rank: int = 128
    videos: int = 1
    short: bool = False
    tiles: bool = False

    @property
    def transformer(self) -> TransformerConfig:
        """CogVideoX-5B-I2V."""
        full = dataclasses.replace(
            TransformerConfig.cogvideox_5b_i2v(), lora_rank=self.rank, lora_alpha=float(self.rank)
        )
        small = {"num_layers": 2, "sample_frames": 9, "sample_height": 40, "sample_width": 60} if self.short else {}
        return checkpoints.as_kept(dataclasses.replace(full, **small), self.base)

    @property
    def vae(self) -> VAEConfig:
        """Its autoencoder, as it is converted."""
        config = VAEConfig(param_dtype="bfloat16")
        return config.tiled(networks.TILE_SAMPLE) if self.tiles else config

    @property
    def clip(self) -> Clip:
        """The clips."""
        config = self.transformer
        return Clip(config.sample_frames, 8 * config.sample_height, 8 * config.sample_width, "off")

    @property
    def latents(self) -> tuple[int, ...]:
        """Shape of one clip's latents."""
        config = self.transformer
        return (config.sample_latent_frames, config.sample_height, config.sample_width, config.out_channels)

    @property
    def tokens(self) -> int:
        """Tokens of a clip, with its text's."""
        config = self.transformer
        return config.num_video_tokens(*self.latents[:3]) + config.max_text_seq_length


def placed(tree: Any, mesh: Mesh) -> Any:
    """Shapes in the layout of their parameters; whole on every device where they are none."""
    shardings = meshes.shardings(tree, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def array(mesh: Mesh, *shape: int, dtype: Any = jnp.float32, divided: bool = False) -> Any:
    """A shape, whole on every device or divided by its leading axis over ``data``."""
    even = divided and shape[0] % mesh.shape[meshes.DATA] == 0
    place = NamedSharding(mesh, PartitionSpec(meshes.DATA) if even else PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def key(mesh: Mesh) -> Any:
    """A random key."""
    return placed(jax.eval_shape(jax.random.key, 0), mesh)


def video_networks(case: Case, mesh: Mesh) -> tuple[networks.Network, networks.Network, nnx.State]:
    """The transformer, its autoencoder and the adapters."""
    config, autoencoder = case.transformer, case.vae
    execution = Execution.chosen(config.param_dtype, Choice(remat=case.remat))
    model = nnx.eval_shape(lambda: Transformer(config, execution=execution, rngs=nnx.Rngs(0)))
    graphdef, lora, base = nnx.split(model, nnx.LoRAParam, ...)
    execution = Execution.in_type(autoencoder.param_dtype)
    vae = nnx.eval_shape(lambda: VAE(autoencoder, execution=execution, rngs=nnx.Rngs(0)))
    coder = networks.Network(autoencoder, execution, *nnx.split(vae))
    transformer = networks.Network(config, model.execution, graphdef, placed(base, mesh))
    return transformer, coder._replace(state=placed(coder.state, mesh)), placed(lora, mesh)


def finetuning(case: Case, mesh: Mesh) -> Program:
    """The fine-tuning step of the paper's settings."""
    transformer, vae, lora = video_networks(case, mesh)
    values = settings_module.get_default()
    values.video, values.finetune.batch_size = "clip.mp4", case.videos
    options = settings_module.parse(values).finetune
    optimiser, encoder = finetune.make_optimiser(options), networks.encoders(vae.state)
    step = finetune.make_step(CogVideoXBackbone.of_networks(transformer, vae, case.clip), options, optimiser)
    config, clip = case.transformer, case.clip
    data = finetune.TrainingSet(
        mean=array(mesh, VIDEOS, *case.latents),
        logvar=array(mesh, VIDEOS, *case.latents),
        mask=array(mesh, VIDEOS, *case.latents[:-1]),
        text=array(mesh, VIDEOS, config.max_text_seq_length, config.text_embed_dim),
        first=array(mesh, VIDEOS, clip.height, clip.width, 3, dtype=jnp.uint8),
    )
    state = placed(jax.eval_shape(lambda lora: learning.init(lora, optimiser), lora), mesh)
    arguments = (state, transformer.state, encoder, data, key(mesh))
    return Program(step, arguments, following=lambda given, result: (result[0], *given[1:]))


def sampler(case: Case, mesh: Mesh) -> tuple[Sampler, networks.Network, networks.Network, nnx.State]:
    """The sampler of 40 guided steps, the transformer, the autoencoder and the adapters."""
    transformer, vae, lora = video_networks(case, mesh)
    options = Sampling(40, guidance_scale=6.0, dynamic_guidance=True, sampler="ddim")
    made = Sampler(transformer, vae, Schedule(), options, num_frames=case.clip.num_frames)
    return made, transformer, vae, lora


def sampling(case: Case, mesh: Mesh) -> Program:
    """One guided step of sampling, its two passes in one batch."""
    made, transformer, _, lora = sampler(case, mesh)
    count, config, dtype = case.videos, case.transformer, transformer.execution.dtype
    latents = array(mesh, count, *case.latents, dtype=dtype)
    condition = array(mesh, 2 * count, *case.latents, dtype=dtype, divided=True)
    text = array(mesh, 2 * count, config.max_text_seq_length, config.text_embed_dim, dtype=dtype, divided=True)
    state = placed(jax.eval_shape(samplers.init_state, latents), mesh)
    number = array(mesh, dtype=jnp.int32)
    arguments = (state, number, key(mesh), lora, transformer.state, condition, text)
    return Program(made._step, arguments, following=lambda given, result: (result, *given[1:]))


def decoding(case: Case, mesh: Mesh) -> Program:
    """The frames of one video's latents."""
    made, transformer, vae, _ = sampler(case, mesh)
    return Program(made._decode, (vae.state, array(mesh, 1, *case.latents, dtype=transformer.execution.dtype)))


def encoding(case: Case, mesh: Mesh) -> Program:
    """The latents of one video's frames."""
    transformer, vae, _ = video_networks(case, mesh)
    backbone = CogVideoXBackbone.of_networks(transformer, vae, case.clip)
    video = array(mesh, 1, case.clip.num_frames, case.clip.height, case.clip.width, 3, dtype=jnp.uint8)
    return Program(jax.jit(backbone.encode), (networks.encoders(vae.state), video))


def choosing(case: Case, mesh: Mesh) -> Program:
    """A round of candidates of stochastic control at 480x720, one a device: evaluated, decoded, the best kept.

    What chooses among them here is a mean of colours: the score itself is another program.
    """
    sizes = {
        "transformer": FluxConfig.dev(),
        "controlnet": ControlNetConfig.inpainting_beta(),
        "vae": dataclasses.replace(AutoencoderConfig.flux1(), param_dtype="bfloat16"),  # as it is converted
    }
    if case.short:
        sizes["transformer"] = dataclasses.replace(sizes["transformer"], num_layers=2, num_single_layers=2)
        sizes["controlnet"] = dataclasses.replace(sizes["controlnet"], num_layers=2, base_layers=2)
    found = {role: flux_networks.build(role, config, base_dtype=case.base) for role, config in sizes.items()}
    painter = FluxPainter.of_networks(found, (480, 720))
    state, number, scalar = array(mesh, 60, 90, 16), array(mesh, dtype=jnp.int32), array(mesh)
    arguments = Arguments(
        flux_networks.Parameters(**{role: placed(network.state, mesh) for role, network in found.items()}),
        flux_networks.Text(array(mesh, 1, 512, 4096), array(mesh, 1, 768)),
        condition=array(mesh, 1, 30 * 45, 68),
        known=None,
        guidance=array(mesh, 1),
        control_scale=scalar,
    )
    step = Coefficients(*[scalar] * len(Coefficients._fields))
    best = Best(scalar, number, state, state)
    return Program(
        painter._control._round,
        (best, state, state, number, number, step, key(mesh), arguments, scalar),
        static={"scores": lambda _, pictures: pictures.mean((1, 2))},
    )


def scoring(case: Case, mesh: Mesh) -> Program:
    """MEt3R of 25 candidates against up to six views of 256x256 (DUSt3R-512-DPT, FeatUp over DINO ViT-S/16)."""
    del case
    builds = (
        lambda: Dust3r(Dust3rConfig.large("dpt", 512), rngs=nnx.Rngs(0)),
        lambda: FeatUp(FeatUpConfig.vits16(), rngs=nnx.Rngs(0)),
    )
    graphs, states = zip(*(nnx.split(nnx.eval_shape(build)) for build in builds), strict=True)
    metric, states = Met3r(*graphs), placed(states, mesh)
    candidates, finished = (array(mesh, n, 256, 256, 3) for n in (25, 6))
    views = placed(jax.eval_shape(metric.describe, states, finished), mesh)
    arguments = (states, candidates, views, array(mesh, dtype=jnp.int32))
    return Program(jax.jit(metric.against), arguments, fixed={3: finished.shape[0]})


PROGRAMS = {
    "finetune": finetuning,
    "sample": sampling,
    "candidates": choosing,
    "encode": encoding,
    "decode": decoding,
    "score": scoring,
}
ATTENDING = ("finetune", "sample", "candidates")  # those whose attention is a fused kernel
