"""dycheck's iPhone layout, a superset of Nerfies': a camera file, a picture and depth for every view and moment.

Facts from its loader: orientation is world to camera; cameras and points are stored in the scene's own unit and the
loader applies (x - center) * scale; depth is z, 0 where it is not known, and only multiplied by the scale.
"""

from pathlib import Path

import numpy as np

from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip, Track
from reangle_jax.export.writing import Options, mask, picture, write_json


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes camera/, rgb/1x/, depth/1x/, splits/, the scene's files and points.npy; with masks covisible/1x/val/."""
    ids = {name: [] for name in ("train", "val")}
    metadata = {}
    for number, track in enumerate(clip.tracks):
        depth = clip.depth(track)
        held = track is options.test
        for t in range(len(track.frames)):
            item = f"{number}_{t:05d}"
            ids["val" if held else "train"].append(item)
            metadata[item] = {"warp_id": t, "appearance_id": t, "camera_id": number}
            write_json(root / "camera" / f"{item}.json", _camera(track, t, clip.size))
            picture(root / "rgb" / "1x" / f"{item}.png", track.frames[t])
            (root / "depth" / "1x").mkdir(parents=True, exist_ok=True)
            np.save(root / "depth" / "1x" / f"{item}.npy", depth[t][..., None].astype(np.float32))
            if options.masks and held:
                mask(root / "covisible" / "1x" / "val" / f"{item}.png", track.seen[t])
    for split, items in ids.items():
        pairs = [tuple(map(int, item.split("_"))) for item in items]
        found = {"frame_names": items, "camera_ids": [c for c, _ in pairs], "time_ids": [t for _, t in pairs]}
        write_json(root / "splits" / f"{split}.json", found)
    everything = [*metadata]
    content = {"count": len(everything), "num_exemplars": len(ids["train"]), "ids": everything}
    write_json(root / "dataset.json", content | {"train_ids": ids["train"], "val_ids": ids["val"]})
    write_json(root / "metadata.json", metadata)
    _scene(root, clip)


def _camera(track: Track, t: int, size: tuple[int, int, int]) -> dict:
    K, pose = track.K[t], track.poses[t]
    return {
        "orientation": pose[:3, :3].T.tolist(),
        "position": pose[:3, 3].tolist(),
        "focal_length": K[0, 0],
        "principal_point": [K[0, 2], K[1, 2]],
        "skew": K[0, 1],
        "pixel_aspect_ratio": K[1, 1] / K[0, 0],
        "radial_distortion": [0.0, 0.0, 0.0],
        "tangential_distortion": [0.0, 0.0],
        "image_size": [size[2], size[1]],
    }


def _scene(root: Path, clip: Clip) -> None:
    xyz = clouds.of_frame(clip, 0, 20_000).xyz
    low, high = np.quantile(xyz, [0.01, 0.99], axis=0)
    center, scale = (low + high) / 2, 1.0 / float((high - low).max())
    near, far = (scale * bound for bound in clip.bounds)
    write_json(root / "scene.json", {"scale": scale, "center": center.tolist(), "near": near, "far": far})
    bbox = [((low - center) * scale).tolist(), ((high - center) * scale).tolist()]
    extra = {"factor": 1, "fps": clip.fps, "bbox": bbox, "lookat": [0.0, 0.0, 0.0], "up": [0.0, -1.0, 0.0]}
    write_json(root / "extra.json", extra)
    np.save(root / "points.npy", xyz.astype(np.float32))
