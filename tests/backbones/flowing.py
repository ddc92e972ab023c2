"""A second small family: 2x4x4 latents, flow matching, three plain networks. It exists to be another one.

z_s = (1 - s) z + s eps for s from 0 to 1, and the denoiser predicts eps - z (Lipman et al., 2022, arXiv 2210.02747;
Liu et al., 2022, arXiv 2209.03003). Sampling follows it from s = 1 to 0 in equal steps.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from reangle_jax import checkpoints
from reangle_jax.arrays import to_bytes, to_unit
from reangle_jax.backbones import registry
from reangle_jax.backbones.interface import Backbone
from reangle_jax.diffusion import guidance
from reangle_jax.errors import InputError
from reangle_jax.needs import Needs
from reangle_jax.nn.linear import Linear, LoRAConfig
from tests.networks import fill_randomly

NAME = "flowing"
GRID = registry.Grid(frames=2, pixels=4, multiple=4)
CHANNELS, WORDS = 6, 8
PATCH = GRID.frames * GRID.pixels**2 * 3


@dataclasses.dataclass(frozen=True)
class WordsConfig:
    width: int = WORDS


@dataclasses.dataclass(frozen=True)
class CoderConfig:
    channels: int = CHANNELS


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    width: int = 16


class Words(nnx.Module):
    """A text's bytes, each a vector."""

    def __init__(self, config, *, rngs):
        self.table = Linear(256, config.width, rngs=rngs)

    def __call__(self, text):
        return self.table(jax.nn.one_hot(text, 256))


class Coder(nnx.Module):
    """Patches of two frames to latents and back."""

    def __init__(self, config, *, rngs):
        self.encoder = Linear(PATCH, 2 * config.channels, rngs=rngs)
        self.decoder = Linear(config.channels, PATCH, rngs=rngs)


class Denoiser(nnx.Module):
    """Every cell alone: its noised latent, its condition, the time and the text's mean."""

    def __init__(self, config, *, rngs, lora=None):
        self.up = Linear(2 * CHANNELS + 1 + WORDS, config.width, lora=lora, rngs=rngs)
        self.down = Linear(config.width, CHANNELS, lora=lora, rngs=rngs)

    def __call__(self, noised, condition, text, s):
        words = jnp.broadcast_to(text.mean(axis=1)[:, None, None, None, :], (*noised.shape[:-1], WORDS))
        time = jnp.broadcast_to(s[:, None, None, None, None], (*noised.shape[:-1], 1))
        return self.down(jax.nn.gelu(self.up(jnp.concatenate([noised, condition, words, time], axis=-1))))


NETWORKS = {"denoiser": (Denoiser, DenoiserConfig), "coder": (Coder, CoderConfig), "words": (Words, WordsConfig)}


def write_weights(folder):
    """Writes denoiser/, coder/ and words/ with random values."""
    for part, (network, config) in NETWORKS.items():
        model = checkpoints.abstract(lambda network=network, config=config: network(config(), rngs=nnx.Rngs(0)))
        fill_randomly(model)
        checkpoints.save_model(folder / part, model, config())
    return folder


def to_patches(video):
    """Video [B, T, H, W, 3] to [B, t, h, w, PATCH]; the first frame counts twice."""
    video = jnp.concatenate([video[:, :1], video], axis=1)
    b, t, h, w = video.shape[0], video.shape[1] // GRID.frames, *(x // GRID.pixels for x in video.shape[2:4])
    cells = video.reshape(b, t, GRID.frames, h, GRID.pixels, w, GRID.pixels, 3)
    return cells.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t, h, w, PATCH)


def from_patches(patches):
    """The way back."""
    b, t, h, w, _ = patches.shape
    cells = patches.reshape(b, t, h, w, GRID.frames, GRID.pixels, GRID.pixels, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return cells.reshape(b, t * GRID.frames, h * GRID.pixels, w * GRID.pixels, 3)[:, 1:]


class Along(NamedTuple):
    """Where a sampler is."""

    latents: jax.Array


class FlowSampler:
    """See `reangle_jax.backbones.interface.Sampler`."""

    def __init__(self, backbone, steps, guidance_scale):
        self.steps, self.backbone = steps, backbone
        self.guided = guidance.is_guided(guidance_scale)
        scales = np.full(steps, guidance_scale, np.float32) if self.guided else None

        def predict(z, s, adapters, base, condition, text):
            return backbone.predict(adapters, base, z, condition, text, s)

        velocity = guidance.guided(predict, scales)
        self._step = jax.jit(lambda z, i, *given: z - velocity(z, 1.0 - i / self.steps, i, *given) / self.steps)
        self._condition = jax.jit(lambda coder, image, key: backbone.condition(coder, to_unit(image), key=key))
        self._decode = jax.jit(backbone.decode)

    def condition(self, coder, image, *, key):
        return self._condition(coder, jnp.asarray(image), key)

    def noise(self, size, *, key):
        batch, height, width = size
        return jax.random.normal(key, (batch, *GRID.latents(self.backbone.clip.num_frames, height, width), CHANNELS))

    def denoise(self, lora, base, noise, condition, text, negative, *, key, on_step=lambda: None):
        text = jnp.asarray(text)
        if self.guided:
            text, condition = jnp.concatenate([jnp.asarray(negative), text]), jnp.concatenate([condition, condition])
        for index in range(self.steps):
            noise = self._step(
                noise, jnp.float32(index) if not self.guided else jnp.int32(index), lora, base, condition, text
            )
            on_step()
        return noise

    def decode(self, coder, latents):
        return self._decode(coder, latents)


@dataclasses.dataclass(frozen=True)
class FlowBackbone(Backbone):
    """See `reangle_jax.backbones.interface.Backbone`."""

    dtype = "float32"

    def _graph(self, part):
        network, config = NETWORKS[part]
        room = {"lora": LoRAConfig(self.rank, self.alpha)} if part == "denoiser" else {}
        return nnx.split(checkpoints.abstract(lambda: network(config(), rngs=nnx.Rngs(0), **room)), nnx.LoRAParam, ...)

    def _load(self, part):
        model = checkpoints.load_into(nnx.merge(*self._graph(part)), self.folders[part])
        return nnx.split(model, nnx.LoRAParam, ...)[2]

    def _module(self, part, state, adapters=None):
        return nnx.merge(self._graph(part)[0], nnx.State({}) if adapters is None else adapters, state)

    def base_bytes(self):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._load("denoiser")))

    def check(self, part, fields):
        pass

    def check_adapters(self, file):
        raise InputError(f"{file}: {self.name} takes no other LoRA than a run's own")

    def needs(self, demand):
        cells = np.prod(GRID.latents(*self.clip[:3]))
        size = 4.0 * sum(leaf.size for part in NETWORKS for leaf in jax.tree.leaves(self._graph(part)[2]))
        return {stage: Needs({"all": size}, 1e3 * cells * steps)
                for stage, steps in (("finetune", demand.steps), ("generate", demand.sampling_steps))}  # fmt: skip

    def embed(self, prompts):
        state = self._load("words")
        texts = [np.frombuffer(text.encode()[:32].ljust(32), np.uint8) for text in prompts]
        return np.asarray(self._module("words", state)(jnp.asarray(np.stack(texts))))

    def load_coder(self, *, decodes=True):
        return self._load("coder")

    def load_denoiser(self):
        return self._load("denoiser")

    def init_adapters(self, *, key):
        network, config = NETWORKS["denoiser"]
        model = network(config(), rngs=nnx.Rngs(key), lora=LoRAConfig(self.rank, self.alpha))
        return nnx.state(model, nnx.LoRAParam)

    def save_adapters(self, folder, adapters):
        arrays = {path: np.asarray(value[...]) for path, value in checkpoints.parameter_paths(adapters).items()}
        save_file(arrays, folder / "lora.safetensors")

    def load_adapters(self, folder, given):
        adapters = self.init_adapters(key=jax.random.key(0))
        arrays = load_file(folder / "lora.safetensors")
        for path, value in checkpoints.parameter_paths(adapters).items():
            value.set_value(jnp.asarray(arrays[path]))
        return self, adapters

    def encode(self, coder, video):
        return tuple(jnp.split(self._module("coder", coder).encoder(to_patches(to_unit(video))), 2, axis=-1))

    def draw(self, mean, logvar, *, key):
        return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)

    def condition(self, coder, image, *, key):
        moments = self._module("coder", coder).encoder(to_patches(image[:, None]))
        rest = jnp.zeros((len(image), GRID.latents(*self.clip[:3])[0] - 1, *moments.shape[2:4], CHANNELS))
        return jnp.concatenate([self.draw(*jnp.split(moments, 2, axis=-1), key=key), rest], axis=1)

    def times(self, batch, *, key):
        return jax.random.uniform(key, (batch,))

    def noised(self, z, eps, t):
        s = t[:, None, None, None, None]
        return (1.0 - s) * z + s * eps, eps - z

    def predict(self, adapters, base, noised, condition, text, t):
        return self._module("denoiser", base, adapters)(noised, condition, text, t)

    def decode(self, coder, latents):
        return to_bytes(jnp.tanh(from_patches(self._module("coder", coder).decoder(latents))))

    def sampler(self, options):
        return FlowSampler(self, options.steps, options.guidance_scale)


ENTRY = registry.Entry(GRID, {part: config.__name__ for part, (_, config) in NETWORKS.items()}, FlowBackbone)
