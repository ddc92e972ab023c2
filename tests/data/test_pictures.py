import os
import struct

import cv2
import numpy as np
import pytest

from reangle_jax.data import pictures, video
from reangle_jax.errors import InputError
from tests.data.clips import clip, ffmpeg


def tiff(image, orientation):
    """An uncompressed RGB TIFF with its orientation (tag 274)."""
    height, width = image.shape[:2]
    entries = {256: width, 257: height, 258: None, 259: 1, 262: 2, 273: None, 274: orientation, 277: 3, 278: height}
    entries[279] = image.nbytes
    bits = 8 + 2 + 12 * len(entries) + 4
    entries |= {258: bits, 273: bits + 6}
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, value in entries.items():
        content += struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
    return content + struct.pack("<IHHH", 0, 8, 8, 8) + image.tobytes()


@pytest.mark.parametrize(("orientation", "rows", "columns"), [(1, 1, 1), (2, 1, -1), (3, -1, -1), (4, -1, 1)])
def test_mirrored_tiffs_are_upright(tmp_path, orientation, rows, columns):
    (tmp_path / "1.tif").write_bytes(tiff(clip(1)[0], orientation))
    np.testing.assert_array_equal(pictures.read(tmp_path / "1.tif"), clip(1)[0][::rows, ::columns])


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (5, lambda image: image.swapaxes(0, 1)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: np.rot90(image.swapaxes(0, 1), 2)),
        (8, np.rot90),
    ],
)
def test_tiffs_on_their_side_are_upright_or_refused_in_one_line(tmp_path, orientation, turn, capfd):
    """OpenCV 4.10 turns them, later ones fail."""
    (tmp_path / "1.tif").write_bytes(tiff(clip(1)[0], orientation))
    found = outcome(tmp_path / "1.tif")
    if isinstance(found, str):
        assert (
            "1.tif is a TIFF that is stored on its side, which OpenCV cannot turn: save it upright, or as PNG" in found
        )
    else:
        np.testing.assert_array_equal(found, turn(clip(1)[0]))
    assert capfd.readouterr().err == ""


def outcome(path):
    try:
        return pictures.read(path)
    except InputError as error:
        return str(error)


def test_a_broken_tiff(tmp_path, capfd):
    (tmp_path / "1.tif").write_bytes(b"II*\0" + bytes(20))
    with pytest.raises(InputError, match=r"1\.tif is not a picture that OpenCV can read"):
        pictures.read(tmp_path / "1.tif")
    assert capfd.readouterr().err == ""


def test_an_animated_webp(tmp_path):
    for name, count in (("moves.webp", 3), ("still.webp", 1)):
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-i", "-")
        ffmpeg(*raw, "-c:v", "libwebp_anim", tmp_path / name, data=clip(count).tobytes())
    with pytest.raises(InputError, match=r"moves\.webp is an animated WebP, .* convert it to mp4 or gif"):
        video.read_video(tmp_path / "moves.webp", num_frames=1, height=64, width=96)
    with pytest.raises(InputError, match=r"still\.webp is a single picture"):
        video.read_video(tmp_path / "still.webp", num_frames=1, height=64, width=96)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"1\.png: is a pipe or a device: write it to a file first"):
        pictures.read(tmp_path / "1.png")


def test_natural_order_and_what_counts(tmp_path):
    for name in ("f10.png", "f9.PNG", "f1.jpg", "._f2.png", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "run" / "views").mkdir(parents=True)
    (tmp_path / "run" / "0.png").write_bytes(b"x")
    assert [p.name for p in pictures.in_folder(tmp_path)] == ["f1.jpg", "f9.PNG", "f10.png"]


def test_exif_turns_a_jpeg(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), clip(1)[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    content = (tmp_path / "a.jpg").read_bytes()
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    (tmp_path / "a.jpg").write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    assert np.abs(pictures.read(tmp_path / "a.jpg").astype(int) - np.rot90(clip(1)[0], -1)).mean() < 3


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_whether_a_picture_has_holes(tmp_path, kind):
    picture = np.full((8, 9, 4), np.iinfo(kind).max, kind)
    assert cv2.imwrite(str(tmp_path / "opaque.png"), picture)
    assert not pictures.is_transparent(tmp_path / "opaque.png")
    assert cv2.imwrite(str(tmp_path / "rgb.png"), picture[..., :3])
    assert not pictures.is_transparent(tmp_path / "rgb.png")
    picture[3, 4, 3] -= 1
    assert cv2.imwrite(str(tmp_path / "holes.png"), picture)
    assert pictures.is_transparent(tmp_path / "holes.png")
