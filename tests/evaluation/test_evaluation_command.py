"""The command from a manifest to tables: figures that are known, what is not done twice, every mistake a line."""

import csv
import errno
import json
import os
import signal

import cv2
import numpy as np
import pytest

from reangle_jax.data.video import write_video
from reangle_jax.evaluation import command, manifest, parts, rows
from reangle_jax.evaluation.command import main
from reangle_jax.scoring import networks
from reangle_jax.scoring.image import psnr, ssim
from reangle_jax.scoring.inputs import Notes
from tests.evaluation.made import H, T, W, moving, save, write


def run(capsys, *arguments):
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def table(folder):
    return json.loads((folder / "table.json").read_text())


@pytest.fixture
def scene(tmp_path):
    """A clip of 9 frames; `exact` shows every second one, `dark` the same 10 grey levels darker."""
    frames = moving(count=9)
    save(tmp_path / "input.npz", frames)
    save(tmp_path / "exact.npz", frames[::2])
    save(tmp_path / "dark.npz", frames[::2] - 10)
    output = {name: {"file": f"{name}.npz", "frames": {"step": 2}} for name in ("exact", "dark")}
    views = {name: {"reference": "input.npz", "outputs": dict(output)} for name in ("left", "up")}
    return tmp_path, json.loads(json.dumps({"cup": {"input": "input.npz", "views": views}}))


def test_means_and_differences(capsys, scene):
    folder, clips = scene
    clips |= {"pot": json.loads(json.dumps(clips["cup"]))}
    del clips["pot"]["views"]["up"]["outputs"]["exact"]
    path = write(folder, clips)
    code, out, err = run(capsys, path, "--out", folder / "out", "--against", "dark")
    assert code == 0
    frames = moving(count=9)[::2]
    found = table(folder / "out")
    dark, exact = (found["methods"][name]["figures"] for name in ("dark", "exact"))
    level = psnr(frames[0] - 10, frames[0])
    assert level == pytest.approx(20 * np.log10(25.5))
    assert dark["psnr"] == {"mean": pytest.approx(level), "items": 4}
    assert dark["ssim"]["mean"] == pytest.approx(np.mean([ssim(x - 10, x) for x in frames]))
    assert "psnr" not in exact  # infinite
    assert exact["ssim"]["mean"] == 1.0
    assert exact["ssim"]["items"] == exact["ssim"]["pairs"] == 3
    assert exact["ssim"]["clips"] == 2
    assert exact["ssim"]["difference"] == pytest.approx(1 - dark["ssim"]["mean"])
    assert exact["ssim"]["interval"] == pytest.approx([1 - dark["ssim"]["mean"]] * 2)
    change = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    assert exact["temporal_flickering"]["mean"] == pytest.approx(1 - change / 255)
    assert exact["temporal_flickering"]["difference"] == pytest.approx(0)
    assert found["methods"]["exact"]["lacking"] == ["pot/up"]
    assert any("exact lacks pot/up: its means are over 3 of 4 items" in note for note in found["notes"])
    assert any("equals" in note and "PSNR is infinite" in note for note in found["notes"])
    assert "note: no lpips: needs --weights with lpips/" in err
    assert found["figures"]["ssim"]["better"] == "higher"
    assert f"| dark | {dark['temporal_flickering']['mean']:.4f} (4) | {level:.4f} (4)" in out
    assert out == (folder / "out/table.md").read_text()
    lines = list(csv.DictReader((folder / "out/table.csv").read_text().splitlines()))
    assert [(line["clip"], line["view"], line["method"]) for line in lines][-1] == ("pot", "up", "dark")
    assert float(lines[1]["psnr"]) == pytest.approx(level)
    assert lines[0]["psnr"] == ""


def test_a_shifted_mapping_is_another_moment(capsys, scene):
    """The reference belongs to the input's frames: a frame later, nothing fits."""
    folder, clips = scene
    outputs = clips["cup"]["views"]["left"]["outputs"]
    outputs["listed"] = {"file": "exact.npz", "frames": [0, 2, 4, 6, 8]}
    outputs["shifted"] = {"file": "exact.npz", "frames": [1, 3, 5, 7, 8]}
    code, _, _ = run(capsys, write(folder, clips), "--out", folder / "out", "--metrics", "ssim")
    assert code == 0
    found = {name: entry["figures"]["ssim"]["mean"] for name, entry in table(folder / "out")["methods"].items()}
    assert found["listed"] == found["exact"] == 1.0
    assert found["shifted"] < 0.5


def test_references_take_the_outputs_size(capsys, tmp_path):
    """The input's middle, half as large, is what the output shows; the wide rest is said to be cropped."""
    frames = moving()
    wide = np.concatenate([frames[:, :, :8], frames, frames[:, :, :8]], axis=2)
    save(
        tmp_path / "input.npz",
        np.stack([cv2.resize(x, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for x in wide]),
    )
    for k, frame in enumerate(frames):
        (tmp_path / "out_frames").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"out_frames/{k}.png"), frame[..., ::-1])
    view = {"reference": "input.npz", "outputs": {"ours": "out_frames"}}
    path = write(tmp_path, {"cup": {"input": "input.npz", "views": {"left": view}}})
    code, _, err = run(capsys, path, "--out", tmp_path / "out", "--metrics", "ssim")
    assert code == 0
    assert table(tmp_path / "out")["methods"]["ours"]["figures"]["ssim"]["mean"] == pytest.approx(1.0, abs=1e-6)
    assert "enlarged" not in err
    assert f"{2 * (W + 16)}x{2 * H}: 25 % of it is cropped away for the {W}x{H} of" in err


def test_an_input_that_is_smaller_is_enlarged_and_said(capsys, tmp_path):
    frames = moving()
    save(tmp_path / "small.npz", frames[:, ::8, ::8])
    save(tmp_path / "ours.npz", frames)
    view = {"reference": "small.npz", "outputs": {"ours": "ours.npz"}}
    path = write(tmp_path, {"cup": {"input": "ours.npz", "views": {"left": view}}})
    code, _, err = run(capsys, path, "--out", tmp_path / "out", "--metrics", "psnr")
    assert code == 0
    assert f"small.npz is {W // 8}x{H // 8}: enlarged to the {W}x{H} of" in err
    assert table(tmp_path / "out")["methods"]["ours"]["figures"]["psnr"]["mean"] < 40


def test_what_is_done_is_kept_and_what_changed_is_redone(capsys, scene, monkeypatch):
    folder, clips = scene
    path, measured = write(folder, clips), []

    def counted(name, part):
        def measure(item, options):
            measured.append((item.output.view, item.output.method, name))
            return part.measure(item, options)

        return part._replace(measure=measure)

    monkeypatch.setattr(parts, "PARTS", {name: counted(name, part) for name, part in parts.PARTS.items()})
    monkeypatch.setattr(rows, "PARTS", parts.PARTS)
    arguments = (path, "--out", folder / "out", "--metrics", "ssim,temporal_flickering")

    def again():
        measured.clear()
        assert run(capsys, *arguments)[0] == 0
        return sorted(measured)

    assert len(again()) == 8
    whole = (folder / "out/table.json").read_text()
    assert again() == []
    assert (folder / "out/table.json").read_text() == whole
    (folder / "out/rows/cup/left/dark.json").write_text("{")
    (folder / "out/rows/cup/up/exact.json").unlink()
    assert again() == [(*at, name) for at in (("left", "dark"), ("up", "exact")) for name in ("flickering", "likeness")]
    clips["cup"]["views"]["up"]["outputs"]["dark"]["frames"] = {"start": 0, "step": 1}
    write(folder, clips)
    assert again() == [("up", "dark", "likeness")]  # flickering does not look at the input
    save(folder / "dark.npz", moving(count=9)[::2] - 20)
    assert {method for _, method, _ in again()} == {"dark"}
    assert len(measured) == 4


def test_killed_it_goes_on(capsys, scene, monkeypatch):
    folder, clips = scene
    path, asked = write(folder, clips), []
    flickering = parts.video.temporal_flickering

    def killed(frames):
        asked.append(len(frames))
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return flickering(frames)

    monkeypatch.setattr(parts.video, "temporal_flickering", killed)
    arguments = (path, "--out", folder / "out", "--metrics", "temporal_flickering")
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.splitlines()[-1]) == (143, "", "stopped by SIGTERM: the same command continues")
    assert len(list((folder / "out").rglob("rows/*/*/*.json"))) == 2
    assert not (folder / "out/table.json").exists()
    assert run(capsys, *arguments)[0] == 0
    assert len(asked) == 5


def refused(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if not line.startswith("note: ")]) == 1
    assert err.splitlines()[-1].startswith("error: ")
    return err.splitlines()[-1]


def test_small_networks_figures_are_told_as_theirs(scene):
    folder, clips = scene
    notes = Notes()
    options = parts.Options(weights=networks.resolve("tiny"))
    command._chosen(None, manifest.read(write(folder, clips)), options, notes)
    assert any("MEt3R is by this package's small networks" in line for line in notes.lines)


def test_mistakes_in_the_command(capsys, scene):
    folder, clips = scene
    path, out = write(folder, clips), ("--out", folder / "out")
    assert "MANIFEST is not set" in refused(capsys, *out)
    assert "--out is not set" in refused(capsys, path)
    assert "--against gcd: no such method; there are exact, dark" in refused(capsys, path, *out, "--against", "gcd")
    assert "--metrics colour: no such figure; there are" in refused(capsys, path, *out, "--metrics", "colour")
    assert "--metrics tsed_frames: needs cameras" in refused(capsys, path, *out, "--metrics", "tsed_frames")
    assert "--metrics met3r_input: needs --weights with dust3r/ and dino/" in refused(
        capsys, path, *out, "--metrics", "met3r_input", "--weights", folder, "--features", "dino"
    )
    assert "--weights: no such folder" in refused(capsys, path, *out, "--weights", folder / "no")
    for flag, value, words in (
        ("step", 0, "0 is no whole number from 1"),
        ("step", 10**30, f"{10**30} is no whole number from 1 to"),
        ("clip", 8, "8 is no whole number from 9 on"),
        ("size", 0, "0 is no whole number from 1 on"),  # also where nothing asks for it
        ("tm", 0, "0 is no whole number from 1 on"),
        ("te", "nan", "nan is no number above 0"),
        ("te", 0, "0 is no number above 0"),
    ):
        assert f"argument --{flag}: {words}" in refused(capsys, path, *out, f"--{flag}", value)
    assert "--out" in refused(capsys, path, "--out", path)
    assert not (folder / "out").exists()


def test_mistakes_in_the_files_are_found_before_any_work(capsys, scene):
    folder, clips = scene
    view = clips["cup"]["views"]["up"]["outputs"]
    out = ("--out", folder / "out")
    view["dark"]["frames"] = {"start": 1, "step": 2}
    line = refused(capsys, write(folder, clips), *out)
    assert "clips.cup.views.up.outputs.dark: frame 9 is asked for, and" in line
    assert "input.npz has 9 (0 to 8)" in line
    view["dark"] = {"file": "dark.npz", "frames": [0, 1]}
    assert "manifest.json: clips.cup.views.up.outputs.dark: frames lists 2, and" in refused(
        capsys, write(folder, clips), *out
    )
    (folder / "text.mp4").write_text("no video")
    view["dark"] = "text.mp4"
    assert "is not a video" in refused(capsys, write(folder, clips), *out)
    save(folder / "grey.npz", np.zeros((3, 8, 8), np.uint8))
    view["dark"] = "grey.npz"
    assert "has no frames, uint8 [T, H, W, 3] (they are uint8 [3, 8, 8])" in refused(capsys, write(folder, clips), *out)
    (folder / "grey.npz").write_bytes(b"PK")
    assert "has no frames" in refused(capsys, write(folder, clips), *out)
    view["dark"] = {"file": "dark.npz", "frames": {"step": 2}}
    one = {"K": [[50, 0, 24], [0, 50, 16], [0, 0, 1]], "camera_to_world": np.eye(4).tolist()}
    (folder / "four.json").write_text(json.dumps({"width": 48, "height": 32, "frames": [one] * 4}))
    clips["cup"]["cameras"] = "four.json"
    assert "four.json: holds 4 cameras, and that of frame 8 is asked for: give one for each" in refused(
        capsys, write(folder, clips), *out
    )
    assert not (folder / "out").exists()


def test_a_video_file_that_ends_early(capsys, tmp_path):
    write_video(tmp_path / "input.mp4", moving(count=3), 8.0)
    save(tmp_path / "ours.npz", moving(count=T))
    view = {"reference": "input.mp4", "outputs": {"ours": "ours.npz"}}
    path = write(tmp_path, {"cup": {"input": "input.mp4", "views": {"left": view}}})
    assert "frame 4 is asked for, and" in refused(capsys, path, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=r"has 3 \(0 to 2\)"):  # what the header does not say, decoding does
        _ = rows.Item(manifest.read(path).outputs[0], print).reference


def test_the_example_and_manifests_of_runs(capsys, tmp_path):
    code, out, _ = run(capsys, "--example")
    assert (code, json.loads(out)) == (0, json.loads(manifest.EXAMPLE))
    assert "is no run's folder" in refused(capsys, "manifest", tmp_path, "--out", tmp_path / "m.json")
    assert "is a folder" in refused(capsys, "manifest", tmp_path, "--out", tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(capsys, scene, monkeypatch):
    folder, clips = scene
    path, out = write(folder, clips), folder / "out"

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rows.files, "atomic_write_json", full)
        line = refused(capsys, path, "--out", out)
    assert line == "error: --out cannot be written (No space left on device): mend that, or choose another"
    (out / ".hashes.json.1.tmp").write_text("half")  # of a process that was killed
    assert run(capsys, path, "--out", out)[0] == 0
    assert not list(out.rglob("*.tmp"))


def test_what_may_not_be_read_is_no_fault_of_outs(capsys, scene, monkeypatch):
    folder, clips = scene
    path, plain = write(folder, clips), rows.Identities.content

    def closed(self, path, *rest):
        if path.name == "dark.npz":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(self, path, *rest)

    monkeypatch.setattr(rows.Identities, "content", closed)
    assert run(capsys, path, "--out", folder / "out")[2].splitlines()[-1] == (
        f"error: clips.cup.views.left.outputs.dark: {folder / 'dark.npz'} cannot be read (Permission denied)"
    )
    monkeypatch.setattr(type(path), "exists", lambda self: self.name != "dark.npz" or bool(closed(None, self)))
    line = refused(capsys, path, "--out", folder / "out")
    assert "outputs.dark.file: " in line
    assert "dark.npz cannot be read (Permission denied): check its folders' permissions" in line


def test_what_stands_where_a_file_is_to_be_is_told(capsys, scene):
    folder, clips = scene
    path, out = write(folder, clips), folder / "out"
    (out / "table.md").mkdir(parents=True)
    code, _, said = run(capsys, path, "--out", out)
    assert code == 2
    assert said.splitlines()[-1].startswith("error: --out cannot be written (Is a directory: ")
    assert "table.md): mend that" in said.splitlines()[-1]
    (folder / "other/rows").mkdir(parents=True)
    (folder / "other/rows/cup").touch()
    assert "--out cannot be written (" in refused(capsys, path, "--out", folder / "other")
