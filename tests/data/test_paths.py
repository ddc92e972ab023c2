import argparse

import pytest

from reangle_jax.data import paths
from reangle_jax.errors import InputError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["clip.mp4", "", "a:b.mp4", "model", "./~", "a~b", "C:/x.mp4", "2026-11-25T10:15.mp4"])
def test_most_paths_are_what_they_say(text):
    assert paths.user_path(text, "config.video") == text


def test_a_tilde_opens_the_home(home):
    assert paths.user_path("~/clip.mp4", "config.video") == f"{home}/clip.mp4"
    assert paths.user_path("~", "--workdir") == str(home)
    with pytest.raises(InputError, match=r"config\.video: ~nobody-has-this-name/x: .* is the home of no user"):
        paths.user_path("~nobody-has-this-name/x", "config.video")
    (home / "~odd").touch()  # a file that is really called so
    assert paths.user_path("~odd", "config.video") == "~odd"


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("gs://bucket/run", "mount the bucket"),
        ("s3://bucket/run:0.5", "mount the bucket"),
        ("https://host/clip.mp4", "download it and give the file"),
        ("file:///clip.mp4", "paths of this machine are opened: give its path alone"),
    ],
)
def test_addresses_are_refused_with_the_mend(text, mend):
    with pytest.raises(InputError, match=rf"^--workdir: {text} is an address.*{mend}"):
        paths.user_path(text, "--workdir")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("a" * 5000, "is longer than a path"),
        ("a" * 300, "shorten"),
        ("a\0b", "zero byte"),
        ("a\ud800", r"'a\\ud800' holds half a surrogate pair"),
    ],
)
def test_what_no_file_can_be_called_is_refused(text, mend):
    with pytest.raises(InputError, match=rf"^config\.video: .*{mend}"):
        paths.user_path(text, "config.video")


def test_arguments_of_a_command(home):
    arguments = argparse.Namespace(out="~/a.json", save_maps=None, video=["~/a.mp4", "b.mp4"])
    paths.expand(arguments, "out", "save_maps", "video")
    assert vars(arguments) == {"out": f"{home}/a.json", "save_maps": None, "video": [f"{home}/a.mp4", "b.mp4"]}
    with pytest.raises(InputError, match=r"^--save-maps: gs://b/x is"):
        paths.expand(argparse.Namespace(save_maps="gs://b/x"), "save_maps")
