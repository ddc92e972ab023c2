import errno
import json
import subprocess

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from reangle_jax.data import video
from reangle_jax.errors import InputError
from tests.data.clips import clip, encode, ffmpeg, which


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "nine.mp4"
    video.write_video(path, clip(), 24.0)
    return path


def test_round_trip_keeps_size_rate_and_colours(movie):
    back = video.read_video(movie, num_frames=9, height=64, width=96)
    assert back.fps == 24.0
    assert back.frames.shape == (9, 64, 96, 3)
    assert back.frames.dtype == np.uint8
    # x264 at crf 16 and 4:2:0 of a smooth clip: about 1.5 levels.
    assert np.abs(back.frames.astype(float) - clip()).mean() < 2.5
    assert which(back.frames) == list(range(9))


def test_written_file_is_what_browsers_play(movie):
    words = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", movie], capture_output=True, text=True, check=False)
    assert "h264" in words.stderr
    assert "yuv420p(tv, bt709" in words.stderr
    content = movie.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # faststart


def test_equal_frames_give_equal_bytes(movie, tmp_path):
    for _ in range(8):  # x264's macroblock trees gave others now and then
        video.write_video(tmp_path / "again.mp4", clip(), 24.0)
        assert (tmp_path / "again.mp4").read_bytes() == movie.read_bytes()


def test_odd_sizes_are_padded_by_one(tmp_path):
    video.write_video(tmp_path / "odd.mp4", clip(3, 63, 95), 8)
    back = video.read_video(tmp_path / "odd.mp4", num_frames=1, height=64, width=96).frames[0]
    assert np.abs(back[:63, :95].astype(float) - clip(1, 63, 95)[0]).mean() < 3


def test_start_and_rate_choose_the_frames(movie):
    back = video.read_video(movie, start=1, num_frames=5, fps=16, height=64, width=96)
    assert which(back.frames) == [1, 3, 4, 6, 7]
    assert back.fps == 16


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("mjpeg", "a.avi"),
        ("libvpx", "a.webm"),
        ("libvpx-vp9", "a.webm"),
        ("libaom-av1", "a.mkv"),
        ("libx265", "a.mp4"),
        ("prores_ks", "a.mov"),
        ("mpeg4", "a.mp4"),
        ("mpeg1video", "a.mpg"),
        ("ffv1", "a.mkv"),
    ],
)
def test_containers_and_codecs(tmp_path, codec, name, capfd):
    quiet = {"libx265": ("-x265-params", "log-level=none"), "libaom-av1": ("-cpu-used", 8)}.get(codec, ())
    encode(tmp_path / name, clip(5), "-c:v", codec, "-b:v", "2M", *quiet, rate=25)
    back = video.read_video(tmp_path / name, num_frames=5, height=64, width=96)
    assert which(back.frames) == list(range(5))
    assert back.fps == 25
    assert capfd.readouterr().err == ""


def test_gif(tmp_path):
    encode(tmp_path / "a.gif", clip(5), rate=10)
    assert which(video.read_video(tmp_path / "a.gif", num_frames=5, height=64, width=96).frames) == list(range(5))


def test_folder_in_natural_order(tmp_path):
    for t, frame in enumerate(clip(11)):
        cv2.imwrite(str(tmp_path / f"frame{t}.png"), frame[..., ::-1])
    (tmp_path / "notes.txt").write_text("not a frame")
    back = video.read_video(tmp_path, num_frames=9, start=2, height=64, width=96)
    np.testing.assert_array_equal(back.frames, clip(11)[2:])
    assert back.fps == video.DEFAULT_FPS
    # A folder has no rate of its own: fps says it, and nothing is resampled.
    assert which(video.read_video(tmp_path, num_frames=5, fps=8, height=64, width=96).frames) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("height", "width"), [(32, 96), (64, 48), (128, 192), (48, 48)])
def test_fit_covers_and_crops_the_centre(height, width):
    y, x = np.mgrid[0:64, 0:96]
    frame = np.stack([x, y, x * 0], -1).astype(np.uint8)
    out = video.fit(frame, height, width).astype(float)
    assert out.shape == (height, width, 3)
    # The centre stays the centre, in both directions, whatever was cut away.
    scale = max(height / 64, width / 96)
    assert abs(out[..., 0].mean() - 47.5) < 1
    assert abs(out[..., 1].mean() - 31.5) < 1
    assert abs((out[..., 0].max() - out[..., 0].min()) - width / scale) < 2.5


class TestRefusals:
    def read(self, path, **changes):
        return video.read_video(path, **{"num_frames": 9, "height": 64, "width": 96, **changes})

    def test_no_such_file(self, tmp_path):
        with pytest.raises(InputError, match=r"^no such file or folder: .*none\.mp4"):
            self.read(tmp_path / "none.mp4")

    @pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
    def test_not_a_video(self, tmp_path, content, capfd):
        (tmp_path / "x.mp4").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.mp4 is not a video that FFmpeg can read"):
            self.read(tmp_path / "x.mp4")
        assert capfd.readouterr().err == ""

    def test_no_frames(self, tmp_path, movie):
        empty = tmp_path / "empty.mp4"
        ffmpeg("-v", "quiet", "-i", movie, "-frames:v", 0, "-c", "copy", empty)
        assert empty.exists()
        with pytest.raises(InputError, match=r"holds no frame|is not a video"):
            self.read(empty)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(InputError, match="holds no frames"):
            self.read(tmp_path)

    def test_too_few_frames_says_how_many_there_are_and_what_fits(self, movie):
        with pytest.raises(
            InputError, match=r"has 9 frames, but .*num_frames=17 need 17: config\.num_frames=9 would fit"
        ):
            self.read(movie, num_frames=17)
        with pytest.raises(
            InputError, match=r"num_frames=9 need 14: config\.start=0 or config\.num_frames=1 would fit"
        ):
            self.read(movie, start=5)
        with pytest.raises(InputError, match=r"at config\.fps=8 need 1 s, of which 0\.375 s are left: .*=1 would"):
            self.read(movie, fps=8)
        with pytest.raises(InputError, match=r"need 39: config\.start=0 would fit"):
            self.read(movie, start=30)
        with pytest.raises(InputError, match=r"lower config\.start \(below 9\)"):
            self.read(movie, start=30, num_frames=17)

    def test_broken_midway(self, tmp_path):
        path = tmp_path / "long.mp4"
        noise = np.random.default_rng(0).integers(0, 255, (25, 64, 96, 3), np.uint8)
        video.write_video(path, noise, 24)
        (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=r"cannot be read past frame \d+ of 25.*broken midway"):
            self.read(tmp_path / "cut.mp4", num_frames=25)
        assert len(self.read(tmp_path / "cut.mp4", num_frames=5).frames) == 5

    def test_single_picture(self, tmp_path):
        cv2.imwrite(str(tmp_path / "frame1.png"), clip(1)[0])
        with pytest.raises(InputError, match="single picture"):
            self.read(tmp_path / "frame1.png")

    def test_folder_with_a_bad_frame(self, tmp_path):
        for t, frame in enumerate(clip(9)):
            cv2.imwrite(str(tmp_path / f"{t}.png"), frame)
        (tmp_path / "4.png").write_bytes(b"no")
        with pytest.raises(InputError, match=r"4\.png is not a picture"):
            self.read(tmp_path)
        cv2.imwrite(str(tmp_path / "4.png"), clip(1, 32, 32)[0])
        with pytest.raises(InputError, match=r"4\.png is 32x32, the frames before it 96x64"):
            self.read(tmp_path)


def test_header_without_a_count_is_no_obstacle(tmp_path, movie):
    """A raw H.264 stream has no frame count at all."""
    raw = tmp_path / "raw.h264"
    ffmpeg("-i", movie, "-c", "copy", "-bsf:v", "h264_mp4toannexb", raw)
    assert which(video.read_video(raw, num_frames=9, height=64, width=96).frames) == list(range(9))


def test_encoder_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(video.encoding, "encode_mp4", lambda frames, fps: av.error.err_check(-errno.EINVAL))
    with pytest.raises(RuntimeError, match=r"the encoder failed on .*a\.mp4: Invalid argument"):
        video.write_video(path, clip(2), 8)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(video.files, "atomic_write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        video.write_video(path, clip(2), 8)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_write_refuses_what_is_no_clip(tmp_path):
    for bad in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            video.write_video(tmp_path / "x.mp4", bad, 8)
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == "[]"
