"""CogVideoX image-to-video (Yang et al., 2024, arXiv 2408.06072) as the stages see it, the small family included."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from reangle_jax import checkpoints
from reangle_jax.arrays import to_unit
from reangle_jax.backbones.cogvideox import lora, needs, networks
from reangle_jax.backbones.cogvideox.pipeline import load_schedule
from reangle_jax.backbones.cogvideox.sampling import Sampler, latent_frames
from reangle_jax.backbones.interface import Backbone, Demand, Sampling
from reangle_jax.backbones.registry import Clip
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import InputError, about
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.text import tokenizers
from reangle_jax.needs import Needs

KEY = "config.weights"
# What tells the published transformers apart.
_MARKS: dict[str, dict[str, Any]] = {
    "cogvideox-5b-i2v": {"num_layers": 42, "in_channels": 32, "patch_size_t": None, "use_learned": True},
    "cogvideox1.5-5b-i2v": {"num_layers": 42, "in_channels": 32, "patch_size_t": 2, "use_learned": False},
}


@dataclasses.dataclass(frozen=True)
class CogVideoXBackbone(Backbone):
    """The transformer, the causal autoencoder and T5; v-prediction."""

    @classmethod
    def of_networks(cls, transformer: networks.Network, vae: networks.Network, clip: Clip) -> "CogVideoXBackbone":
        """One that lies in no folder: it computes, and loads nothing; the networks' parameters may be shapes."""
        rank, alpha = transformer.config.lora_rank, transformer.config.lora_alpha
        backbone = cls("cogvideox-5b-i2v", {}, clip, rank, alpha)
        vars(backbone).update(transformer=transformer, vae=vae, schedule=Schedule())
        return backbone

    @functools.cached_property
    @about(KEY)
    def transformer(self) -> networks.Network:
        """The transformer with its adapters, shapes in place of parameters."""
        return networks.describe_transformer(
            self.folders["transformer"],
            lora_rank=self.rank,
            lora_alpha=self.alpha,
            choice=self.choice,
            base_dtype=self.base_dtype,
        )

    @functools.cached_property
    @about(KEY)
    def vae(self) -> networks.Network:
        """The autoencoder, shapes in place of parameters."""
        size = (self.clip.height, self.clip.width)
        return networks.describe_vae(self.folders["vae"], tiles=self.clip.tiles, size=size, choice=self.choice)

    @functools.cached_property
    @about(KEY)
    def schedule(self) -> Schedule:
        """Of the noise."""
        return load_schedule(self.folders["transformer"], self.transformer.config)

    @functools.cached_property
    def _encoding(self) -> Callable[[nnx.State], VAE]:
        return networks.encoding(self.vae)

    @property
    def dtype(self) -> str:
        """See `Backbone.dtype`."""
        return self.transformer.execution.dtype

    @functools.cached_property
    def _latent_frames(self) -> tuple[int, int]:
        return latent_frames(self.transformer.config, self.vae.config, self.clip.num_frames)

    @property
    def front(self) -> int:
        """See `Backbone.front`: tokens of CogVideoX 1.5 span two latent frames."""
        return self._latent_frames[1]

    def base_bytes(self) -> int:
        """See `Backbone.base_bytes`."""
        return needs.base_bytes(self)

    def check(self, part: str, fields: Mapping[str, Any]) -> None:
        """See `Backbone.check`."""
        if part == "text_encoder":
            with about(KEY):
                tokenizers.for_encoder(self.folders[part], int(fields.get("vocab_size") or 0))
        wrong = []
        widths = fields.get("block_out_channels") if part == "vae" else None
        if widths and (ratio := 2 ** (len(widths) - 1)) != self.grid.pixels:
            wrong = [f"a latent is {ratio} pixels a side, not {self.grid.pixels}"]
        if part == "transformer":
            marks = _MARKS.get(self.name, {}).items()
            wrong = [f"{name} is {fields.get(name)}, not {mark}" for name, mark in marks if fields.get(name) != mark]
        if wrong:
            raise InputError(
                f"{KEY}: {self.folders[part]} holds another model than {self.name} ({wrong[0]}): give its weights, or "
                "change config.model"
            )
        if part != "transformer" or not fields.get("use_learned"):
            return
        rows, columns = (fields[f"sample_{side}"] * self.grid.pixels for side in ("height", "width"))
        native = {"num_frames": fields["sample_frames"], "height": rows, "width": columns}
        for key, allowed in native.items():
            if getattr(self.clip, key) != allowed:
                raise InputError(
                    f"config.{key}={getattr(self.clip, key)}: {self.name} has learned positions for "
                    f"{native['num_frames']} frames of {rows}x{columns} only: set config.{key}={allowed}"
                )

    def check_adapters(self, file: Path) -> None:
        """See `Backbone.check_adapters`."""
        lora.read(file, self.transformer.config)

    def needs(self, demand: Demand) -> dict[str, Needs]:
        """See `Backbone.needs`."""
        return needs.of_stages(self, demand)

    @about(KEY)
    def embed(self, prompts: Sequence[str]) -> Float[np.ndarray, "N L D"]:
        """See `Backbone.embed`."""
        length = self.transformer.config.max_text_seq_length
        return networks.embed_prompts(self.folders["text_encoder"], prompts, length, choice=self.choice)

    @about(KEY)
    def load_coder(self, *, decodes: bool = True) -> nnx.State:
        """See `Backbone.load_coder`."""
        state = checkpoints.load_state(self.vae.state, self.folders["vae"])
        return state if decodes else networks.encoders(state)

    @about(KEY)
    def load_denoiser(self) -> nnx.State:
        """See `Backbone.load_denoiser`."""
        return checkpoints.load_state(self.transformer.state, self.folders["transformer"])

    def init_adapters(self, *, key: Array) -> nnx.State:
        """See `Backbone.init_adapters`."""
        return networks.init_lora(self.transformer.config, key=key)

    def save_adapters(self, folder: Path, adapters: nnx.State) -> None:
        """See `Backbone.save_adapters`."""
        lora.save_folder(folder, adapters, self.transformer.config)

    def load_adapters(
        self, folder: Path | None, given: Sequence[tuple[Path, float]]
    ) -> tuple["CogVideoXBackbone", nnx.State]:
        """See `Backbone.load_adapters`."""
        config = self.transformer.config
        # Of what a run keeps the file is read, not the state beside it: on every process, and for any mesh.
        learnt = None if folder is None else lora.read(folder / lora.FILE, config)
        if not given:
            found = self.init_adapters(key=jax.random.key(0)) if learnt is None else lora.to_state(learnt, config)
            return self, found
        parts = [(lora.read(path, config), weight) for path, weight in given]
        # Adapters that were never trained are zero: they need no room.
        own = [] if learnt is None else [(learnt, 1.0)]
        joined = lora.combine([*own, *parts])
        wider = dataclasses.replace(self, rank=joined.rank, alpha=joined.alpha)
        return wider, lora.to_state(joined, wider.transformer.config)

    def encode(
        self, coder: nnx.State, video: UInt8[Array, "B T H W 3"]
    ) -> tuple[Float[Array, "B t h w C"], Float[Array, "B t h w C"]]:
        """See `Backbone.encode`."""
        return self._encoding(coder).encode(to_unit(video))

    def draw(
        self, mean: Float[Array, "B t h w C"], logvar: Float[Array, "B t h w C"], *, key: Array
    ) -> Float[Array, "B t h w C"]:
        """See `Backbone.draw`."""
        return VAE.sample(mean, logvar, key=key) * self.vae.config.scaling_factor

    def condition(self, coder: nnx.State, image: Float[Array, "B H W 3"], *, key: Array) -> Float[Array, "B t h w C"]:
        """See `Backbone.condition`."""
        return networks.image_condition(self._encoding(coder), image, self._latent_frames[0], key=key)

    def times(self, batch: int, *, key: Array) -> Int[Array, " B"]:
        """See `Backbone.times`."""
        return jax.random.randint(key, (batch,), 0, self.schedule.train_steps)

    def noised(
        self, z: Float[Array, "B t h w C"], eps: Float[Array, "B t h w C"], t: Int[Array, " B"]
    ) -> tuple[Float[Array, "B t h w C"], Float[Array, "B t h w C"]]:
        """See `Backbone.noised`."""
        return self.schedule.add_noise(z, eps, t), self.schedule.velocity(z, eps, t)

    def predict(
        self,
        adapters: Any,
        base: Any,
        noised: Float[Array, "B t h w C"],
        condition: Float[Array, "B t h w C"],
        text: Float[Array, "B L D"],
        t: Int[Array, " B"],
    ) -> Float[Array, "B t h w C"]:
        """See `Backbone.predict`."""
        predict = networks.predictor(self.transformer.graphdef)
        return predict(noised.astype(self.dtype), t, adapters, base, condition, text)

    def sampler(self, options: Sampling) -> Sampler:
        """See `Backbone.sampler`: ``ddim`` or ``dpm``."""
        return Sampler(self.transformer, self.vae, self.schedule, options, num_frames=self.clip.num_frames)
