"""From noise, text and perhaps a first frame to a video: what the published pipelines do around their networks.

One program encodes, one makes every step, one decodes; each is compiled once for all videos of a size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax import mesh
from reangle_jax.arrays import to_bytes, to_unit
from reangle_jax.backbones.cogvideox.networks import Network, encoding, image_condition, predictor
from reangle_jax.backbones.interface import Sampling
from reangle_jax.diffusion import guidance, samplers
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig


def latent_frames(transformer: TransformerConfig, vae: VAEConfig, num_frames: int) -> tuple[int, int]:
    """How many latent frames are sampled, and how many of them, at the front, only fill up a patch and are dropped."""
    needed = (num_frames - 1) // vae.temporal_compression_ratio + 1
    extra = -needed % (transformer.patch_size_t or 1)
    return needed + extra, extra


def decode_latents(
    vae: VAE, latents: Float[Array, "B t h w C"], num_frames: int, extra: int = 0
) -> Float[Array, "B T H W 3"]:
    """Decodes sampled latents, without the first ``extra``, to ``num_frames`` = 1 + 4k frames, about in [-1, 1]."""
    latents = latents[:, extra:].astype(jnp.float32)
    # An even number t of latents decodes to 4 t frames (the published way), not to 4 t - 3: one more in front makes it
    # odd, and the frames that it adds are dropped.
    spare = 1 - latents.shape[1] % 2
    latents = jnp.concatenate([latents[:, :spare], latents], axis=1)
    return vae.decode(vae.unscale_latents(latents))[:, -num_frames:]


class Sampler:
    """`interface.Sampler` of CogVideoX.

    Networks are given by configuration and graph; the transformer may have adapters. Clips have 1 + 4k frames. Without
    guidance the negative text is not used. The sampler is ``ddim`` or ``dpm``.

    Raises:
        InputError: the sampler is unknown or the count of steps impossible.
    """

    def __init__(
        self,
        transformer: Network,
        vae: Network,
        schedule: Schedule,
        options: Sampling,
        *,
        num_frames: int,
    ):
        self.steps = steps = options.steps
        self.guided = guidance.is_guided(options.guidance_scale)
        scales = guidance.guidance_scales(
            schedule.timesteps(steps), steps, options.guidance_scale, options.dynamic_guidance
        )
        denoise = guidance.guided(predictor(transformer.graphdef), scales if self.guided else None)
        self._step = samplers.make_step(denoise, sampler=options.sampler, steps=steps, schedule=schedule)
        self._dtype, self._vae_config = transformer.execution.dtype, vae.config
        count, extra = latent_frames(transformer.config, vae.config, num_frames)
        self._latent_frames, coder = count, encoding(vae)

        @jax.jit
        def condition(state: Any, image: Array, key: Array) -> Array:
            return image_condition(coder(state), to_unit(image), count, key=key).astype(transformer.execution.dtype)

        @jax.jit
        def decode(state: Any, latents: Array) -> Array:
            model = nnx.merge(vae.graphdef, state)
            return to_bytes(decode_latents(model, latents, num_frames, extra))

        self._condition, self._decode = condition, decode

    def noise(self, size: tuple[int, int, int], *, key: Array) -> Float[Array, "B t h w C"]:
        """See `interface.Sampler.noise`."""
        batch, height, width = size
        ratio, channels = self._vae_config.spatial_compression_ratio, self._vae_config.latent_channels
        shape = (batch, self._latent_frames, height // ratio, width // ratio, channels)
        return jax.random.normal(jax.random.split(key)[0], shape, jnp.float32).astype(self._dtype)

    def condition(
        self, vae_state: Any, image: UInt8[Array | np.ndarray, "B H W 3"], *, key: Array
    ) -> Float[Array, "B t h w C"]:
        """See `interface.Sampler.condition`."""
        return self._condition(vae_state, jnp.asarray(image), jax.random.split(key)[1])

    def denoise(
        self,
        lora: Any,
        base: Any,
        noise: Float[Array, "B t h w C"],
        condition: Float[Array, "B t h w C"] | None,
        text: Float[Array | np.ndarray, "B L D"],
        negative: Float[Array | np.ndarray, "B L D"] | None,
        *,
        key: Array,
        on_step: Callable[[], None] = lambda: None,
    ) -> Float[Array, "B t h w C"]:
        """See `interface.Sampler.denoise`."""
        text = jnp.asarray(text)
        if self.guided:
            assert negative is not None, "guidance needs the negative text"
            text = jnp.concatenate([jnp.asarray(negative), text])
            condition = None if condition is None else jnp.concatenate([condition, condition])
        # The two halves of a guided batch lie apart where the mesh's data axis has room for both.
        condition, text = mesh.split_batch((condition, text))
        state = samplers.init_state(noise)
        for index in range(self.steps):
            state = self._step(state, jnp.int32(index), key, lora, base, condition, text)
            # Waiting here keeps the bar true and the queue of dispatched steps short.
            jax.block_until_ready(state)
            on_step()
        return state.latents

    def decode(self, vae_state: Any, latents: Float[Array, "B t h w C"]) -> UInt8[Array, "B T H W 3"]:
        """Frames of clean latents: of as many videos at a time as the mesh has room for beside each other."""
        groups = range(0, latents.shape[0], mesh.room())
        return jnp.concatenate([self._decode(vae_state, latents[k : k + mesh.room()]) for k in groups])
