"""FVD of a set: which clips are compared, what is said of their number, what is kept on the disk."""

import json

import numpy as np
import pytest
from flax import nnx

from reangle_jax.checkpoints import save_model
from reangle_jax.errors import InputError
from reangle_jax.evaluation import parts
from reangle_jax.evaluation.command import main
from reangle_jax.models.i3d import I3D, I3DConfig
from reangle_jax.scoring import fvd
from reangle_jax.scoring.frechet import frechet_distance
from tests.evaluation.made import moving, save, write

FRAMES = {name: moving(seed, count=20) for seed, name in enumerate(("a", "b", "ours_a", "ours_b"))}


def described(clip):
    """Five numbers in I3D's place: means and deviations of the colours."""
    values = clip.reshape(-1, 3).astype(np.float32)
    return np.concatenate([values.mean(axis=0), values.std(axis=0)[:2]])


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Two clips, two views each; `exact` gives back the input. The features are made up; their number is counted."""
    asked = []
    (tmp_path / "weights" / fvd.FOLDER).mkdir(parents=True)
    monkeypatch.setattr(
        parts, "_fvd_network", lambda folder: lambda clip: (asked.append(clip.shape), described(clip))[1]
    )
    for name, frames in FRAMES.items():
        save(tmp_path / f"{name}.npz", frames)
    outputs = {name: {"ours": f"ours_{name}.npz", "exact": f"{name}.npz"} for name in "ab"}
    views = {name: {view: {"outputs": outputs[name]} for view in ("left", "up")} for name in "ab"}
    path = write(tmp_path, {name: {"input": f"{name}.npz", "views": views[name]} for name in "ab"})
    arguments = [str(path), "--out", str(tmp_path / "out"), "--weights", str(tmp_path / "weights"), "--metrics", "fvd"]
    return tmp_path, [*arguments, "--clip", "10"], asked


def test_weights_of_another_shape_are_one_line(tmp_path, unchecked):
    config = I3DConfig.tiny()
    save_model(tmp_path, I3D(config, rngs=nnx.Rngs(0)), config)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"mixed": content["mixed"][:2]}))
    with pytest.raises(InputError, match=r"^/.*mixed has 2 groups.*convert the weights again$"):
        fvd.load(tmp_path)


def figures(folder):
    found = json.loads((folder / "out/table.json").read_text())
    return {name: entry["figures"].get("fvd") for name, entry in found["methods"].items()}, found["notes"]


def test_clips_of_all_outputs_against_those_of_the_inputs_once(capsys, clips):
    folder, arguments, asked = clips
    assert main(arguments) == 0
    assert set(asked) == {(10, *FRAMES["a"].shape[1:])}
    found, notes = figures(folder)
    features = {name: np.stack([described(frames[:10]), described(frames[10:])]) for name, frames in FRAMES.items()}
    own = np.concatenate([features[name] for name in ("ours_a", "ours_a", "ours_b", "ours_b")])
    source = np.concatenate([features[name] for name in "ab"])
    assert found["ours"] == {"distance": pytest.approx(frechet_distance(own, source)), "outputs": 8, "inputs": 4}
    # The same clips, each twice: only the covariances' n - 1 differs.
    assert found["exact"]["distance"] < 0.1 * found["ours"]["distance"]
    assert any("fvd of ours is of 8 clips of outputs and 4 of inputs" in note for note in notes)
    assert f"| ours | {found['ours']['distance']:.1f} (8) |" in capsys.readouterr().out


def test_features_are_kept_and_made_again_where_they_are_damaged(clips):
    folder, arguments, asked = clips
    assert main(arguments) == 0
    first = figures(folder)[0]
    count = len(asked)
    assert main(arguments) == 0
    assert (len(asked), figures(folder)[0]) == (count, first)
    (folder / "out/rows/a/up/ours.fvd.npz").write_bytes(b"PK")
    assert main(arguments) == 0
    assert (len(asked), figures(folder)[0]) == (count + 4, first)
    assert main([*arguments[:-1], "12"]) == 0  # another clip length
    assert len(asked) == count + 4 + 16


def test_videos_that_are_too_short(clips, capsys):
    folder, arguments, _ = clips
    assert main([*arguments[:-1], "21"]) == 0
    found, notes = figures(folder)
    assert found == {"ours": None, "exact": None}
    assert any("has 20 frames, no clip of 21 for FVD: see --clip" in note for note in notes)
    assert any("ours has 0 clips of outputs and 0 of inputs" in note for note in notes)
    capsys.readouterr()
    assert main([*arguments[:-1], "8"]) == 2
    assert "argument --clip: 8 is no whole number from 9 on" in capsys.readouterr().err


def test_clips_one_behind_the_other():
    frames = moving(count=20)
    found = fvd.clips(frames, 9)
    assert len(found) == 2
    np.testing.assert_array_equal(np.concatenate(found), frames[:18])
    assert fvd.clips(frames[:8], 9) == []
