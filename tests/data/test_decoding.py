"""Clips of the kinds that people have: every one is read as a player shows it."""

import itertools
import logging
import math
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from reangle_jax.data import video
from reangle_jax.errors import InputError
from tests.data.clips import clip, encode, error, ffmpeg, which

DEMO = Path(__file__).parents[2] / "assets/demo.mp4"
H264 = ("-c:v", "libx264", "-qp", 4, "-pix_fmt", "yuv420p")


def read(path, count=9, **changes):
    return video.read_video(path, **{"num_frames": count, "height": 64, "width": 96, **changes})


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("clips") / "nine.mp4", clip(), *H264)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", (*H264, "-flags", "+ildct+ilme")),
        ("a.mpg", ("-c:v", "mpeg2video", "-q:v", 1, "-flags", "+ildct+ilme")),
    ],
)
@pytest.mark.parametrize("order", ["top", "bottom"])
def test_interlaced_clips_show_their_first_fields_moments(tmp_path, name, codec, order):
    # Frames 2n and 2n + 1 are the two fields of frame n.
    encode(tmp_path / name, clip(10), "-vf", f"tinterlace=interleave_{order}", *codec)
    frames = read(tmp_path / name, 5).frames
    assert which(frames) == [0, 2, 4, 6, 8]
    # Woven, every second row would be 20 levels of blue off. The first frame has no neighbour before it to take its
    # missing rows from, and theirs are those of the second field.
    assert np.abs(frames[1:, ..., 2].astype(float) - clip(10)[2::2, ..., 2]).mean() < 3
    assert error(frames, clip(10)[::2]) < 4


def test_interlaced_dv(tmp_path):
    encode(tmp_path / "a.dv", clip(4, 576, 720), "-vf", "tinterlace=interleave_bottom", "-c:v", "dvvideo", rate=50)
    frames = read(tmp_path / "a.dv", 1, start=1).frames
    assert which(frames) == [2]


def test_progressive_frames_among_interlaced_ones_are_kept(tmp_path):
    encode(tmp_path / "a.mp4", clip(10), "-vf", "tinterlace=interleave_top", *H264, "-flags", "+ildct+ilme")
    encode(tmp_path / "b.mp4", clip(5), *H264)
    for name in "ab":
        ffmpeg("-i", tmp_path / f"{name}.mp4", "-c", "copy", "-bsf:v", "h264_mp4toannexb", tmp_path / f"{name}.h264")
    joined = tmp_path / "joined.h264"
    joined.write_bytes((tmp_path / "b.h264").read_bytes() + (tmp_path / "a.h264").read_bytes())
    assert which(list(video.iterate_frames(joined))) == [0, 1, 2, 3, 4, 0, 2, 4, 6, 8]


@pytest.mark.parametrize(("squeeze", "aspect"), [("48:64", 2), ("96:32", "1/2"), ("72:64", "4/3")])
def test_pixels_that_are_not_square(tmp_path, squeeze, aspect):
    encode(tmp_path / "a.mp4", clip(1), "-vf", f"scale={squeeze},setsar={aspect}", *H264)
    found = read(tmp_path / "a.mp4", 1)
    assert error(found.frames, clip(1)) < 3
    assert found.source_size[::-1] == tuple(map(int, squeeze.split(":")))
    whole = next(video.iterate_frames(tmp_path / "a.mp4"))
    assert whole.shape[1] / whole.shape[0] == pytest.approx(1.5, abs=0.01)


def test_turned_pixels_that_are_not_square(tmp_path):
    encode(tmp_path / "a.mp4", clip(1), "-vf", "scale=48:64,setsar=2", *H264)
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert error(read(tmp_path / "b.mp4", 1, height=96, width=64).frames[0], np.rot90(clip(1)[0])) < 3


@pytest.mark.parametrize("mirror", [(), ("-display_hflip",), ("-display_vflip",)])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_turned_and_mirrored_clips(movie, tmp_path, turn, mirror):
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", turn, *mirror, "-i", movie, "-c", "copy", turned)
    # ffmpeg itself shows them as a player does.
    shown = np.frombuffer(ffmpeg("-i", turned, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"), np.uint8)
    height, width = (96, 64) if turn % 180 else (64, 96)
    shown = shown.reshape(9, height, width, 3)
    assert error(read(turned, height=height, width=width).frames, shown) < 2


# 30 a second for 0.2 s, then 10 a second
VARIABLE = ("-vf", r"settb=1/3000,setpts=if(lt(N\,6)\,N/30\,0.2+(N-6)/10)/TB", "-enc_time_base", "1:3000")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_frame_rate_is_chosen_by_time_stamp(tmp_path, name, caplog):
    encode(tmp_path / name, clip(12), *VARIABLE, "-fps_mode", "passthrough", *H264)
    found = read(tmp_path / name, 5, fps=10)
    assert which(found.frames) == [0, 3, 6, 7, 8]
    np.testing.assert_array_equal(found.indices, [0, 3, 6, 7, 8])
    assert which(read(tmp_path / name, 5, fps=10, start=3).frames) == [3, 6, 7, 8, 9]
    assert which(read(tmp_path / name, 9, fps=15).frames) == [0, 2, 4, 6, 7, 7, 8, 9, 9]  # nearest, the later of two
    assert not caplog.records
    with pytest.raises(InputError, match=r"at config\.fps=10 need 0\.8 s, of which 0\.\d+ s are left: .*=5 would fit"):
        read(tmp_path / name, 9, fps=10)
    # One by one, their mean rate is theirs: 0.2 + 0.2 s for 8 steps.
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / name, 9).fps == pytest.approx(20, rel=0.01)
    assert "set config.fps" in caplog.text


@pytest.mark.parametrize("fps", [15, 16, 20, 24, 48])
def test_a_constant_frame_rate_is_as_by_arithmetic(tmp_path, fps):
    # Matroska's stamps are rounded to milliseconds.
    encode(tmp_path / "a.mkv", clip(12), *H264, rate=30)
    found = read(tmp_path / "a.mkv", 5, fps=fps, start=1)
    assert found.indices.tolist() == [1 + math.floor(k * 30 / fps + 0.5) for k in range(5)] == which(found.frames)


def test_a_codec_that_nobody_knows_is_refused(movie, tmp_path):
    content = movie.read_bytes()
    assert content.count(b"avc1") == 2  # the brand, and the codec
    at = content.rindex(b"avc1")
    (tmp_path / "a.mp4").write_bytes(content[:at] + b"zzzz" + content[at + 4 :])
    with pytest.raises(InputError, match=r"a\.mp4 is coded in a way that FFmpeg does not know: re-encode it"):
        read(tmp_path / "a.mp4")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"a\.mp4 is a pipe or a device: write it to a file first"):
        read(tmp_path / "a.mp4")


def test_the_demos_clip_is_what_opencv_reads():
    """An ordinary clip (8 bits, BT.709, upright): all that may differ is rounding and how chroma is interpolated."""
    capture = cv2.VideoCapture(str(DEMO))
    expected = np.stack([video.fit(capture.read()[1][..., ::-1], 128, 192) for _ in range(17)]).astype(float)
    capture.release()
    difference = np.abs(read(DEMO, 17, height=128, width=192).frames - expected)
    assert difference.mean() < 1.5
    assert difference.max() < 10


CODECS = {
    "a.mp4": ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=5:bframes=3:slices=2"),
    "b.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=5:open-gop=1"),
    "c.ts": ("-c:v", "mpeg2video", "-g", 5, "-bf", 2, "-q:v", 3),
    "d.ts": ("-c:v", "libx264", "-g", 5, "-bf", 2),
    "e.avi": ("-c:v", "mpeg4", "-g", 5, "-bf", 2),
    "f.mp4": ("-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=5"),
}


class TestDamage:
    @pytest.mark.parametrize("name", CODECS)
    def test_whole_clips_and_what_is_cut_out_of_them_are_not_taken_for_damaged(self, tmp_path, name, caplog):
        ffmpeg("-i", DEMO, "-frames:v", 25, "-vf", "scale=96:64", *CODECS[name], tmp_path / name)
        if name.endswith(".ts"):  # a broadcast joined midway begins with frames whose references are gone
            content = (tmp_path / name).read_bytes()
            (tmp_path / f"tail_{name}").write_bytes(content[len(content) // 3 // 188 * 188 :])
        else:
            ffmpeg("-ss", 0.4, "-i", tmp_path / name, "-c", "copy", tmp_path / f"cut_{name}")
        for path in sorted(tmp_path.glob("*")):
            count = len(list(video.iterate_frames(path)))
            assert count == 25 if path.name == name else 6 <= count < 25  # from where nothing is missing
            with pytest.raises(InputError, match=rf"has {count} frames, but"):
                read(path, 25 + 4)
        assert not caplog.records

    def test_a_trimmed_clip_is_not_taken_for_broken(self, tmp_path):
        """An edit list leaves out frames that the file still holds, and counts."""
        frames = np.concatenate([clip(12), clip(12)])
        encode(tmp_path / "a.mp4", frames, *H264, "-g", 25, "-bf", 0, "-sc_threshold", 0, rate=30)
        ffmpeg("-ss", 0.4, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
        with pytest.raises(InputError, match=r"has 12 frames, but .* need 17: config\.num_frames=9 would fit"):
            read(tmp_path / "b.mp4", 17)

    @pytest.fixture
    def damaged(self, tmp_path):
        """Frame 13 of real pictures with a key frame at every tenth; 40 bytes of it are flipped."""
        path = tmp_path / "a.mp4"
        size = ("-vf", "scale=192:128", "-frames:v", 25)
        ffmpeg("-i", DEMO, *size, *H264[:2], "-g", 10, "-bf", 0, "-sc_threshold", 0, path)
        with av.open(str(path)) as file:
            packet = next(itertools.islice(file.demux(video=0), 13, None))
            begin, size = packet.pos, packet.size
        content = bytearray(path.read_bytes())
        for index in range(begin + size // 4, begin + size // 4 + 40):
            content[index] ^= 0xFF
        path.write_bytes(content)
        return path

    def test_a_part_that_is_hit_is_refused(self, damaged):
        with pytest.raises(InputError, match=r"is damaged: frames 13 to 19 \(counted.* take another part") as caught:
            read(damaged, 25)
        assert "\n" not in str(caught.value)

    def test_a_part_behind_it_is_read_with_a_warning(self, damaged, caplog):
        assert read(damaged, 5, start=20).indices.tolist() == [20, 21, 22, 23, 24]
        assert "is damaged: frames 13 to 19" in caplog.text
        assert "none of them is taken" in caplog.text

    def test_a_part_before_it_is_read(self, damaged, caplog):
        assert len(read(damaged, 9).frames) == 9
        assert not caplog.records

    def test_every_frame_comes_with_a_warning(self, damaged, caplog):
        assert len(list(video.iterate_frames(damaged))) == 25
        assert "is damaged" in caplog.text

    def test_lost_frames(self, tmp_path):
        """Motion JPEG's frames stand alone: one that cannot be decoded leaves a gap."""
        path = encode(tmp_path / "a.avi", clip(), "-c:v", "mjpeg", "-q:v", 2)
        content = path.read_bytes()
        third = [i for i in range(len(content)) if content[i : i + 3] == b"\xff\xd8\xff"][3]
        path.write_bytes(content[:third] + bytes(400) + content[third + 400 :])
        with pytest.raises(InputError, match=r"is damaged: frames 3 "):
            read(path, 5)
        assert len(read(path, 1, start=4).frames) == 1


@pytest.mark.parametrize("name", ["2026-11-25T10:15:30.mp4", "-v.mp4", "100%d.mp4", "a b#?.mp4", "ü.mp4"])
def test_names_are_only_names(movie, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(movie.read_bytes())
    assert which(read(name).frames) == list(range(9))


def test_titles_in_other_encodings_do_no_harm(tmp_path):
    encode(tmp_path / "a.avi", clip(1), "-c:v", "mjpeg", "-q:v", 2, "-metadata", "title=caf_")
    content = (tmp_path / "a.avi").read_bytes()
    assert b"caf_" in content
    (tmp_path / "a.avi").write_bytes(content.replace(b"caf_", b"caf\xe9"))
    assert which(read(tmp_path / "a.avi", 1).frames) == [0]


def test_sound_alone_and_sound_with_a_cover(tmp_path, movie):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.1", tmp_path / "a.wav")
    ffmpeg("-i", movie, "-frames:v", 1, tmp_path / "cover.png")
    cover = ("-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic")
    ffmpeg("-i", tmp_path / "a.wav", "-i", tmp_path / "cover.png", *cover, tmp_path / "b.mp3")
    for name in ("a.wav", "b.mp3"):
        with pytest.raises(InputError, match=rf"{name} is not a video: it holds sound only"):
            read(tmp_path / name)


def test_text_and_a_picture_by_another_name(tmp_path, movie):
    (tmp_path / "notes.txt").write_text("no video\n" * 50)
    with pytest.raises(InputError, match=r"notes\.txt is not a video"):
        read(tmp_path / "notes.txt")
    ffmpeg("-i", movie, "-frames:v", 1, tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"a\.mp4 is a single picture"):
        read(tmp_path / "a.mp4")


def test_what_is_cropped_away_is_said(tmp_path, caplog):
    encode(tmp_path / "portrait.mp4", clip(1, 192, 108), *H264)
    read(tmp_path / "portrait.mp4", 1, multiple=16)
    # 108 columns become 96, 192 rows 171 of which 64 are kept.
    assert "63 % of the picture (height x width 192x108) is cropped away, above and below the middle" in caplog.text
    assert "--config.height=112 --config.width=64" in caplog.text
    caplog.clear()
    encode(tmp_path / "wide.mp4", clip(1, 108, 192), *H264)  # 16:9 loses 16 % at 3:2: as usual
    read(tmp_path / "wide.mp4", 1)
    assert not caplog.records
