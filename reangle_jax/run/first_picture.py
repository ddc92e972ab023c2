"""The first frame that all others are made from: the input's own, or another in its place; and the user's own ones."""

from pathlib import Path

from reangle_jax.arrays import Picture
from reangle_jax.cameras.views import folder_name
from reangle_jax.config import Settings
from reangle_jax.data import files, pictures
from reangle_jax.errors import InputError, about

EDITED, FRAMES = "input/edited.png", "input/frames.npz"
_KEY = "config.first_frames.given"


def of(settings: Settings) -> str:
    """Its file, relative to the run's folder."""
    return EDITED if settings.edit.caption or given(settings) else FRAMES


def read(settings: Settings, folder: Path) -> Picture:
    """The picture."""
    path = folder / of(settings)
    return pictures.read(path) if path.suffix == ".png" else files.load_npz(path)["frames"][0]


def given(settings: Settings) -> Path | None:
    """The user's own picture in its place."""
    path = Path(settings.first_frames.given)
    return path if path.is_file() else None


def given_of_views(settings: Settings) -> dict[str, Path]:
    """The user's own first frames by view, where a folder of them is given; `check` refuses what else lies there."""
    names = {folder_name(view): view for view in settings.views}
    return {names[path.stem]: path for path in _in_folder(settings) if path.stem in names}


def _in_folder(settings: Settings) -> list[Path]:
    path = Path(settings.first_frames.given)
    return pictures.in_folder(path) if settings.first_frames.given and path.is_dir() else []


def check(settings: Settings) -> None:
    """Refuses pictures of the user's that do not fit.

    Raises:
        InputError: a picture cannot be read, has another size than the video, has holes, or is of no view.
    """
    own, names = given(settings), {folder_name(view): view for view in settings.views}
    found: dict[str, Path] = {}
    for path in _in_folder(settings):
        if path.stem not in names:
            raise InputError(f"{_KEY}: {path}: there is no view {path.stem}: name it one of {', '.join(names)}")
        if path.stem in found:
            raise InputError(f"{_KEY}: {found[path.stem]} and {path} are both of {names[path.stem]}: keep one")
        found[path.stem] = path
    if not own and not found:
        where = settings.first_frames.given
        raise InputError(f"{_KEY}: {where} holds no pictures: name them {', '.join(f'{name}.png' for name in names)}")
    for path in [own] if own else found.values():
        with about(_KEY):
            height, width = pictures.read(path).shape[:2]
        if (height, width) != (settings.height, settings.width):
            expected = f"{settings.height}x{settings.width}, as config.height and config.width say"
            raise InputError(f"{_KEY}: {path} is {height}x{width} (rows x columns): make it {expected}")
        if pictures.is_transparent(path):
            mend = "paint its holes and save it without transparency"
            raise InputError(f"{_KEY}: {path} is transparent in places, and would be taken as it is: {mend}")
