"""The ingest stage: what it writes, and what makes it read the video again."""

import logging

import cv2
import numpy as np
import pytest

from reangle_jax import config
from reangle_jax.data import files
from reangle_jax.run import Ledger, run_stage
from reangle_jax.stages import ingest
from tests.data.clips import clip, encode, which


@pytest.fixture
def read(tmp_path, caplog):
    """Runs the stage on a video; gives input/frames.npz, and whether anything was done."""

    def read(video, *, workdir=tmp_path / "run", **changes):
        values = config.get_default().to_dict() | {"num_frames": 5, "height": 64, "width": 96}
        settings = config.parse(values | {"video": str(video)} | changes)
        caplog.set_level(logging.INFO)
        with Ledger.opened(workdir, settings) as ledger:
            done = run_stage(ingest.STAGE, ledger)
            return files.load_npz(ledger.root / "input/frames.npz"), done

    return read


def test_frames_and_where_they_come_from(read, tmp_path):
    encode(tmp_path / "a.mp4", clip(12), "-vf", "scale=48:64,setsar=2", "-c:v", "libx264", "-qp", 4, rate=30)
    found, _ = read(tmp_path / "a.mp4", start=1, fps=15.0)
    assert which(found["frames"]) == [1, 3, 5, 7, 9] == found["source_indices"].tolist()
    assert found["source_size"].tolist() == [64, 48]
    assert found["pixel_aspect"] == 2
    assert found["fps"] == 15
    assert (tmp_path / "run/input/video.mp4").stat().st_size


def test_of_a_folder_only_the_pictures_count(read, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(clip(5)):
        cv2.imwrite(str(folder / f"{t}.png"), frame[..., ::-1])
    found, _ = read(folder, workdir=folder / "run")
    np.testing.assert_array_equal(found["frames"], clip(5))
    (folder / ".DS_Store").write_bytes(b"where the icons are")
    (folder / "._0.png").write_bytes(b"what a Mac leaves on other disks")
    (folder / "notes.txt").write_text("mine")
    assert not read(folder, workdir=folder / "run")[1]
    cv2.imwrite(str(folder / "4.png"), clip(5)[0])
    assert read(folder, workdir=folder / "run")[1]
    (folder / "3.png").rename(folder / "5.png")  # another order
    assert read(folder, workdir=folder / "run")[1]
