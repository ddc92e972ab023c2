"""D-NeRF: transforms_{train,val,test}.json with a time from 0 to 1 and a pose for every picture; .png with alpha."""

import math
from pathlib import Path

import numpy as np

from reangle_jax.errors import InputError
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options, one_lens, opengl, picture, write_json


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes the three files and NAME/NNNNN.png; with masks, what the input did not see is transparent."""
    count, height, width = clip.size
    focal, cx, cy = one_lens(clip, "dnerf")
    if max(abs(cx - width / 2), abs(cy - height / 2)) > 0.5:
        raise InputError("--format dnerf: it knows no principal point beside the middle: use dycheck or nerfstudio")
    frames: dict[str, list[dict]] = {}
    for track in clip.tracks:
        frames[track.name] = []
        for t in range(count):
            alpha = np.where(track.seen[t], 255, 0) if options.masks else np.full((height, width), 255)
            rgba = np.concatenate([track.frames[t], alpha[..., None].astype(np.uint8)], axis=-1)
            picture(root / track.name / f"{t:05d}.png", rgba)
            place = {"file_path": f"./{track.name}/{t:05d}", "time": t / max(1, count - 1)}
            frames[track.name].append(place | {"transform_matrix": opengl(track.poses[t]).tolist()})
    held = options.test.name if options.test else None
    train = [frame for name, found in frames.items() if name != held for frame in found]
    test = frames[held or clip.tracks[0].name]
    lens = {"camera_angle_x": 2 * math.atan(width / 2 / focal), "fl_x": focal, "w": width, "h": height}
    for split, found in (("train", train), ("val", test), ("test", test)):
        write_json(root / f"transforms_{split}.json", lens | {"frames": found})
