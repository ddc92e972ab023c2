import numpy as np
import pytest

from reangle_jax.geometry.masks import latent_mask, latent_share


@pytest.mark.parametrize(("frames", "together"), [(1, 4), (5, 4), (9, 4), (17, 4), (49, 4), (7, 2), (10, 3)])
def test_against_a_plain_loop(rng, frames, together):
    visible = rng.random((frames, 24, 42)) > 0.15
    got = np.asarray(latent_mask(visible, 5, 8, together))  # neither divides: torch's rule floor(i * in / out)
    assert got.dtype == np.float32
    groups = [[0]] + [list(range(first, first + together)) for first in range(1, frames, together)]
    for t, group in enumerate(groups):
        for y in range(5):
            for x in range(8):
                expected = all(visible[f, int(y * 24 / 5), int(x * 42 / 8)] for f in group)
                assert got[t, y, x] == expected
    assert got.shape == (1 + frames // together, 5, 8)


def test_published_size_takes_every_eighth_pixel():
    visible = np.ones((49, 480, 720), bool)
    visible[0, 8, 16] = visible[7, 16, 8] = visible[20, 9, 9] = False  # the last lies between the samples
    got = np.asarray(latent_mask(visible, 60, 90, 4))
    assert got.shape == (13, 60, 90)
    assert np.argwhere(got == 0).tolist() == [[0, 1, 2], [2, 2, 1]]


@pytest.mark.parametrize("frames", [0, 2, 4, 8, 48])
def test_wrong_frame_count(frames):
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        latent_mask(np.ones((frames, 8, 8), bool), 1, 1, 4)


@pytest.mark.parametrize(("frames", "together"), [(1, 4), (9, 4), (10, 3)])
def test_share_against_a_plain_loop(rng, frames, together):
    marked = rng.random((frames, 12, 20)) > 0.6
    got = np.asarray(latent_share(marked, 3, 5, together))
    assert got.dtype == np.float32
    starts = [0, *range(1, frames, together)]
    for t, (first, end) in enumerate(zip(starts, [*starts[1:], frames], strict=True)):
        for y in range(3):
            for x in range(5):
                box = marked[first:end, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                assert got[t, y, x] == pytest.approx(box.sum() / box.size, abs=1e-6)
    assert got.shape == (len(starts), 3, 5)


@pytest.mark.parametrize("shape", [(4, 8, 8), (5, 9, 8), (5, 8, 9)])
def test_share_refuses_what_latents_do_not_tile(shape):
    with pytest.raises(ValueError, match="are not latents of 2x2 by 4 frames"):
        latent_share(np.ones(shape, bool), 2, 2, 4)
