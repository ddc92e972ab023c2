"""The fine-tuning step and the sampling step against diffusers + peft on PyTorch: equal weights, equal draws, in turn.

    python -m benchmarks.against_diffusers [--repeats 9]

The networks are the small family's. At full size each side has a command of its own, which draws its weights on the
device: ``python -m benchmarks.full_size_run`` and ``python -m benchmarks.diffusers_steps``.

Random weights are written in our layout and turned into the published one by ``python -m converters --to-torch``; the
adapters travel as the file that a run exports. Fine-tuning is the whole step: latents and noised first frame drawn,
that frame encoded, the masked v-loss, its gradient, the clip, AdamW. PyTorch gets the random numbers that ours draws,
made before the clock runs. Sampling is one guided DDIM step, both passes in one batch.

First the losses of three successive steps, what they did to the adapters, and the latents after three sampling steps
are compared in float32; then each program is called once to warm up, and all take turns: A B C A B C. PyTorch's step
comes twice, as diffusers has it and with gradient checkpointing, which is what our ``remat`` does.

Memory: on a GPU what torch says of its peak and XLA's plan of ours, weights included; on a CPU how far resident memory
rises during a step of torch's, and XLA's plan of the temporaries of ours.

On a busy machine torch's threads wait for each other while they spin: give both one core (``taskset -c 0``).
"""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU's memory is shared with PyTorch

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.diffusers_steps import GUIDANCE, SAMPLING_STEPS, Theirs
from converters import command
from reangle_jax import checkpoints, commands, config, learning, measure, mesh
from reangle_jax.backbones.cogvideox import lora as lora_file
from reangle_jax.backbones.cogvideox import networks
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.backbones.registry import Clip
from reangle_jax.diffusion import guidance, samplers
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.stages import finetune

MODEL = "cogvideox-5b-i2v"
VIDEOS = 7  # the input and six warps
CHECKED = 3  # steps that are compared
GIB = 2.0**30
Call = functools.partial


@dataclasses.dataclass(frozen=True)
class Case:
    """Networks and the clips' size."""

    transformer: TransformerConfig
    vae: VAEConfig
    rank: int

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of a frame."""
        ratio = self.vae.spatial_compression_ratio
        return self.transformer.sample_height * ratio, self.transformer.sample_width * ratio

    @property
    def latents(self) -> tuple[int, ...]:
        """Shape of one video's latents, [t, h, w, C]."""
        t = self.transformer
        return (t.sample_latent_frames, t.sample_height, t.sample_width, t.out_channels)

    @property
    def adapted(self) -> TransformerConfig:
        """The transformer with its adapters."""
        return dataclasses.replace(self.transformer, lora_rank=self.rank, lora_alpha=float(self.rank))

    @property
    def options(self) -> config.Finetune:
        """The paper's settings of fine-tuning, at a higher rate: three steps have to show."""
        settings = config.get_default()
        settings.video = "clip.mp4"
        return dataclasses.replace(config.parse(settings).finetune, rank=self.rank, learning_rate=1e-3)


def case(size: str) -> Case:
    """``small`` is the family that comes with the package, ``full`` CogVideoX-5B-I2V at 49 frames of 480x720."""
    transformer, vae = TransformerConfig.tiny(), VAEConfig.tiny()
    if size == "full":
        transformer = TransformerConfig.cogvideox_5b_i2v()
        vae = VAEConfig(param_dtype="bfloat16")
    return Case(transformer, vae, 128 if size == "full" else 64)


def write_weights(folder: Path, case: Case) -> None:
    """Random weights: ``folder/ours`` and the same in ``folder/published``."""
    for part, build in (("transformer", Transformer), ("vae", VAE)):
        settings = getattr(case, part)
        model = checkpoints.abstract(lambda build=build, settings=settings: build(settings, rngs=nnx.Rngs(0)))
        for number, (path, variable) in enumerate(checkpoints.parameter_paths(model).items()):
            key, shape = jax.random.fold_in(jax.random.key(0), number), variable.shape
            fan_in = np.prod(shape[1 if len(shape) == 3 else 0 : -1])  # a stack's leading axis is no input
            size = fan_in**-0.5 if path.endswith("kernel") else 0.1
            value = size * jax.random.normal(key, shape, variable.dtype) + float(path.endswith("scale"))
            variable.set_value(value.astype(variable.dtype))
        checkpoints.save_model(folder / "ours" / part, model, settings)
        source, out = str(folder / "ours"), str(folder / "published")
        assert command.main([f"{MODEL}/{part}", "--source", source, "--out", out, "--to-torch"]) == 0
    model = checkpoints.abstract(lambda: Transformer(case.adapted, rngs=nnx.Rngs(0)))
    rng, variables = np.random.default_rng(1), checkpoints.parameter_paths(nnx.state(model, nnx.LoRAParam))
    arrays = {path: rng.normal(0, 0.02, value.shape).astype(np.float32) for path, value in variables.items()}
    adapters = lora_file.Adapters(arrays, case.rank, float(case.rank))
    lora_file.export_lora_safetensors(folder / "lora.safetensors", adapters, case.adapted)


def training_set(case: Case) -> finetune.TrainingSet:
    """Encoded videos with random content, of which three quarters are visible."""
    rng = np.random.default_rng(2)
    shape = (VIDEOS, *case.latents)
    text = (VIDEOS, case.transformer.max_text_seq_length, case.transformer.text_embed_dim)
    return finetune.TrainingSet(
        mean=jnp.asarray(rng.normal(size=shape).astype(np.float32)),
        logvar=jnp.asarray(rng.normal(-3, 1, shape).astype(np.float32)),
        mask=jnp.asarray((rng.random(shape[:-1]) < 0.75).astype(np.float32)),
        text=jnp.asarray(rng.normal(size=text).astype(np.float32)),
        first=jnp.asarray(rng.integers(0, 256, (VIDEOS, *case.pixels, 3), np.uint8)),
    )


@functools.partial(jax.jit, static_argnums=0)
def draws(case: Case, key: jax.Array) -> dict[str, jax.Array]:
    """What :func:`finetune.motion_loss` draws from a key, in its order."""
    keys, batch = jax.random.split(key, 8), case.options.batch_size
    shape = (batch, *case.latents)
    log_sigma = finetune.LOG_SIGMA_MEAN + finetune.LOG_SIGMA_DEVIATION * jax.random.normal(keys[3], (batch, 1, 1, 1))
    return {
        "pick": jax.random.randint(keys[0], (batch,), 0, VIDEOS),
        "posterior": jax.random.normal(keys[1], shape),
        "pixels": jnp.exp(log_sigma) * jax.random.normal(keys[2], (batch, *case.pixels, 3)),
        "condition": jax.random.normal(keys[4], (batch, 1, *case.latents[1:])),
        "kept": jax.random.bernoulli(keys[5], 1.0 - case.options.condition_dropout, (batch, 1, 1, 1, 1)),
        "t": jax.random.randint(keys[6], (batch,), 0, Schedule().train_steps),
        "eps": jax.random.normal(keys[7], shape),
    }


class Ours:
    """This project's two programs."""

    name = "reangle_jax"

    def __init__(self, folder: Path, case: Case, data: finetune.TrainingSet):
        self.config, self.data = case.adapted, data
        parts = folder / "ours" / "vae", folder / "ours" / "transformer"
        self.vae = networks.load(networks.describe_vae(parts[0]), parts[0])
        described = networks.describe_transformer(parts[1], lora_rank=case.rank, lora_alpha=float(case.rank))
        self.transformer = networks.load(described, parts[1])
        lora = lora_file.to_state(lora_file.read(folder / "lora.safetensors", self.config), self.config)
        optimiser = finetune.make_optimiser(case.options)
        self.state = learning.init(lora, optimiser)
        clip = Clip(case.transformer.sample_frames, *case.pixels, "off")
        backbone = CogVideoXBackbone.of_networks(self.transformer, self.vae, clip)
        self.step, schedule = finetune.make_step(backbone, case.options, optimiser), backbone.schedule
        scales = guidance.guidance_scales(schedule.timesteps(SAMPLING_STEPS), SAMPLING_STEPS, GUIDANCE, False)
        denoise = guidance.guided(networks.predictor(self.transformer.graphdef), scales)
        self.sampler = samplers.make_step(denoise, sampler="ddim", steps=SAMPLING_STEPS, schedule=schedule)

    def finetune(self, key: jax.Array) -> float:
        """One step; its loss."""
        self.state, numbers = self.step(*self.arguments(key))
        return float(jax.block_until_ready((self.state, numbers))[1]["loss"])

    def sample(self, latents: jax.Array, index: int, *both: jax.Array) -> jax.Array:
        """The latents after one guided step; condition and text of both passes."""
        return jax.block_until_ready(self.sampler(*self.arguments(latents, index, *both)).latents)

    def arguments(self, *call: Any) -> tuple[Any, ...]:
        """Of the compiled program, for a call of :meth:`finetune` or :meth:`sample`."""
        if len(call) == 1:
            return (self.state, self.transformer.state, self.vae.state, self.data, *call)
        start = (samplers.init_state(call[0]), jnp.int32(call[1]), jax.random.key(0))
        return (*start, self.state.parameters, self.transformer.state, *call[2:])

    def adapters(self) -> dict[str, np.ndarray]:
        """As they stand now, under their published names."""
        return lora_file.published_lora(lora_file.from_state(self.state.parameters, self.config), self.config)


class Pair:
    """Both sides with the same weights, data and random numbers.

    Args:
        case: networks and sizes.
        folder: for the weights; they are written there.
    """

    def __init__(self, case: Case, folder: Path):
        write_weights(folder, case)
        data = training_set(case)
        self.ours, self.theirs = Ours(folder, case, data), Theirs.of_folder(folder, case, data)
        self.case, self.numbers = case, 0
        rng, dtype = np.random.default_rng(3), jnp.dtype(case.transformer.param_dtype)
        text = (2, case.transformer.max_text_seq_length, case.transformer.text_embed_dim)
        shapes = ((1, *case.latents), (2, *case.latents), text)
        self.inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype) for shape in shapes]
        self.torch_inputs = [self.theirs.tensor(x).to(self.theirs.dtype) for x in self.inputs]

    def draw(self) -> tuple[jax.Array, dict[str, torch.Tensor]]:
        """The next step's random numbers for either side."""
        key = jax.random.fold_in(jax.random.key(4), self.numbers)
        self.numbers += 1
        return key, self.theirs.drawn(draws(self.case, key))

    def differences(self) -> dict[str, float]:
        """Largest relative differences after `CHECKED` steps: losses, the adapters' change, sampled latents."""
        before, losses = self.ours.adapters(), []
        for _ in range(CHECKED):
            key, draw = self.draw()
            losses.append((self.ours.finetune(key), self.theirs.finetune(draw)))
        ours, theirs = self.ours.adapters(), self.theirs.adapters()
        assert ours.keys() == theirs.keys()
        change = [np.concatenate([(side[n] - before[n]).ravel() for n in before]) for side in (ours, theirs)]
        a, b = self.inputs[0], self.torch_inputs[0]
        for index in range(CHECKED):
            a, b = self.ours.sample(a, index, *self.inputs[1:]), self.theirs.sample(b, index, *self.torch_inputs[1:])
        a, b = np.asarray(a, np.float32), np.moveaxis(b.float().cpu().numpy(), 2, -1)
        return {
            "loss": max(abs(x / y - 1) for x, y in losses),
            "adapters": float(np.linalg.norm(change[0] - change[1]) / np.linalg.norm(change[1])),
            "latents": float(np.abs(a - b).max() / np.abs(b).max()),
        }


def resident_rise(call: Call) -> float:
    """How far resident memory rises during a call, in bytes; NaN where the system does not tell."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left to the allocator would hide what this one takes
    if not measure.reset_host_peak():
        return float("nan")
    before = measure.host_peak_bytes()
    call()
    return measure.host_peak_bytes() - before


def main() -> None:
    """Compares, then prints a line for each program and side."""
    parser = commands.parser(__doc__)
    parser.add_argument("--repeats", type=commands.positive, default=9)
    arguments = parser.parse_args()
    highest = jax.default_matmul_precision("highest")  # as PyTorch multiplies float32
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh.make_mesh("data:1")), highest:
        pair = Pair(case("small"), Path(folder))
        found = pair.differences()
        print("float32: relative difference of", ", ".join(f"{k} {v:.1e}" for k, v in found.items()), flush=True)
        assert found["loss"] < 1e-5, "the losses differ: the two do not compute the same"
        assert found["adapters"] < 1e-2, "the adapters' change differs"
        assert found["latents"] < 1e-4, "the latents differ"
        compare(pair, arguments.repeats)


def compare(pair: Pair, repeats: int) -> None:
    """Times both sides in turn."""
    ours, theirs = pair.ours, pair.theirs

    def tune(side: str) -> Call:
        key, draw = pair.draw()
        if side == ours.name:
            return functools.partial(ours.finetune, key)
        switch = theirs.transformer
        switch.enable_gradient_checkpointing() if side == recomputed else switch.disable_gradient_checkpointing()
        return functools.partial(theirs.finetune, draw)

    def sample(side: str) -> Call:
        one, (latents, *both) = (ours, pair.inputs) if side == ours.name else (theirs, pair.torch_inputs)
        return functools.partial(one.sample, latents, 1, *both)

    recomputed = f"{theirs.name}, gradient checkpointing"
    device, threads = jax.devices()[0].device_kind, torch.get_num_threads()
    print(f"{device}, {threads} threads, median of {repeats}; in brackets against ours:")
    take_turns("finetune", tune, [ours.name, theirs.name, recomputed], pair, repeats)
    take_turns("sample", sample, [ours.name, theirs.name], pair, repeats)


def take_turns(program: str, make: Callable[[str], Call], sides: list[str], pair: Pair, repeats: int) -> None:
    """Warms up, measures memory, then times the sides in turn and prints a line for each."""
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    memory, first = {}, {}
    for side in sides:
        call, start = make(side), time.perf_counter()
        call()
        first[side] = time.perf_counter() - start
        memory[side] = peak(pair, make(side))
    for _ in range(repeats):
        for side in sides:
            call, wall, processor = make(side), time.perf_counter(), time.process_time()
            call()
            seconds[side].append((time.perf_counter() - wall, time.process_time() - processor))
    middle = {side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in seconds.items()}
    for side in sides:
        (wall, processor), (a, b) = middle[side], middle[sides[0]]
        print(
            f"  {program}, {side}: {1e3 * wall:.0f} ms ({wall / a:.2f}), of the processor {1e3 * processor:.0f} ms "
            f"({processor / b:.2f}), {memory[side] / GIB:.2f} GiB ({memory[side] / memory[sides[0]]:.2f}); the first "
            f"call {first[side]:.1f} s",
            flush=True,
        )


def peak(pair: Pair, call: Call) -> float:
    """Memory of one call in bytes, as the module's docstring says."""
    on_cpu = pair.theirs.device == "cpu"
    if call.func.__self__ is pair.ours:
        program = pair.ours.step if call.func == pair.ours.finetune else pair.ours.sampler
        plan = program.lower(*pair.ours.arguments(*call.args)).compile().memory_analysis()
        return plan.temp_size_in_bytes if on_cpu else plan.peak_memory_in_bytes
    if on_cpu:
        return resident_rise(call)
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
