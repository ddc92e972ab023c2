"""nerfstudio: a folder for each time step, as its parser knows no time; read by ns-train and what takes its files.

The world is turned so that up is +z, and ``applied_transform`` says so, as ns-process-data does.
"""

from pathlib import Path

import numpy as np

from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options, mask, opengl, picture, write_json

_UPRIGHT = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
_MILLI = 1000.0  # depth pictures hold thousandths of a scene unit


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes NNNNN/transforms.json, images/, masks/, depths/ and sparse_pc.ply for each time step."""
    _, height, width = clip.size
    depths = [clip.depth(track) for track in clip.tracks]
    for t in options.frames:
        folder, frames = root / f"{t:05d}", []
        for track, depth in zip(clip.tracks, depths, strict=True):
            K, name = track.K[t], f"{track.name}.png"
            picture(folder / "images" / name, track.frames[t])
            levels = np.round(_MILLI * depth[t])
            picture(folder / "depths" / name, np.where(levels < 2**16, levels, 0).astype(np.uint16))
            frame = {"file_path": f"images/{name}", "depth_file_path": f"depths/{name}"}
            frame |= {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "w": width, "h": height}
            if options.masks:
                mask(folder / "masks" / name, track.seen[t])
                frame["mask_path"] = f"masks/{name}"
            frames.append(frame | {"transform_matrix": (_UPRIGHT @ opengl(track.poses[t])).tolist()})
        cloud = clouds.of_frame(clip, t)
        upright = clouds.Cloud(cloud.xyz @ _UPRIGHT[:3, :3].T, cloud.rgb)
        clouds.write_ply(folder / "sparse_pc.ply", upright)
        content = {
            "camera_model": "OPENCV",
            "applied_transform": _UPRIGHT[:3].tolist(),
            "ply_file_path": "sparse_pc.ply",
        }
        write_json(folder / "transforms.json", content | {"frames": frames})
