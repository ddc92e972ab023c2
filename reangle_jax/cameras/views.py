"""A view as the user spells it: a motion about the pivot, or a camera file."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError

SUFFIXES = (".json", ".npz", ".txt")


def is_file(spelling: str) -> bool:
    """Whether a view is a file or folder, by its spelling and, of a name without any mark, by what is there."""
    if re.match(r"[A-Za-z_]+:", spelling):
        return False
    return "/" in spelling or Path(spelling).suffix.lower() in SUFFIXES or Path(spelling).is_dir()


def folder_name(spelling: str) -> str:
    """A view's NAME in the run's folder: every character outside A-Z a-z 0-9 becomes ``_``, of a file's stem."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in label(spelling))


def view_file(view: str, name: str) -> str:
    """A view's file, relative to the run's folder."""
    return f"views/{folder_name(view)}/{name}"


def label(spelling: str) -> str:
    """What to call a view where there is little room."""
    return Path(spelling).stem if is_file(spelling) else spelling


def read_prompts(prompts: Sequence[str], views: Sequence[str]) -> dict[str, str]:
    """View to prompt, of ``VIEW=PROMPT``.

    Raises:
        InputError: a word has another form, or names no view.
    """
    found: dict[str, str] = {}
    for text in prompts:
        view, equals, prompt = text.partition("=")
        view = next((known for known in views if view.strip() in (known, folder_name(known))), "")
        if not equals or not view:
            names = ", ".join(dict.fromkeys(map(folder_name, views)))
            raise InputError(f"{text!r} is not possible: write VIEW=PROMPT, with one of the views {names}")
        found[view] = prompt.strip()
    return found


def prompt(spelling: str, cameras: Path, caption: str, mode: str, prompts: dict[str, str]) -> str:
    """What the model is told of a video of a view, in training and in sampling alike.

    In dynamic mode the motion goes before the caption, for all views share a first frame; static views share one
    prompt: there it is the first frame that tells them apart. A path from a file gets the words of the motion that it
    is most like (`inspection.main_motion`), or none where it is like none: its cameras.json in the run's folder is
    read. The user's prompts, by view, go before.
    """
    from reangle_jax.geometry import trajectories  # late: it brings jax

    if spelling in prompts:
        return prompts[spelling]
    if mode != "dynamic":
        return caption
    if not is_file(spelling):
        return trajectories.parse_view(spelling).prompt_prefix + caption
    from reangle_jax.cameras import inspection
    from reangle_jax.geometry.cameras import load_cameras, load_pivot_depth

    poses: Float[np.ndarray, "T 4 4"] = np.asarray(load_cameras(cameras)[0].camera_to_world, np.float64)
    motion = inspection.main_motion(poses, load_pivot_depth(cameras) or 1.0)
    return (trajectories.prompt_prefix(motion) if motion else "") + caption
