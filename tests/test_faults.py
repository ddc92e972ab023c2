"""Too little memory and full disks, as the libraries say it, become the user's one line."""

import errno

import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax import faults
from reangle_jax.errors import InputError

HUGE = 1 << 50


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: raised(lambda: np.empty(HUGE, np.uint8)), "1024.0 TiB were asked for at once"),
        (lambda: raised(lambda: jnp.zeros(HUGE // 4, jnp.float32).block_until_ready()), "were asked for at once"),
        (lambda: MemoryError(), "more was asked for than is left"),
        (lambda: OSError(12, "Cannot allocate memory"), "more was asked for than is left"),
        (
            lambda: RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 65454971592 bytes."),
            "61.0 GiB were asked",
        ),
        (
            lambda: RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.50GiB."),
            "3.5 GiB were asked for",
        ),
        (
            lambda: RuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
                "Used 39.71G of 31.25G hbm. Exceeded hbm capacity by 8.46G."
            ),
            "39.7 GiB were asked for",
        ),
        (
            lambda: RuntimeError(
                "OpenCV(5.0) (-4:Insufficient memory) Failed to allocate 2147483648 bytes in function"
            ),
            "2.0 GiB were asked for",
        ),
    ],
)
def test_libraries_words_for_too_little_memory(error, words, monkeypatch):
    monkeypatch.setattr(faults.measure, "device_limit_bytes", lambda: 9 << 30)
    found = faults.out_of_memory(error())
    assert found is not None
    assert words in found
    assert found.endswith(", of 9.0 GiB in all")


def test_other_errors_are_not_taken_for_it():
    assert faults.out_of_memory(ValueError("allocating a seat")) is None
    assert faults.disk_full(MemoryError()) is None


def test_a_librarys_wrapping_does_not_hide_it():
    def wrapped():
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("reading failed") from error

    assert faults.out_of_memory(raised(wrapped)) is not None


def test_the_line_names_the_settings_that_help():
    settings = {"finetune.batch_size": 3000, "num_frames": 17, "vae_tiles": "auto", "seed": 0}
    with (
        pytest.raises(InputError) as caught,
        faults.memory_explained("finetune", settings, ("num_frames", "finetune.batch_size", "base_dtype")),
    ):
        raise MemoryError
    line = str(caught.value)
    assert line.startswith("finetune: out of memory: more was asked for than is left")
    assert line.endswith("what helps: config.finetune.batch_size=3000 (lower), config.num_frames=17 (lower)")
    settings = {"finetune.batch_size": 1, "base_dtype": "int8", "first_frames.scale": 1.0}
    assert faults.smaller(settings, [*settings, "width"]) == "config.first_frames.scale=1.0 (lower)"
    with pytest.raises(KeyError), faults.memory_explained("finetune", settings, ()):
        raise KeyError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "rows/a.json"), "No space left on device: rows/a.json"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),  # as write(2) of an open file
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.EISDIR, "Is a directory", ".a.1.tmp", None, "table.md"), "Is a directory: table.md"),
        (OSError(errno.ENOENT, "No such file or directory", "a"), None),
        (ValueError("No space left on device"), None),
    ],
)
def test_why_a_file_cannot_be_written(error, words):
    assert faults.cannot_write(error) == words
