"""The scene to walk through: the clip's points over time, all cameras and what they show, in one file (viser's export).

It needs the extra ``report``; without it there is no unit, and the report says how to get it.
"""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.export import clip, clouds
from reangle_jax.run import Stage, Unit, Work, view_file

MOST_POINTS = 600_000  # of all frames together
_PICTURE = 160  # pixels across, of what a camera shows
_SIZE = 0.12  # of a camera as it is drawn, in the scene's depth
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (130, 90, 180))
_SOURCE = (120, 120, 120)


def can_be_made() -> bool:
    """Whether viser is installed."""
    return importlib.util.find_spec("viser") is not None


def units(settings: Settings) -> tuple[Unit, ...]:
    """One, where it can be made."""
    if not can_be_made():
        return ()
    own = tuple(view_file(view, name) for view in settings.views for name in ("cameras.json", "warp.npz", "frames.npz"))
    inputs = ("input/frames.npz", "input/depth.npz", "input/cameras.json", *own)
    return (Unit(settings=("views", "caption"), inputs=inputs, outputs=("scene.html",)),)


def scene(settings: Settings, folder: Path, work: Work) -> None:
    """Writes scene.html."""
    for unit in work:
        page = as_html(clip.read(folder, settings.views, with_input=False))
        files.atomic_write_bytes(folder / unit.outputs[0], page.encode())


def as_html(found: clip.Clip) -> str:
    """The page: a recording that plays the clip's frames one after the other."""
    import viser

    with contextlib.redirect_stdout(io.StringIO()):  # it says where it listens, which is nobody's to know
        server = viser.ViserServer(host="127.0.0.1", verbose=False)  # it serves nobody: the exporter asks for one
    try:
        server.scene.set_up_direction("-y")
        depth = float(np.median(found.z[0]))
        behind = np.array([0.5 * depth, -0.4 * depth, -0.9 * depth])
        server.initial_camera.up = (0.0, -1.0, 0.0)
        server.initial_camera.position = tuple(behind)
        server.initial_camera.look_at = (0.0, 0.0, depth)
        recorder = server.get_scene_serializer()
        _record(server, recorder, found, depth)
        return recorder.as_html()
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def _record(server: Any, recorder: Any, found: clip.Clip, depth: float) -> None:
    frames = len(found.z)
    most = max(2_000, MOST_POINTS // frames)
    size = depth / float(found.source.K[0, 0, 0]) * max(1.0, np.sqrt(found.z[0].size / most))
    tracks = [(found.source, _SOURCE)]
    tracks += [(track, COLOURS[k % len(COLOURS)]) for k, track in enumerate(found.tracks)]
    drawn = [_camera(server, track, colour, _SIZE * depth) for track, colour in tracks]
    before = None
    for frame in range(frames):
        cloud = clouds.of_frame(found, frame, most)
        points = server.scene.add_point_cloud(
            f"/points/{frame}", cloud.xyz.astype(np.float32), cloud.rgb, point_size=size, point_shading="flat"
        )
        if before is not None:
            before.visible = False
        before = points
        for (track, _), handle in zip(tracks, drawn, strict=True):
            handle.image = _small(track.frames[frame])
            if track.moves:
                handle.wxyz, handle.position = _placed(track.poses[frame])
        recorder.insert_sleep(1 / found.fps)


def _camera(server: Any, track: clip.Track, colour: tuple[int, int, int], scale: float) -> Any:
    """A camera with its picture, and its path."""
    height, width = track.frames.shape[1:3]
    wxyz, position = _placed(track.poses[0])
    centres = track.poses[:, :3, 3]
    if track.moves:
        pieces = np.stack([centres[:-1], centres[1:]], axis=1).astype(np.float32)
        server.scene.add_line_segments(f"/paths/{track.name}", pieces, colour, thickness=2.0, thickness_units="screen")
    return server.scene.add_camera_frustum(
        f"/cameras/{track.name}",
        fov=float(2 * np.arctan(height / 2 / track.K[0, 1, 1])),
        aspect=width / height,
        scale=scale,
        thickness=2.5,
        thickness_units="screen",
        color=colour,
        image=_small(track.frames[0]),
        format="jpeg",
        wxyz=wxyz,
        position=position,
    )


def _placed(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from viser import transforms

    return transforms.SO3.from_matrix(pose[:3, :3]).wxyz, pose[:3, 3]


def _small(picture: np.ndarray) -> np.ndarray:
    rows = max(1, round(picture.shape[0] * _PICTURE / picture.shape[1]))
    return cv2.resize(picture, (_PICTURE, rows), interpolation=cv2.INTER_AREA)


STAGE = Stage("scene", version=1, units=units, run=scene, optional=True)
