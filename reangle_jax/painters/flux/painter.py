"""FLUX.1 as the stages see it, the small family included."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from reangle_jax import mesh
from reangle_jax.arrays import Picture, to_unit
from reangle_jax.diffusion import flow
from reangle_jax.diffusion.control import Control
from reangle_jax.diffusion.edit import edit_step
from reangle_jax.diffusion.flow import Coefficients
from reangle_jax.errors import InputError, about
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.tokens import pack, unpack
from reangle_jax.needs import ALONE, Needs, Shares
from reangle_jax.nn.network import Network
from reangle_jax.painters.flux import conditions, needs, networks
from reangle_jax.painters.flux.networks import FILL, KEY, TINY, Parameters, Text
from reangle_jax.painters.interface import Chosen, Editing, Painter, Painting, Reward


class Known(NamedTuple):
    """What is put back into the latents at every step, noised as they are: [h, w, C] each."""

    latents: Float[Array, "h w C"]
    cells: Bool[Array, "h w 1"]
    noise: Float[Array, "h w C"]


class Arguments(NamedTuple):
    """All that a step reads beside its state: the same shapes for all pictures."""

    parameters: Parameters
    text: Text
    condition: Float[Array, "1 N D"] | None
    known: Known | None
    guidance: Float[Array, " N"]
    control_scale: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class FluxPainter(Painter):
    """The transformer with the inpainting ControlNet, or Fill; the autoencoder, CLIP and T5."""

    @classmethod
    def of_networks(
        cls, found: Mapping[str, Network], size: tuple[int, int], name: str = "flux.1-dev"
    ) -> "FluxPainter":
        """One that lies in no folder: it computes, and loads nothing; the networks' parameters may be shapes."""
        painter = cls(name, {}, size)
        vars(painter)["networks"] = dict(found)
        return painter

    @functools.cached_property
    @about(KEY)
    def networks(self) -> dict[str, Network]:
        """Each network that paints, by its role, shapes in place of parameters."""
        return networks.describe(self.name, self.folders, self.choice, self.base_dtype)

    @property
    def _latents(self) -> tuple[int, int, int]:
        config = self.networks["vae"].config
        ratio = config.spatial_compression_ratio
        return self.size[0] // ratio, self.size[1] // ratio, config.latent_channels

    @property
    def _tokens(self) -> int:
        return self._latents[0] * self._latents[1] // 4

    def check(self, part: str, fields: Mapping[str, Any]) -> None:
        """See `Painter.check`."""
        networks.check(self.name, self.folders, part, fields)

    def needs(self, painting: Painting, editing: Editing, shares: Shares = ALONE) -> dict[str, Needs]:
        """See `Painter.needs`."""
        return needs.of_stages(self, painting, editing, shares)

    @about(KEY)
    def embed(self, prompts: Sequence[str]) -> Text:
        """See `Painter.embed`."""
        return networks.embed(self.name, self.folders, prompts, self.choice)

    def load(self, *, to_edit: bool = False) -> Parameters:
        """See `Painter.load`."""
        found, unused = self.networks, ("controlnet",) if to_edit else ()
        with about(KEY):
            return networks.load(found, self.name, self.folders, without=unused)

    def paint(
        self,
        networks: Parameters,
        text: Text,
        picture: Picture,
        visible: Bool[np.ndarray, "H W"],
        how: Painting,
        *,
        key: Array,
        reward: Reward | None,
        saved: Mapping[str, np.ndarray] | None = None,
        on_step: Callable[[Mapping[str, np.ndarray], Chosen | None], None],
    ) -> Float[np.ndarray, "H W 3"]:
        """See `Painter.paint`."""
        start, draw, choose = jax.random.split(key, 3)
        noise = jax.random.normal(start, self._latents, jnp.float32)
        shown, seen = jnp.asarray(picture), jnp.asarray(visible)
        begin = noise
        if how.strength < 1:
            begin = flow.noised(self._encoded(networks.vae, to_unit(shown)), noise, how.strength)
        arguments = Arguments(
            networks,
            text,
            self._told(networks.vae, shown, seen, draw, how.infill),
            self._known(networks.vae, shown, seen, noise, how.infill) if how.reimpose else None,
            jnp.full((1,), how.guidance_scale, jnp.float32),
            jnp.float32(how.control_scale),
        )
        plan = needs.planned(how, self._tokens)

        def stepped(record: Mapping[str, np.ndarray], step: int, table: np.ndarray | None, kept: int) -> None:
            on_step(record, None if table is None else Chosen(step, table, kept))

        end = self._control.sample(
            begin,
            plan,
            arguments,
            key=choose,
            scores=reward.scores if reward else None,
            judging=reward.arguments if reward else None,
            saved=saved,
            on_step=stepped,
        )
        return np.asarray(self._decoded(networks.vae, end))

    def edit(
        self,
        networks: Parameters,
        text: Text,
        picture: Picture,
        how: Editing,
        *,
        key: Array,
        on_step: Callable[[], None],
    ) -> Float[np.ndarray, "H W 3"]:
        """See `Painter.edit`.

        Raises:
            InputError: the model only fills holes.
        """
        if self.name == FILL:
            raise InputError(f"config.edit.caption: {FILL} only fills holes: edit with flux.1-dev")
        source = self._encoded(networks.vae, to_unit(jnp.asarray(picture)))
        guidance = jnp.asarray([how.source_guidance_scale, how.guidance_scale], jnp.float32)
        arguments = Arguments(networks, text, None, None, guidance, jnp.float32(0.0))
        table = Coefficients.of(flow.times(how.steps, self._tokens), np.zeros(how.steps))
        edited = source
        for index in range(how.skip, how.steps):
            step_key = jax.random.fold_in(key, index)
            edited = jax.block_until_ready(self._edit(edited, source, table.step(index), step_key, arguments))
            on_step()
        return np.asarray(self._decoded(networks.vae, edited))

    # What is compiled, once for all pictures.

    @functools.cached_property
    def _control(self) -> Control:
        return Control(self._predict, self._decode, self._settle, mesh.by_share, mesh.room())

    def _predict(self, states: Float[Array, "B h w C"], time: Array, arguments: Arguments) -> Float[Array, "B h w C"]:
        """The velocities at states of one time; of one text each, or all of one."""
        states = mesh.split_batch(states)
        grid = states.shape[1] // 2, states.shape[2] // 2
        velocities = networks.predict(
            self.networks,
            arguments.parameters,
            pack(states),
            grid,
            time,
            arguments.text,
            arguments.guidance,
            arguments.condition,
            arguments.control_scale,
        )
        return unpack(velocities.astype(jnp.float32), grid)

    def _settle(self, states: Float[Array, "B h w C"], time: Array, arguments: Arguments) -> Float[Array, "B h w C"]:
        """States in which what is known is as it is at their time."""
        known = arguments.known
        if known is None:
            return states
        there = flow.noised(known.latents, known.noise, time)
        return jnp.where(known.cells[None], there[None], states)

    def _autoencoder(self, parameters: nnx.State) -> Autoencoder:
        return nnx.merge(self.networks["vae"].graphdef, parameters)

    def _decode(self, clean: Float[Array, "B h w C"], arguments: Arguments) -> Float[Array, "B H W 3"]:
        return self._pictures(arguments.parameters.vae, clean)

    def _pictures(self, parameters: nnx.State, clean: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Pictures of clean latents, values 0 to 1."""
        vae = self._autoencoder(parameters)
        pictures = vae.decode(vae.unscale_latents(clean)).astype(jnp.float32)
        return jnp.clip(0.5 * pictures + 0.5, 0.0, 1.0)

    @functools.cached_property
    def _decoded(self) -> Callable[[nnx.State, Array], Array]:
        return jax.jit(lambda vae, clean: self._pictures(vae, clean[None])[0])

    @functools.cached_property
    def _told(self) -> Callable[..., Float[Array, "1 N D"]]:
        told = conditions.fill_condition if self.name == FILL else conditions.control_condition

        def condition(vae: nnx.State, picture: Array, visible: Array, key: Array, filled: bool) -> Array:
            drawn = None if self.name == TINY else key  # the small family was trained on means
            return told(self._autoencoder(vae), to_unit(picture)[None], visible[None], key=drawn, filled=filled)

        return jax.jit(condition, static_argnums=4)

    @functools.cached_property
    def _encoded(self) -> Callable[[nnx.State, Array], Float[Array, "h w C"]]:
        return jax.jit(lambda vae, picture: conditions.picture_latents(self._autoencoder(vae), picture[None])[0])

    def _known(self, vae: nnx.State, picture: Array, visible: Array, noise: Array, filled: bool) -> Known:
        """What is known of a picture whose holes are grey or filled; its noise is what painting begins with."""
        cells = conditions.known_cells(visible[None], self.networks["vae"].config.spatial_compression_ratio)[0]
        whole = conditions.holed(to_unit(picture), visible, 0.0, filled)
        return Known(self._encoded(vae, whole), cells[..., None], noise)

    @functools.cached_property
    def _edit(self) -> Callable[..., Float[Array, "h w C"]]:
        @jax.jit
        def edit(edited: Array, source: Array, c: Coefficients, key: Array, arguments: Arguments) -> Array:
            def velocities(noised: Array, moved: Array, time: Array) -> tuple[Array, Array]:
                found = self._predict(jnp.stack([noised, moved]), time, arguments)
                return found[0], found[1]

            return edit_step(edited, source, velocities, c, key=key)

        return edit
