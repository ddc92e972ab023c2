"""Likeness to a reference: means over frames, what is resized, cut or undefined, and that JSON takes it."""

import json

import numpy as np
import pytest

from reangle_jax.data.video import fit
from reangle_jax.errors import TooSmallError
from reangle_jax.scoring.image import psnr, ssim
from reangle_jax.scoring.reference import Likeness, compare, likeness


def brightness(images, references):
    """Stands in for the network: any function of a batch of uint8 pairs."""
    assert images.shape == references.shape
    return np.abs(images.astype(np.float32).mean((1, 2, 3)) - references.astype(np.float32).mean((1, 2, 3)))


@pytest.fixture
def video(rng):
    return list(rng.integers(0, 256, (3, 24, 32, 3), np.uint8))


@pytest.fixture
def copy(video, rng):
    return [np.clip(x.astype(int) + rng.integers(-20, 30, x.shape), 0, 255).astype(np.uint8) for x in video]


def notes():
    lines = []
    return lines, lambda line: lines.append(line) if line not in lines else None


def test_a_picture(video, copy):
    got = compare(copy[:1], video[:1], brightness)
    want = likeness(copy[0], video[0], brightness)
    distance = brightness(copy[0][None], video[0][None])[0]
    assert want == Likeness(psnr(copy[0], video[0]), ssim(copy[0], video[0]), distance)
    assert got == {"frames": 1, **want._asdict()}
    assert set(compare(copy[:1], video[:1])) == {"frames", "psnr", "ssim"}


def test_a_video_is_the_mean_of_its_frames(video, copy):
    lines, note = notes()
    got = compare(iter(copy), iter(video), brightness, note=note)
    frames = [likeness(a, b, brightness) for a, b in zip(copy, video, strict=True)]
    assert got["frames"] == 3
    for field in Likeness._fields:
        values = [getattr(frame, field) for frame in frames]
        assert len(set(values)) == 3
        assert got["per_frame"][field] == values
        assert got[field] == pytest.approx(np.mean(values))
    assert lines == []
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_another_size_is_resized_with_a_note(video):
    lines, note = notes()
    large = [np.repeat(np.repeat(x, 2, 0), 3, 1) for x in video]
    got = compare(large, video, name="a.mp4", reference_name="b.mp4", note=note)
    assert lines == ["a.mp4 is 96x48: resized to the 32x24 of b.mp4, its centre kept"]
    resized = [np.ascontiguousarray(fit(x, 24, 32)) for x in large]
    assert got["psnr"] == compare(resized, video)["psnr"]
    assert compare(video, large)["psnr"] != got["psnr"]  # at the reference's size


@pytest.mark.parametrize(("kept", "said"), [((2, 3), "a ends after 2 frames: the later ones of b"), ((3, 1), "b ends")])
def test_as_far_as_the_shorter_goes(video, copy, kept, said):
    lines, note = notes()
    got = compare(copy[: kept[0]], video[: kept[1]], name="a", reference_name="b", note=note)
    assert got["frames"] == min(kept)
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert got["psnr"] == compare(copy[: min(kept)], video[: min(kept)])["psnr"]


def test_equal_frames_have_no_finite_psnr(video, copy):
    lines, note = notes()
    got = compare([copy[0], video[1], copy[2]], video, name="a", reference_name="b", note=note)
    assert lines == ["a equals b in 1 of 3 frames: PSNR is infinite, said as null"]
    assert got["psnr"] is None
    assert [value is None for value in got["per_frame"]["psnr"]] == [False, True, False]
    assert got["per_frame"]["ssim"][1] == pytest.approx(1.0)
    assert json.dumps(got, allow_nan=False)
    lines, note = notes()
    got = compare(video[:1], video[:1], brightness, note=note)
    assert got == {"frames": 1, "psnr": None, "ssim": pytest.approx(1.0), "lpips": 0.0}
    assert lines == ["the input equals the reference: PSNR is infinite, said as null"]


def test_too_small_for_a_window(video, copy):
    def refuses(images, references):
        raise TooSmallError("needs sides of 31 pixels")

    lines, note = notes()
    small, reference = copy[0][:8, :9], video[0][:8, :9]
    got = compare([small], [reference], refuses, note=note)
    assert got == {"frames": 1, "psnr": psnr(small, reference), "ssim": None, "lpips": None}
    assert lines == [
        f"the input, at the size of the reference, is too small for {what}: none is given" for what in ("SSIM", "LPIPS")
    ]


@pytest.mark.usefixtures("unchecked")
def test_nothing_to_compare(video):
    with pytest.raises(ValueError, match=r"a\.mp4 and b\.mp4 have no frame"):
        compare([], video, name="a.mp4", reference_name="b.mp4")
    with pytest.raises(ValueError, match="one shape"):
        likeness(video[0], video[0][:-1])
    with pytest.raises(ValueError, match="uint8"):
        compare([video[0].astype(np.float32)], [video[0]])
