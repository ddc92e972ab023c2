import numpy as np
import pytest

from reangle_jax.data.depth_file import load_depth
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
        with pytest.raises(InputError, match=rf"config\.depth: .*{name}") as caught:
            load_depth(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_corrupted_archive_is_refused(tmp_path, depth):
    np.savez_compressed(tmp_path / "a.npz", depth=depth)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.npz"):
        load_depth(tmp_path / "a.npz")
