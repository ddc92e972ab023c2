"""Colours: patches of known light or known R'G'B' are coded here, by the standards' formulas, and read back."""

import numpy as np
import pytest

from reangle_jax.data import colour, video
from reangle_jax.errors import InputError
from tests.data.clips import encode

SIDE = 16  # of a patch
LUMA = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}
RGB = np.array(
    [[0, 0, 0], [255, 255, 255], [128, 128, 128], [220, 40, 40], [40, 200, 60], [30, 60, 210], [200, 180, 20]]
)


def write(path, rgb, *, matrix, wide=False, bits=8, tags=(), codec=("-c:v", "libx264", "-qp", 0), scale=1):
    """A row of patches, each of an R'G'B' in 0 to 1, as YCbCr 4:2:0 coded without loss."""
    kr, kb = LUMA[matrix]
    luma = rgb @ np.array([kr, 1 - kr - kb, kb])
    cb, cr = (rgb[:, 2] - luma) / (2 - 2 * kb), (rgb[:, 0] - luma) / (2 - 2 * kr)
    unit = 2 ** (bits - 8)
    if wide:
        y, c = luma * (2**bits - 1), np.stack([cb, cr]) * (2**bits - 1) + 128 * unit
    else:
        y, c = unit * (219 * luma + 16), unit * (224 * np.stack([cb, cr]) + 128)
    side = SIDE * scale
    planes = [np.broadcast_to(np.repeat(y, side), (side, side * len(rgb)))]
    planes += [np.broadcast_to(np.repeat(p, side // 2), (side // 2, side * len(rgb) // 2)) for p in c]
    kind = np.uint8 if bits == 8 else np.dtype("<u2")
    content = np.concatenate([np.round(plane).astype(kind).reshape(-1) for plane in planes])
    pixels = "yuv420p" if bits == 8 else f"yuv420p{bits}le"
    shape = np.broadcast_to(np.zeros(()), (1, side, side * len(rgb), 3))
    frame = Raw(shape.shape, content.tobytes())
    return encode(path, frame, *codec, "-pix_fmt", pixels, *tags, pixels=pixels)


class Raw:
    def __init__(self, shape, content):
        self.shape, self._content = shape, content

    def tobytes(self):
        return self._content


def patches(path, count, scale=1):
    frame = next(video.iterate_frames(path))
    assert frame.dtype == np.uint8
    side = SIDE * scale
    return frame[side // 2, side // 2 :: side].astype(int)[:count]


def tags(matrix="unknown", transfer="unknown", primaries="unknown", reach="tv"):
    """As output options, ffmpeg would take them for a wish to convert."""
    return ("-vf", f"setparams=colorspace={matrix}:color_trc={transfer}:color_primaries={primaries}:range={reach}")


@pytest.mark.parametrize("reach", ["tv", "pc"])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_standard_range(tmp_path, matrix, bits, reach):
    path = tmp_path / "a.mp4"
    write(path, RGB / 255, matrix=matrix, wide=reach == "pc", bits=bits, tags=tags(matrix, "bt709", "bt709", reach))
    assert np.abs(patches(path, len(RGB)) - RGB).max() <= 2  # 8-bit chroma is coarser than R'G'B' by up to 1.8


@pytest.mark.parametrize(("matrix", "scale"), [("smpte170m", 1), ("bt709", 12)])
def test_a_matrix_that_is_not_stated_goes_by_the_size(tmp_path, matrix, scale):
    path = tmp_path / "a.mp4"
    write(path, RGB / 255, matrix=matrix, scale=scale, tags=tags())
    assert np.abs(patches(path, len(RGB), scale) - RGB).max() <= 2


def pq(light):
    """SMPTE ST 2084, the inverse EOTF, with the constants as printed there."""
    y = (np.asarray(light) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(scene):
    """BT.2100's OETF."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


HDR = ("-c:v", "libx264", "-qp", 0)


def hdr(path, rgb, transfer):
    return write(path, rgb, matrix="bt2020nc", bits=10, codec=HDR, tags=tags("bt2020nc", transfer, "bt2020"))


# cd/m2, and the level in SDR: a gamma of 2.4 below a white of 203 cd/m2. BT.2408: an 18 % grey card has 26 cd/m2.
GREYS = {0: 0, 5: 54.5, 26: 108.3, 60: 153.4}


def test_pq_keeps_the_greys_of_a_standard_picture(tmp_path):
    path = hdr(tmp_path / "a.mp4", np.repeat(pq([[g] for g in [*GREYS, 203, 1000, 4000]]), 3, 1), "smpte2084")
    found = patches(path, 7)
    assert (np.ptp(found, axis=1) <= 1).all()
    np.testing.assert_allclose(found[:4, 0], list(GREYS.values()), atol=2)
    # White is near the top, not at it: BT.2390's shoulder leaves room for what is brighter.
    assert 200 < found[4, 0] < 240
    assert found[5, 0] == found[6, 0] == 255


def test_hlg_is_pq_of_the_same_light(tmp_path):
    light = np.array([0.5, 5, 26, 60, 203, 500, 1000])
    scene = (light / 1000) ** (1 / 1.2)  # greys: luminance and signal are one
    bright = patches(hdr(tmp_path / "a.mp4", np.repeat(hlg(scene)[:, None], 3, 1), "arib-std-b67"), 7)
    np.testing.assert_allclose(
        bright, patches(hdr(tmp_path / "b.mp4", np.repeat(pq(light)[:, None], 3, 1), "smpte2084"), 7), atol=2
    )
    assert bright[4, 0] == pytest.approx(patches(tmp_path / "b.mp4", 7)[4, 0], abs=2)
    assert hlg(np.array(0.2032 ** (1 / 1.2))) == pytest.approx(0.75, abs=0.002)  # as BT.2408 has it


# BT.709's primaries in BT.2020's linear light (BT.2087).
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.5, 0.25, 0.1]])


def test_wide_colours_come_back_to_those_of_bt709(tmp_path):
    light = 50 * COLOURS @ TO_2020.T  # dark enough to be left alone by the tone curve
    found = patches(hdr(tmp_path / "a.mp4", pq(light), "smpte2084"), len(COLOURS))
    check(found, 50 / 203 * COLOURS)


def check(found, light):
    """Levels agree where there is light; where there is none, 18 levels are 2 thousandths: a step or two in 10 bits."""
    np.testing.assert_allclose(found[light > 0], 255 * light[light > 0] ** (1 / 2.4), atol=3)
    assert ((found[light == 0] / 255) ** 2.4).max() < 0.003


def test_wide_colours_of_standard_range(tmp_path):
    coded = (0.8 * COLOURS @ TO_2020.T) ** (1 / 2.4)
    write(tmp_path / "a.mp4", coded, matrix="bt2020nc", bits=10, tags=tags("bt2020nc", "bt2020-10", "bt2020"))
    check(patches(tmp_path / "a.mp4", len(COLOURS)), 0.8 * COLOURS)


def test_hdr_is_resized_before_it_is_converted_and_turned_as_others(tmp_path):
    path = hdr(tmp_path / "a.mp4", np.repeat(pq([[26], [26], [60]]), 3, 1), "smpte2084")
    frame = video.read_video(path, num_frames=1, height=8, width=24).frames[0]
    assert frame.dtype == np.uint8
    np.testing.assert_allclose(frame[4, [4, 12, 20], 0], [108.3, 108.3, 153.4], atol=2)


def test_the_tone_curve():
    light = np.geomspace(0.01, 1000, 200)
    toned = colour.tone_curve(light)
    assert (np.diff(toned) > 0).all()
    np.testing.assert_allclose(toned[light < 90], light[light < 90], rtol=1e-4)
    assert toned[-1] == pytest.approx(203, rel=1e-4)
    np.testing.assert_allclose(colour.light_to_pq(light), pq(light), rtol=1e-9)
    np.testing.assert_allclose(colour.pq_to_light(pq(light)), light, rtol=1e-9)


def test_what_is_coded_in_a_way_that_cannot_be_converted_is_refused(tmp_path):
    write(tmp_path / "a.mp4", RGB / 255, matrix="bt709", tags=tags("ictcp", "smpte2084", "bt2020"))
    with pytest.raises(InputError, match=r"a\.mp4 codes its colours by matrix 14 of H\.273.*re-encode it to BT\.709"):
        next(video.iterate_frames(tmp_path / "a.mp4"))
