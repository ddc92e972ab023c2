"""What the user writes for a file or a folder."""

import argparse
import errno
import os
import re
from typing import Any

from reangle_jax.errors import InputError


def user_path(text: str, setting: str) -> str:
    """The path that a setting, ``config.video`` or ``--workdir``, names: ``~`` opens a home; empty stays empty.

    Raises:
        InputError: an address with a scheme, gs://bucket/run or https://host/clip.mp4, which no part of this program
            can open; the home of a user who does not exist; or what no file can be called.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme:
        mend = (
            "mount the bucket (gcsfuse, s3fs, ...) and give the folder, or copy it here"
            if scheme[1].lower() in ("gs", "s3", "az", "abfs", "hdfs")
            else "give its path alone"
            if scheme[1].lower() == "file"
            else "download it and give the file"
        )
        raise InputError(f"{setting}: {text} is an address, and only paths of this machine are opened: {mend}")
    if any("\ud800" <= letter < "\udc80" or "\udcff" < letter <= "\udfff" for letter in text):
        raise InputError(f"{setting}: {text!a} holds half a surrogate pair, which no path does: write the letter")
    if "\0" in text:
        raise InputError(f"{setting}: {text!r} holds a zero byte, which no path does: leave it out")
    expanded = os.path.expanduser(text)
    try:
        os.lstat(expanded)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{setting}: {text:.40}... is longer than a path may be: shorten it") from None
    if expanded.startswith("~") and not os.path.exists(expanded):
        raise InputError(f"{setting}: {text}: {text.split('/')[0]} is the home of no user: write the path out")
    return expanded


def natural(name: str) -> list[Any]:
    """A key that sorts 2 before 10; numbers by how many digits they have, which may be more than Python converts."""
    parts = re.split(r"(\d+)", name)  # text, digits, text, ...: equal places compare equal types
    return [(len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else part for part in parts]


def expand(arguments: argparse.Namespace, *names: str) -> None:
    """`user_path` for those of a command's arguments that are given: ``out`` holds what ``--out`` set."""
    for name in names:
        value, flag = getattr(arguments, name), f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            setattr(arguments, name, [user_path(text, flag) for text in value])
        elif value:
            setattr(arguments, name, user_path(value, flag))
