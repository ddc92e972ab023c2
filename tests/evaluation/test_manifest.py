"""What a manifest says, and the one line of every mistake in it."""

import json
import shutil

import pytest

from reangle_jax import config
from reangle_jax.cameras.views import folder_name
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.evaluation import from_runs, manifest
from reangle_jax.evaluation.command import main
from tests.evaluation.made import moving, save, write
from tests.report_runs import made_settings
from tests.report_runs import write_run as write_report_run


@pytest.fixture
def folder(tmp_path):
    for name in ("input", "ours", "other"):
        save(tmp_path / f"{name}.npz", moving())
    return tmp_path


def clips(**view):
    outputs = {"outputs": {"ours": "ours.npz"}}
    return {"cup": {"input": "input.npz", "views": {"left": outputs | view}}}


def test_what_belongs_to_what(folder):
    outputs = {
        "ours": "ours.npz",
        "other": {"file": "other.npz", "frames": {"start": 2, "step": 3}},
        "listed": {"file": "other.npz", "frames": [0, 4, 4]},
    }
    content = clips(outputs=outputs, reference="input.npz")
    content["cup"]["views"]["up"] = {"outputs": {"ours": "ours.npz"}}
    found = manifest.read(write(folder, content))
    assert found.methods == ("ours", "other", "listed")
    assert found.items == (("cup", "left"), ("cup", "up"))
    ours, other, listed, up = found.outputs
    assert (ours.file, ours.input, ours.reference) == (folder / "ours.npz", folder / "input.npz", folder / "input.npz")
    assert (ours.moments(3), other.moments(3), listed.moments(3)) == ([0, 1, 2], [2, 5, 8], [0, 4, 4])
    assert (up.reference, up.cameras) == (None, None)
    assert found.lacking("ours") == []
    assert found.lacking("other") == [("cup", "up")]
    with pytest.raises(InputError, match=r"^frames lists 3, and .*other.npz has 2"):
        listed.moments(2)


def test_a_byte_order_mark_in_front_is_none_of_it(folder):
    path = write(folder, clips())
    plain = manifest.read(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert manifest.read(path) == plain


def test_the_example_is_one(tmp_path):
    content = json.loads(manifest.EXAMPLE)
    for name in ("cup/input.mp4", "cup/cameras.json", "cup/left.json", "cup/left_true.mp4", "frozen/cup.mp4",
                 "runs/cup/views/left_10/frames.npz", "gcd/cup_pred_s0/0000.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert len(manifest.read(write(tmp_path, content["clips"])).outputs) == 3


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({}, "clips: must be an object of one or more by name, not {}"),
        ({"a b": {}}, "clips: 'a b' is no plain name"),
        ({"cup": []}, r"clips.cup: must be an object with input, views, cameras, not \[\]"),
        ({"cup": {"views": {}}}, "clips.cup: 'input' is missing"),
        ({"cup": {"inptu": "input.npz"}}, "clips.cup: has no key 'inptu'; known are input, views, cameras"),
        (clips(reference="no.mp4"), "clips.cup.views.left.reference: no such file: .*no.mp4"),
        (clips(reference=3), "clips.cup.views.left.reference: must be a path, not 3"),
        (clips(reference="gs://b/a.mp4"), "reference: gs://b/a.mp4 is an address"),
        (clips(outputs={"ours": {"file": "ours.npz", "frames": [0, -1]}}), "ours.frames: -1 must be a whole number"),
        (clips(outputs={"ours": {"file": "ours.npz", "frames": []}}), "ours.frames: is empty"),
        (clips(outputs={"ours": {"file": "ours.npz", "frames": {"step": 0}}}), "step: 0 must be .* of at least 1"),
        (
            clips(outputs={"ours": {"file": "ours.npz", "frame": []}}),
            "ours: has no key 'frame'; known are file, frames",
        ),
        (clips(outputs={"../x": "ours.npz"}), "'../x' is no plain name"),
    ],
)
def test_mistakes(folder, content, line):
    with pytest.raises(InputError, match=line) as error:
        manifest.read(write(folder, content))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(folder / "manifest.json"))


def test_files_that_are_no_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    with pytest.raises(InputError, match="cannot be read"):
        manifest.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        manifest.read(path)
    path.write_text('{"clips": {"a": {"input": "\\ud800", "views": {}}}}')
    with pytest.raises(InputError, match=r"clips.a.input: '\\ud800' holds half a surrogate pair"):
        manifest.read(path)
    path.write_text('{"clips": {"a": 1, "a": 2}}')
    with pytest.raises(InputError, match="names 'a' twice"):
        manifest.read(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my clip"
    write_report_run(folder, made_settings())
    files.atomic_write_json(folder / "run.json", {"settings": config.flatten(made_settings())})
    return folder


def test_a_run_is_a_clip_with_two_methods(run, tmp_path):
    found = from_runs.manifest([("ours", run)], tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(found))
    read = manifest.read(path)
    assert read.methods == ("ours", "ours-untuned")
    assert read.items == (("my_clip", folder_name("left:8")), ("my_clip", folder_name("up:5")))
    first = read.outputs[0]
    assert first.file.resolve() == run.resolve() / "views/left_8/frames.npz"
    assert first.input_cameras.resolve() == run.resolve() / "input/cameras.json"
    twice = from_runs.manifest([("ours", run), ("again", run)], tmp_path)
    assert list(twice["clips"]) == ["my_clip"]
    assert len(twice["clips"]["my_clip"]["views"]["up_5"]["outputs"]) == 4


def test_the_command_that_writes_it(run, tmp_path, capsys):
    path = tmp_path / "sets/manifest.json"
    assert main(["manifest", f"mine={run}", str(run), "--out", str(path)]) == 0
    assert "clips: 1, views: 2" in capsys.readouterr().out
    read = manifest.read(path)
    assert read.methods == ("mine", "mine-untuned", "ours", "ours-untuned")
    assert all(output.file.is_file() and output.cameras.is_file() for output in read.outputs)


def test_runs_of_one_clip_whose_views_have_other_cameras(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.copy(other / "views/up_5/cameras.json", other / "views/left_8/cameras.json")
    with pytest.raises(InputError, match="its left_8 has other cameras"):
        from_runs.manifest([("ours", run), ("again", other)], tmp_path)


@pytest.mark.parametrize("name", ["-dash", "x" * 200, "t\u00e9", "a.b c"])
def test_whatever_a_runs_folder_is_called_the_manifest_can_be_read(run, tmp_path, name):
    shutil.copytree(run, tmp_path / name)
    content = from_runs.manifest([("ours", tmp_path / name)], tmp_path)
    assert len(manifest.read(write(tmp_path, content["clips"])).outputs) == 4


def test_mistakes_of_the_command_that_writes_it(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments, words in (
        ([f"my method={run}", "--out", str(tmp_path / "a.json")], f"my method={run}: 'my method' is no plain name"),
        ([f"={run}", "--out", str(tmp_path / "a.json")], "'' is no plain name"),
        ([str(run), "--out", str(tmp_path / "file/a.json")], "--out cannot be written (File exists: "),
    ):
        assert main(["manifest", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


def test_runs_that_cannot_be_one_manifest(run, tmp_path):
    with pytest.raises(InputError, match="ours has my_clip/left_8 already"):
        from_runs.manifest([("ours", run), ("ours", run)], tmp_path)
    with pytest.raises(InputError, match="is no run's folder"):
        from_runs.manifest([("ours", tmp_path)], tmp_path)
