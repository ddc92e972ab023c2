"""TensorFlow Datasets: `reangle_views`, an example a run, in array_record files that are read without TensorFlow.

Read back by ``tfds.builder_from_directory(DIR/reangle_views/1.0.0).as_data_source("train")``; the hosts of a pod take
their shares by ``split=tfds.split_for_jax_process("train")``.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.errors import InputError
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options

NAME, VERSION = "reangle_views", "1.0.0"


def write(root: Path, clips: Sequence[Clip], options: Options) -> None:
    """Writes reangle_views/1.0.0/: each run's synchronised frames, cameras, masks, depth and caption.

    Raises:
        InputError: the extra packages are not there, or the runs are of different shapes.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise InputError("--format tfds needs tensorflow-datasets: pip install 'reangle-jax[datasets]'") from None
    shapes = {(len(clip.tracks), *clip.size) for clip in clips}
    if len(shapes) > 1:
        raise InputError(f"--format tfds: the runs differ in views, frames or size ({shapes}): export like with like")
    views, count, height, width = shapes.pop()

    def tensor(*shape: int, dtype: Any) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

    features = {
        "frames": tensor(views, count, height, width, 3, dtype=np.uint8),
        "seen": tensor(views, count, height, width, dtype=np.bool_),
        "depth": tensor(views, count, height, width, dtype=np.float32),
        "intrinsics": tensor(views, count, 3, 3, dtype=np.float32),
        "camera_to_world": tensor(views, count, 4, 4, dtype=np.float32),
        "names": tfds.features.Sequence(tfds.features.Text(), length=views),
        "caption": tfds.features.Text(),
        "fps": tfds.features.Scalar(dtype=np.float32),
    }

    class Views(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The builder."""

        VERSION = tfds.core.Version(VERSION)
        name = NAME

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(map(_example, clips))

    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(None):  # it speaks of a download
        config = tfds.download.DownloadConfig(num_shards=min(options.shards, len(clips)))
        Views(data_dir=root, file_format="array_record").download_and_prepare(
            download_dir=unused, download_config=config
        )


def _example(clip: Clip) -> dict[str, Any]:
    tracks = clip.tracks
    return {
        "frames": np.stack([track.frames for track in tracks]),
        "seen": np.stack([track.seen for track in tracks]),
        "depth": np.stack([clip.depth(track) for track in tracks]).astype(np.float32),
        "intrinsics": np.stack([track.K for track in tracks]).astype(np.float32),
        "camera_to_world": np.stack([track.poses for track in tracks]).astype(np.float32),
        "names": [track.name for track in tracks],
        "caption": clip.caption,
        "fps": np.float32(clip.fps),
    }
