"""All layouts: who reads them, and what they have."""

from collections.abc import Callable
from typing import NamedTuple

from reangle_jax.export.formats import colmap, dnerf, dycheck, multipleview, nerfstudio, neu3d, points, tfds


class Format(NamedTuple):
    """A layout."""

    write: Callable[..., None]  # fills an empty folder: ``(root, clip, options)``, of tfds with all clips
    read_by: str  # what reads it
    masks: bool = False  # whether it has masks
    test: bool = False  # whether a view may be held out
    several: bool = False  # whether several runs make one data set


FORMATS = {
    "nerfstudio": Format(nerfstudio.write, "nerfstudio (ns-train): a scene for each time step", masks=True),
    "colmap": Format(colmap.write, "COLMAP, gsplat, 3D Gaussian Splatting: a scene for each time step", masks=True),
    "multipleview": Format(multipleview.write, "4DGaussians (multipleview): cameras that stand still"),
    "dnerf": Format(
        dnerf.write, "D-NeRF, 4DGaussians, Deformable 3DGS: a pose for each picture", masks=True, test=True
    ),
    "dycheck": Format(
        dycheck.write, "dycheck, Nerfies, Shape of Motion: a pose for each picture", masks=True, test=True
    ),
    "neu3d": Format(neu3d.write, "Neu3D (DyNeRF), 4DGaussians: cameras that stand still", test=True),
    "tfds": Format(
        tfds.write, "TensorFlow Datasets, without TensorFlow: reangle_views, an example a run", several=True
    ),
    "points": Format(points.write, "MeshLab, CloudCompare, Blender: a .ply for each time step, or --fused"),
}
