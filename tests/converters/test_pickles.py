"""Pickles are read as arrays alone: nothing in them is called."""

import os
import pickle

import numpy as np
import pytest

from converters.sources.pickled import PickleSource
from reangle_jax.errors import InputError


class Hostile:
    """Asks to be made by a call of the system's."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def saved(folder, value, **options):
    path = folder / "weights.ckpt"
    path.write_bytes(pickle.dumps(value, **options))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nested_arrays_are_named_by_their_path(tmp_path, rng, protocol):
    kernel = rng.normal(size=(2, 3)).astype(np.float32)
    tree = {"params": {"a/b": {"kernel": kernel}}, "step": np.arange(3, dtype=np.int32)}
    source = PickleSource(saved(tmp_path, tree, protocol=protocol))
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == {
        "params/a/b/kernel": (2, 3),
        "step": (3,),
    }
    np.testing.assert_array_equal(source.read(source.tensors["params/a/b/kernel"]), kernel)


def test_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "made"
    with pytest.raises(InputError, match=r"no pickle of arrays alone .*mkdir.*do not use this file"):
        PickleSource(saved(tmp_path, {"a": Hostile(mark), "b": np.zeros(2, np.float32)}))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, 2]}, "a is a list"),
        ({"a": np.array([None])}, "a is a ndarray of object"),
        ({}, "holds no named arrays"),
        (3, "the whole is a int"),
    ],
)
def test_what_holds_no_arrays(tmp_path, value, words):
    with pytest.raises(InputError, match=words) as error:
        PickleSource(saved(tmp_path, value))
    assert "\n" not in str(error.value)


def test_damage(tmp_path):
    path = saved(tmp_path, {"a": np.zeros(100, np.float32)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="is no pickle of arrays alone"):
        PickleSource(path)
    with pytest.raises(InputError, match="cannot be read"):
        PickleSource(tmp_path / "missing.ckpt")
