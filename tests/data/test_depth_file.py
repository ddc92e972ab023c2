import numpy as np
import pytest

from reangle_jax.data import video
from reangle_jax.data.depth_file import fit_depth, load_depth
from reangle_jax.errors import InputError


@pytest.fixture
def depth(rng):
    return rng.uniform(1, 2, (5, 4, 6))


def test_npy_and_npz(tmp_path, depth):
    np.save(tmp_path / "a.npy", depth)
    np.savez(tmp_path / "one.npz", z=depth)
    np.savez(tmp_path / "named.npz", depth=depth, other=np.zeros(3))
    for name in ("a.npy", "one.npz", "named.npz"):
        np.testing.assert_array_equal(load_depth(tmp_path / name), depth)


def test_refuses_what_numpy_cannot_read(tmp_path, depth):
    np.savez_compressed(tmp_path / "whole.npz", depth=depth)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    (tmp_path / "text.npy").write_text("no numbers")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "many.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    for name in ("cut.npz", "text.npy", "empty.npy", "many.npz", "pickle.npy", "none.npy"):
        with pytest.raises(InputError, match=name) as caught:
            load_depth(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_corrupted_archive_is_refused(tmp_path, depth):
    np.savez_compressed(tmp_path / "a.npz", depth=depth)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.npz"):
        load_depth(tmp_path / "a.npz")


def scene(count, height, width):
    """Depth that says where it is: a slope to the right and down, frame t a hundred t further."""
    y, x = np.mgrid[0:height, 0:width]
    slope = 1 + (x + 0.5) / width * 9 + (y + 0.5) / height * 3
    return (slope + 100 * np.arange(count)[:, None, None]).astype(np.float32)


INDICES = np.array([2, 4, 6])


@pytest.mark.parametrize(
    ("size", "source", "aspect"),
    [
        ((120, 160), (120, 160), 1),  # the source's own
        ((240, 320), (120, 160), 1),  # another size in its proportions
        ((60, 80), (120, 160), 1),  # smaller than what is wanted
        ((120, 80), (120, 80), 2),  # pixels that are not square, as stored
        ((120, 160), (120, 80), 2),  # and as shown
        ((126, 168), (120, 160), 1),  # rounded to multiples of 14
    ],
)
def test_depth_of_the_whole_clip_is_cut_and_resized_as_the_frames_are(size, source, aspect):
    height, width = 64, 96
    # The picture itself, handled as read_video does: what should lie where.
    shown = scene(1, *source)[0]
    picture = np.repeat(shown[..., None] * 10, 3, axis=-1).astype(np.uint16)
    expected = video.fit(picture, height, width, aspect)[..., 0] / 10
    found = fit_depth(scene(9, *size), (3, height, width), INDICES, source, aspect)
    assert found.shape == (3, height, width)
    # A pixel of the coarsest of them is 0.17 of the slope.
    np.testing.assert_allclose(found, expected + 100 * INDICES[:, None, None], atol=0.25)


def test_depth_of_the_frames_that_were_taken_stays_as_it_is(depth):
    same = fit_depth(depth, (5, 4, 6), np.arange(0, 10, 2), (40, 60))
    np.testing.assert_array_equal(same, depth)
    np.testing.assert_array_equal(fit_depth(depth, (2, 4, 6), np.array([1, 4]), (99, 60)), depth[[1, 4]])


@pytest.mark.parametrize("shape", [(9, 30, 40), (3, 61, 80)])
def test_zeros_stay_zeros_and_lend_nothing_to_their_neighbours(shape):
    depth = np.full(shape, 5.0)
    depth[:, : shape[1] // 2] = 0
    for found in (
        fit_depth(depth, (3, 64, 96), INDICES, (60, 80)),
        fit_depth(np.kron(depth, np.ones((1, 4, 4))), (3, 64, 96), INDICES, (60, 80)),
    ):
        assert set(np.unique(found)) == {0, 5}
        assert abs((found == 0).mean() - 0.5) < 0.03


@pytest.mark.parametrize("shape", [(6, 120, 160), (2, 64, 96), (9, 100, 160), (3, 96, 64)])
def test_depth_of_neither_length_nor_size_is_refused(shape):
    with pytest.raises(InputError, match=r"^its shape is .*\(3, 64, 96\).*frame 6 is needed.*120x160"):
        fit_depth(scene(*shape), (3, 64, 96), INDICES, (120, 160))


def test_of_a_long_file_only_what_is_needed_is_read(tmp_path):
    np.save(tmp_path / "a.npy", scene(9, 4, 6))
    loaded = load_depth(tmp_path / "a.npy")
    assert isinstance(loaded, np.memmap)
    found = fit_depth(loaded, (3, 4, 6), INDICES, (4, 6))
    assert not isinstance(found.base, np.memmap)
    np.testing.assert_array_equal(found, scene(9, 4, 6)[INDICES])
