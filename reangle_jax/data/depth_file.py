"""Depth given by the user as a .npy or .npz."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from reangle_jax.errors import InputError


def load_depth(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the array of a depth file; what it holds is for `geometry.depth.scene_depth` to check.

    Args:
        path: a .npy, or an .npz with one array, or with one named ``depth``.

    Raises:
        InputError: there is no such file, or NumPy cannot read it without unpickling, or it is unclear which array.
    """
    name = f"config.depth: {path}"
    try:
        with Path(path).open("rb") as file:  # NumPy would leave it open when the archive is broken
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            key = "depth" if "depth" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
            if key is None:
                raise InputError(
                    f"{name} holds {', '.join(loaded.files) or 'nothing'}: name the array of T,H,W `depth`"
                )
            return loaded[key]
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{name} is not a .npy or .npz that NumPy can read ({words})") from None
