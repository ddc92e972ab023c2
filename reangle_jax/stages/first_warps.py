"""What first frames are made from: the input's own, edited if that is asked for, and its warp to each static view."""

import logging
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np

from reangle_jax import chosen_models, mesh
from reangle_jax.arrays import Picture
from reangle_jax.config import Settings
from reangle_jax.data import files, pictures
from reangle_jax.errors import NotFiniteError
from reangle_jax.geometry import cameras, splat
from reangle_jax.progress import progress
from reangle_jax.randomness import named_key
from reangle_jax.run import External, Stage, Unit, Work, first_picture, view_file

EDIT = "edit"

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """The edited first frame, where there is to be one; in static mode the warp to each view."""
    source, given = first_picture.of(settings), first_picture.given(settings)
    result = []
    if given:
        external = (External("config.first_frames.given", given),)
        result.append(Unit(EDIT, settings=("height", "width"), external=external, outputs=(source,)))
    elif settings.edit.caption:
        keys = ("edit", "caption", "seed", "height", "width", "base_dtype", "first_frames.model", "first_frames.scale")
        networks = chosen_models.of_painter(settings)
        result.append(Unit(EDIT, keys, (first_picture.FRAMES,), (source,), weights=networks))
    if settings.mode == "static":
        for view in settings.views:
            inputs = (source, "input/depth.npz", "input/cameras.json", view_file(view, "cameras.json"))
            outputs = (view_file(view, "first_warp.png"),)
            result.append(Unit(view, ("mode", "first_frames.scale"), inputs, outputs, view=view))
    return tuple(result)


def first_warps(settings: Settings, folder: Path, work: Work) -> None:
    """Writes input/edited.png and views/NAME/first_warp.png."""
    for unit in work:
        if unit.view:
            _warp(settings, folder, unit)
        else:
            own = first_picture.given(settings)
            made = mesh.make_own_mesh(settings.mesh, batch_size=2)  # an edit compares two texts
            with mesh.use(made, base=settings.base_layout):
                picture = pictures.read(own) if own else _edited(settings, folder, work)
            pictures.write_png(folder / unit.outputs[0], picture)


def _edited(settings: Settings, folder: Path, work: Work) -> Picture:
    """The input's first frame as FlowEdit changes it."""
    painter, edit = chosen_models.painter(settings), settings.edit
    rows, columns = chosen_models.painted_size(settings)
    picture = files.load_npz(folder / first_picture.FRAMES)["frames"][0]
    if (rows, columns) != picture.shape[:2]:
        picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LANCZOS4)
    text = painter.embed([edit.source_caption or settings.caption, edit.caption])
    how = chosen_models.editing(settings)
    with progress(how.steps - how.skip, "first_warps: edit", unit="step") as bar:

        def stepped() -> None:
            bar.update()
            work.stop.now()  # Python drops what a signal raises while it collects garbage

        made = painter.edit(
            painter.load(to_edit=True),
            text,
            picture,
            how,
            key=named_key(settings.seed, "first_warps", EDIT),
            on_step=stepped,
        )
    if not np.isfinite(made).all():
        raise NotFiniteError("first_warps: the edited frame is not finite: convert the painter's weights again")
    made = np.round(255.0 * np.clip(made, 0, 1)).astype(np.uint8)
    return pictures.shrunk(made, settings.height, settings.width)


def _warp(settings: Settings, folder: Path, unit: Unit) -> None:
    picture = first_picture.read(settings, folder)
    z = files.load_npz(folder / "input/depth.npz")["depth"][0]
    source, target = (
        cameras.load_cameras(folder / name)[0] for name in ("input/cameras.json", view_file(unit.view, "cameras.json"))
    )
    warp, visible = warped(
        picture,
        z,
        cameras.Cameras(source.K[:1], source.camera_to_world[:1]),
        cameras.Cameras(target.K[:1], target.camera_to_world[:1]),
        chosen_models.painted_size(settings),
    )
    if not visible.any():
        _log.warning("%s: nothing of the first frame is visible: all of it will be made up", unit.view)
    pictures.write_png(folder / unit.outputs[0], warp, visible)


def warped(
    picture: Picture, depth: np.ndarray, source: cameras.Cameras, target: cameras.Cameras, size: tuple[int, int]
) -> tuple[Picture, np.ndarray]:
    """A picture as another camera sees it, at a size (rows, columns) of its own, and where it is visible: bool.

    It is enlarged before it is warped, so that as much of it as there is remains. The depth is z of the source camera's
    pixels, in which its intrinsics are.
    """
    rows, columns = size
    height, width = depth.shape
    if size != (height, width):
        picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_LANCZOS4)
        depth = cv2.resize(depth, (columns, rows), interpolation=cv2.INTER_LINEAR)
        scale = jnp.asarray([[[columns / width], [rows / height], [1.0]]], jnp.float32)
        source, target = (cameras.Cameras(scale * x.K, x.camera_to_world) for x in (source, target))
    frames, visible = splat.warp_video(jnp.asarray(picture)[None], jnp.asarray(depth)[None], source, target)
    return np.asarray(frames[0]), np.asarray(visible[0])


STAGE = Stage("first_warps", version=1, units=units, run=first_warps)
