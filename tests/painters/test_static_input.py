"""What static mode refuses of a user's pictures and weights, before any work."""

import subprocess

import numpy as np
import pytest

from reangle_jax.data import files, pictures
from tests.painters import static_inputs, toy
from tests.painters.static_inputs import HEIGHT, WIDTH, call


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    with static_inputs.registered():
        yield static_inputs.write(tmp_path_factory.mktemp("static"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--config.first_frames.given={own}"],
            "sideways.png: there is no view sideways: name it one of left_12, right_6",
        ),
        (["--config.first_frames.given={empty}"], "holds no pictures: name them left_12.png, right_6.png, up_9.png"),
        (["--config.first_frames.given={small}"], "left_12.png is 16x16 (rows x columns): make it 32x48"),
        (["--config.first_frames.given={twice}"], "are both of left:12: keep one"),
        (
            ["--config.first_frames.given={holes}"],
            "left_12.png is transparent in places, and would be taken as it is: paint",
        ),
        (["--config.first_frames.given={broken}"], "left_12.png is not a picture that OpenCV can read"),
        (
            ["--config.first_frames.weights={empty}"],
            "config.first_frames.weights: {empty}/palette/config.json is missing",
        ),
        (["--config.first_frames.weights={other}"], "holds VAEConfig, not PaletteConfig: give the weights of toy"),
        (
            ["--config.first_frames.weights={blind}"],
            "{blind}/dust3r is missing: the score, which makes the first frames",
        ),
        (["--config.first_frames.weights={dull}"], "{dull} holds no featup or dino or dinov2/: the score"),
    ],
)
def test_unusable_input_is_answered_before_any_work(inputs, tmp_path, arguments, words, capfd):
    for name in ("own", "empty", "small", "twice", "holes", "broken", "other", "blind", "dull"):
        (tmp_path / name).mkdir()
    plain = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pictures.write_png(tmp_path / "own/sideways.png", plain)
    pictures.write_png(tmp_path / "holes/left_12.png", plain, np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) > 0)
    pictures.write_png(tmp_path / "small/left_12.png", plain[:16, :16])
    for name in ("left_12.png", "left_12.jpg"):
        pictures.write_png(tmp_path / "twice" / name, plain)
    (tmp_path / "broken/left_12.png").write_bytes(b"no picture")
    files.atomic_write_json(tmp_path / "other/palette/config.json", {"class": "VAEConfig"})
    toy.write_weights(tmp_path / "blind")
    subprocess.run(["cp", "-a", inputs / "painter/dust3r", inputs / "painter/palette", tmp_path / "dull"], check=True)
    places = {path.name: path for path in tmp_path.iterdir()}
    for where in (("--plan",), ()):
        arguments = [argument.format(**places) for argument in arguments]
        assert call(inputs, tmp_path / "run", *arguments, *where) == (0 if where else 2)
        captured = capfd.readouterr()
        lines = (captured.out if where else captured.err).splitlines()
        said = [line for line in lines if line.startswith(("missing: ", "error: "))]
        assert any(words.format(**places) in line for line in said)
        assert where or len(said) == 1
    assert not (tmp_path / "run/input").exists()
