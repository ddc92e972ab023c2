"""All formats, and which of them a file is of: what is in it decides, not its name."""

import json
from pathlib import Path
from typing import Any

from reangle_jax.cameras.file import CameraFile
from reangle_jax.cameras.formats import arrays, colmap, crafters, keyframes, nerfstudio, own
from reangle_jax.data import files
from reangle_jax.errors import InputError

KNOWN = (
    "cameras.json, nerfstudio's transforms.json, COLMAP text, .npz, keyframes, TrajectoryCrafter's and ViewCrafter's"
)
_JSON = (own, nerfstudio, keyframes)
_LARGEST = 256 << 20  # bytes; a camera takes hundreds


def sources(path: Path) -> tuple[Path, ...]:
    """The files that `read` reads."""
    folder = colmap.folder_of(path)
    return (path,) if folder is None else (folder / colmap.CAMERAS, folder / colmap.IMAGES)


def read(path: Path, tool: str | None = None) -> CameraFile:
    """Reads a camera file of any format, or a folder with COLMAP's text model.

    Three lines of numbers may not say which tool they are of: one of `crafters.ORDERS`.

    Raises:
        InputError: it is of none, or broken; the line begins with the path.
    """
    folder = colmap.folder_of(path)
    if folder is not None:
        return colmap.read(path, folder)
    if path.is_dir():
        raise InputError(f"{path}: {_no_model(path)}")
    files.check_no_pipe(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: is larger than {_LARGEST >> 20} MiB, which no camera file is; known are {KNOWN}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a camera file ({KNOWN}) or a motion such as left:10") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith(b"PK"):
        return arrays.read(path)
    return _read_text(path, content, tool)


def _read_text(path: Path, content: bytes, tool: str | None) -> CameraFile:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        mend = files.stand_in(path) or f"is neither text nor .npz; known are {KNOWN}"
        raise InputError(f"{path} {mend}") from None
    if text.lstrip()[:1] in ("{", "["):
        found = _parse(path, text)
        chosen = next((form for form in _JSON if form.accepts(found)), None)
        if chosen is not None:
            return chosen.read(path, found)
    elif crafters.accepts(text):
        return crafters.read(path, text, tool)
    if path.name == colmap.CAMERAS:
        raise InputError(f"{path}: there is no {colmap.IMAGES} beside it, which says where the cameras are")
    raise InputError(f"{path} {files.stand_in(path) or f'holds no cameras of a known format; known are {KNOWN}'}")


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({' '.join(str(error).split())}); known are {KNOWN}") from None


def _no_model(path: Path) -> str:
    if any((folder / "images.bin").is_file() for folder in (path, path / "sparse" / "0", path / "sparse", path / "0")):
        return (
            "COLMAP's model is binary; write it as text: colmap model_converter --input_path DIR --output_path DIR "
            "--output_type TXT"
        )
    if (path / "transforms.json").is_file():
        return f"is a folder; nerfstudio's cameras are a file of it: give {path / 'transforms.json'}"
    return f"a folder must hold COLMAP's text model ({colmap.CAMERAS}, {colmap.IMAGES}), or give a file of it"
