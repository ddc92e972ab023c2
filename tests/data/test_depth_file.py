import numpy as np
import pytest

from reangle_jax.data.depth_file import read_depth
from reangle_jax.errors import InputError

SHAPE = (5, 4, 6)


def good(rng):
    return rng.uniform(1, 2, SHAPE).astype(np.float64)


def test_npy_and_npz(tmp_path, rng):
    depth = good(rng)
    np.save(tmp_path / "a.npy", depth)
    np.savez(tmp_path / "one.npz", z=depth)
    np.savez(tmp_path / "named.npz", depth=depth, other=np.zeros(3))
    for name in ("a.npy", "one.npz", "named.npz"):
        read = read_depth(tmp_path / name, shape=SHAPE, kind="metric")
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, depth, rtol=1e-6)


def changed(depth, change):
    return change(depth)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("inverse", lambda d: d[:3], r"has the shape \(3, 4, 6\), but \(5, 4, 6\) is needed"),
        ("inverse", lambda d: d[..., None], "has the shape"),
        ("inverse", lambda d: np.where(np.arange(5)[:, None, None] == 3, np.nan, d), "24 values that are NaN.*frame 3"),
        ("inverse", lambda d: d * np.inf, "infinite"),
        ("inverse", lambda d: d * 0 + 3, r"is constant \(3\)"),
        ("metric", lambda d: d - 1.5, "distances above 0"),
        ("inverse", lambda d: -d, "check its sign"),
        ("inverse", lambda d: d.astype(str), "must hold numbers"),
    ],
)
def test_refusals_name_the_setting(tmp_path, rng, kind, change, words):
    np.save(tmp_path / "d.npy", change(good(rng)))
    with pytest.raises(InputError, match=words) as caught:
        read_depth(tmp_path / "d.npy", shape=SHAPE, kind=kind)
    assert str(caught.value).startswith("config.depth: ")
    assert "\n" not in str(caught.value)


def test_refuses_what_numpy_cannot_read(tmp_path, rng):
    np.savez_compressed(tmp_path / "whole.npz", depth=good(rng))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    (tmp_path / "text.npy").write_text("no numbers")
    np.savez(tmp_path / "many.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    for name in ("cut.npz", "text.npy", "many.npz", "pickle.npy", "none.npy"):
        with pytest.raises(InputError, match=rf"config\.depth: .*{name}"):
            read_depth(tmp_path / name, shape=SHAPE, kind="inverse")
