"""What lies in the place of a file that was not really downloaded is called by its name, whoever reads it."""

import pytest

from converters.sources import pickled, torch_file
from reangle_jax.data import depth_file, files, pictures, safetensors, video
from reangle_jax.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
READERS = {
    "clip.mp4": lambda path: video.read_video(path, num_frames=1, height=16, width=16),
    "1.png": pictures.read,
    "depth.npy": depth_file.load_depth,
    "lora.safetensors": safetensors.read_header,
    "weights.pth": torch_file.TorchSource,
    "i3d.ckpt": pickled.PickleSource,
}


@pytest.mark.parametrize(("content", "words"), [(POINTER, "git lfs pull"), (PAGE, "is a web page")])
@pytest.mark.parametrize("name", READERS)
def test_a_pointer_and_a_page_are_called_by_their_name(tmp_path, name, content, words, torch_is_there):
    (tmp_path / name).write_bytes(content)
    if name.endswith(".pth") and not torch_is_there:
        return  # that torch is missing comes first
    with pytest.raises(InputError, match=rf"{name}:? .*{words}") as caught:
        READERS[name](tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def torch_is_there():
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def test_other_files_are_not(tmp_path):
    (tmp_path / "a").write_bytes(b"version 2")
    assert files.stand_in(tmp_path / "a") is None
    assert files.stand_in(tmp_path / "missing") is None
    assert files.stand_in(tmp_path) is None
