"""The first frame of every output (method, stage 3).

In dynamic mode the camera starts where the input's stands: it is the input's own, or the edited one. In static mode the
first frame is warped to the view and what is missing is painted, view after view, each so that it agrees with those
before it.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from reangle_jax import chosen_models, mesh
from reangle_jax.arrays import Picture
from reangle_jax.config import AUTO, FirstFrames, Settings
from reangle_jax.data import files, pictures
from reangle_jax.errors import InputError, NotFiniteError, about
from reangle_jax.geometry import splat
from reangle_jax.painters.interface import Chosen, Reward
from reangle_jax.progress import progress
from reangle_jax.randomness import named_key
from reangle_jax.run import External, Stage, Unit, Work, first_picture, view_file
from reangle_jax.scoring import agreement
from reangle_jax.scoring.agreement import Agreement

INPUT = "input"
# The options that a painted view depends on; the effect of the others is in its inputs.
DECISIVE = tuple(
    field.name for field in dataclasses.fields(FirstFrames) if field.name not in ("order", "given", "scale", "weights")
)
SEAM = 6  # pixels over which what is painted fades into what is known

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view."""
    return _units(settings, settings.views if settings.first_frames.order == AUTO else settings.first_frames.order)


def arranged(settings: Settings, folder: Path) -> tuple[Unit, ...]:
    """The same; in the order ``auto`` those first of which the input shows most."""
    if settings.mode == "dynamic" or settings.first_frames.order != AUTO:
        return units(settings)
    return _units(settings, sorted(settings.views, key=lambda view: -_seen(folder / view_file(view, "first_warp.png"))))


def _seen(path: Path) -> float:
    """The share of a warp that is visible; 0 where there is none yet."""
    try:
        return float(pictures.read_holes(path)[1].mean())
    except InputError:
        return 0.0


def _units(settings: Settings, order: tuple[str, ...] | list[str]) -> tuple[Unit, ...]:
    own = first_picture.given_of_views(settings)
    result: list[Unit] = []
    for view in sorted(order, key=lambda view: view not in own):  # the user's own are finished from the start
        picture, record = (view_file(view, name) for name in ("first_frame.png", "first_frame.json"))
        if view in own:
            given = (External("config.first_frames.given", own[view]),)
            result.append(Unit(view, external=given, outputs=(picture,), view=view))
        elif settings.mode == "dynamic":
            result.append(Unit(view, ("mode",), (first_picture.of(settings),), (picture,), view=view))
        else:
            before = tuple(unit.outputs[0] for unit in result) if settings.first_frames.candidates > 1 else ()
            result.append(_painted(settings, view, before, (picture, record)))
    return tuple(result)


def _painted(settings: Settings, view: str, before: tuple[str, ...], outputs: tuple[str, ...]) -> Unit:
    """A view that is painted once those `before` it are finished."""
    networks, inputs = chosen_models.of_painter(settings), (view_file(view, "first_warp.png"),)
    if settings.first_frames.candidates > 1:
        networks += agreement.parts(chosen_models.painter_folder(settings))
        inputs += (*before, *((first_picture.of(settings),) if settings.first_frames.with_input else ()))
    keys = ("mode", "caption", "edit.caption", "height", "width", "base_dtype", "seed")
    keys += tuple(f"first_frames.{key}" for key in DECISIVE)
    return Unit(view, keys, inputs, outputs, weights=networks, view=view)


def first_frames(settings: Settings, folder: Path, work: Work) -> None:
    """Writes views/NAME/first_frame.png and, of what is painted, first_frame.json."""
    if settings.mode == "static":
        with mesh.use(chosen_models.painters_mesh(settings), base=settings.base_layout):
            studio = Studio(settings, folder)
            for unit in work:
                if unit.external:
                    _take(folder, unit)
                else:
                    studio.paint(work, unit)
        return
    first = first_picture.read(settings, folder)
    for unit in work:
        if unit.external:
            _take(folder, unit)
        else:
            pictures.write_png(folder / unit.outputs[0], first)


def _take(folder: Path, unit: Unit) -> None:
    (given,) = unit.external
    assert isinstance(given.paths, Path)
    pictures.write_png(folder / unit.outputs[0], pictures.read(given.paths))


class Studio:
    """What is loaded for all views, each part when it is first asked for."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings, self.folder = settings, folder
        self.painter = chosen_models.painter(settings)

    @functools.cached_property
    def _networks(self) -> Any:
        """The caption's embeddings first: its encoder is dropped before the others are loaded."""
        s = self.settings
        text = self.painter.embed([s.first_frames.caption or s.edit.caption or s.caption])
        return self.painter.load(), text

    @functools.cached_property
    @about(chosen_models.PAINTER_KEY)
    def _agreement(self) -> Agreement:
        s = self.settings
        return Agreement.load(chosen_models.painter_folder(s), s.height, s.width)

    def paint(self, work: Work, unit: Unit) -> None:
        """Paints a view, going on after the last step that an earlier start has taken."""
        warp, visible = pictures.read_holes(self.folder / unit.inputs[0])
        finished = self._finished(unit)
        painted, history = self._take_steps(work, unit, warp, visible, list(finished.values()))
        alpha = painted_share(visible)[..., None]
        whole = np.round(alpha * 255.0 * painted + (1 - alpha) * warp).astype(np.uint8)
        frame = pictures.shrunk(whole, self.settings.height, self.settings.width)
        record: dict[str, Any] = {"painted": float(alpha.mean()), "steps": history}
        if finished:
            against = self._agreement.with_finished(frame, np.stack(list(finished.values())))
            record |= {"compared_with": list(finished), "met3r": dict(zip(finished, against, strict=True))}
            words = (f"{'unknown' if x is None else f'{x:.3f}'} with {name}" for name, x in record["met3r"].items())
            _log.info("%s: MEt3R %s", unit.view, ", ".join(words))
        pictures.write_png(self.folder / unit.outputs[0], frame)
        files.atomic_write_json(self.folder / unit.outputs[1], record)

    def _finished(self, unit: Unit) -> dict[str, Picture]:
        """The pictures that a view shall agree with, by view."""
        names = {view_file(view, "first_frame.png"): view for view in self.settings.views}
        found = {names[path]: pictures.read(self.folder / path) for path in unit.inputs[1:] if path in names}
        if first_picture.of(self.settings) in unit.inputs:
            found = {INPUT: first_picture.read(self.settings, self.folder), **found}
        return found

    def _take_steps(
        self, work: Work, unit: Unit, warp: Picture, visible: Bool[np.ndarray, "H W"], finished: list[Picture]
    ) -> tuple[Float[np.ndarray, "H W 3"], list[dict[str, Any]]]:
        """What is painted, values 0 to 1, and of every step that chose its candidates' scores."""
        how, kept = chosen_models.painting(self.settings), work.scratch(unit) / "steps.npz"
        saved = files.load_npz(kept) if kept.exists() else None
        history = json.loads(bytes(saved.pop("history"))) if saved else []
        done = int(saved.pop("done")) if saved else 0
        if done:
            _log.info("%s goes on after step %d", unit.view, done)
        networks, text = self._networks
        shown = splat.infill(warp[None], visible[None])[0] if how.infill else warp
        with (
            work.stop.at_safe_points() as stop,
            progress(how.steps, f"first_frames: {unit.view}", initial=done, unit="step") as bar,
        ):

            def stepped(state: Mapping[str, np.ndarray], chosen: Chosen | None) -> None:
                nonlocal done
                done += 1
                if chosen:
                    history.append(
                        {"step": chosen.step, "scores": chosen.scores[:, : len(finished)].tolist(), "kept": chosen.kept}
                    )
                record = np.frombuffer(json.dumps(history).encode(), np.uint8)
                files.atomic_savez(kept, **state, done=np.int64(done), history=record)
                bar.update()
                stop.now()

            painted = self.painter.paint(
                networks,
                text,
                shown,
                visible,
                how,
                key=named_key(self.settings.seed, "first_frames", unit.view),
                reward=self._reward(finished) if finished else None,
                saved=saved,
                on_step=stepped,
            )
        if not np.isfinite(painted).all():
            raise NotFiniteError(f"first_frames: {unit.view}: what is painted is not finite: convert the weights again")
        return painted, history

    def _reward(self, finished: list[Picture]) -> Reward:
        score = self._agreement
        room = 1 + len(self.settings.views)  # for all that there can be: one program serves all views
        described = score.describe(np.stack(finished), room)
        return Reward(self._similarity, (score.states, described, jnp.asarray(len(finished), jnp.int32)))

    @functools.cached_property
    def _similarity(self) -> Callable[[Any, Array], Array]:
        """The same function for all views, so that one program serves them."""
        return lambda arguments, images: self._agreement.similarity(arguments[0], images, *arguments[1:])


def painted_share(visible: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """How much of each pixel is painted: all of a hole's, fading over a seam into what is known."""
    if visible.all():
        return np.zeros(visible.shape, np.float32)
    away = cv2.distanceTransform(visible.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # from the nearest hole
    return np.clip(1 - away / SEAM, 0, 1).astype(np.float32)


SMALLER = ("first_frames.scale", "mesh", "base_dtype", "height", "width")
STAGE = Stage("first_frames", version=1, units=units, run=first_frames, smaller=SMALLER, arranged=arranged)
