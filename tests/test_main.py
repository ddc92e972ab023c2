"""The command from outside: exit codes and the one line that each unusable input gets."""

import errno
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from reangle_jax import config, main
from reangle_jax.data import files, video
from reangle_jax.run import Stage, Unit

ROOT = Path(__file__).parent.parent
T, H, W = 5, 32, 48


def scene():
    """A textured wall with a moving nearer square: frames uint8 [T, H, W, 3] and metric depth [T, H, W]."""
    texture = np.random.default_rng(0).integers(60, 200, (H // 4, W // 4, 3)).astype(np.uint8)
    frames = np.stack([cv2.resize(texture, (W, H), interpolation=cv2.INTER_CUBIC)] * T)
    depth = np.full((T, H, W), 4.0, np.float32)
    for t in range(T):
        frames[t, 10:22, 8 + 3 * t : 20 + 3 * t] = (220, 60, 40)
        depth[t, 10:22, 8 + 3 * t : 20 + 3 * t] = 2.0
    return frames, depth


@pytest.fixture
def inputs(tmp_path):
    """A folder with a clip, its depth, and a config that fits both."""
    frames, depth = scene()
    video.write_video(tmp_path / "clip.mp4", frames, 8)
    np.save(tmp_path / "depth.npy", depth)
    (tmp_path / "config.py").write_text(
        "from reangle_jax.config import get_default\n"
        "def get_config():\n"
        "    c = get_default()\n"
        f"    c.video = {str(tmp_path / 'clip.mp4')!r}\n"
        f"    c.depth = {str(tmp_path / 'depth.npy')!r}\n"
        "    c.depth_kind = 'metric'\n"
        f"    c.num_frames, c.height, c.width = {T}, {H}, {W}\n"
        "    c.model = 'tiny'\n"
        "    c.views = ('left:10', 'in:0.1')\n"
        "    c.train_views = ('left:10',)\n"
        "    return c\n"
    )
    return tmp_path


def call(inputs, *arguments, workdir="run"):
    return main.main(["main", f"--config={inputs / 'config.py'}", f"--workdir={inputs / workdir}", *arguments])


def damage(path, change):
    np.save(path, change(np.load(path)))


def spoil_video(content):
    return lambda inputs: (inputs / "clip.mp4").write_bytes(content)


def spoil_depth(change):
    return lambda inputs: np.save(inputs / "depth.npy", change(np.load(inputs / "depth.npy")))


def nothing(inputs):
    del inputs


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (nothing, ["--config.video=none.mp4"], "config.video: no such file or folder: none.mp4"),
        (spoil_video(b"no video"), [], "clip.mp4 is not a video that FFmpeg can read"),
        (spoil_video(b""), [], "clip.mp4 is not a video that FFmpeg can read"),
        (nothing, ["--config.video=."], "holds no frames"),
        (nothing, ["--config.num_frames=9"], "has 5 frames, but config.start=0 and config.num_frames=9 need 9"),
        (nothing, ["--config.start=3"], "config.num_frames=1 would fit"),
        (nothing, ["--config.num_frames=6"], "config.num_frames=6 is not possible: it must be 1 + 4k, such as 5 or 9"),
        (nothing, ["--config.height=100"], "config.height=100 is not possible: it must be a multiple of 16"),
        (nothing, ["--config.views=lft:10"], "config.views: unknown motion 'lft'"),
        (nothing, ["--config.views=left:100"], "out of range"),
        (nothing, ["--config.train_views=left"], "config.train_views: "),
        (nothing, ["--config.views=cameras.json"], "config.views: cameras.json: no such file; give a camera file"),
        (nothing, ["--config.first_frames.guided=0.5:2"], "config.first_frames.guided='0.5:2' is not possible"),
        (nothing, ["--config.sead=1"], "config.sead is not a setting: did you mean config.seed?"),
        (nothing, ["--config.seed=one"], "config.seed='one' has the wrong type: it must be a whole number"),
        (nothing, ["--config.focal=wide"], "config.focal='wide' is not possible"),
        (nothing, ["--config.mesh=u:16"], "config.mesh='u:16' needs 16 devices and there are 8"),
        (nothing, ["--config.execution.attention=cudnn"], "needs a GPU, and this is a CPU: use auto"),
        (spoil_depth(lambda d: d[:, :-1]), [], "depth.npy: its shape is (5, 31, 48), the video's is (5, 32, 48)"),
        (spoil_depth(lambda d: d * np.nan), [], "depth.npy: holds NaN"),
        (spoil_depth(lambda d: d * 0 + 1), [], "depth.npy: is constant"),
        (spoil_depth(lambda d: -d), [], "depth.npy: holds negative values"),
        (spoil_depth(lambda d: d * np.float32(1e-30)), [], "to 1e+09, such as metres"),
        (spoil_depth(lambda d: d.astype(np.float64) * 1e300), [], "a typical value is 4e+300"),
        (nothing, ["--config.depth=none.npy"], "config.depth: no such file: none.npy"),
        (
            nothing,
            ["--config.depth=model", "--config.depth_weights=none"],
            "config.depth_weights: none/config.json is missing",
        ),
        (nothing, ["--wrong"], "Unknown command line flag 'wrong'"),
        (nothing, ["--workdir=/proc/none"], "--workdir /proc/none cannot be written"),
    ],
)
def test_unusable_input_gets_one_line_and_exit_code_2(inputs, spoil, arguments, words, capfd, monkeypatch):
    monkeypatch.chdir(inputs)
    (inputs / "empty").mkdir()
    if arguments == ["--config.video=."]:
        monkeypatch.chdir(inputs / "empty")
    spoil(inputs)
    assert call(inputs, "--preview", *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]


def test_weights_are_asked_for_before_any_work(inputs, capfd):
    """A folder that is missing; one that holds another model; one that is broken."""
    weights = inputs / "weights"
    assert call(inputs, f"--config.weights={weights}") == 2
    assert f"error: config.weights: {weights}/transformer/config.json is missing" in capfd.readouterr().err
    for part in ("transformer", "vae", "text_encoder"):
        (weights / part).mkdir(parents=True)
        (weights / part / "config.json").write_text('{"class": "VAEConfig"}')
    assert call(inputs, f"--config.weights={weights}") == 2
    assert "holds VAEConfig, not TransformerConfig" in capfd.readouterr().err
    (weights / "transformer" / "config.json").write_text('{"class": "Transf')
    assert call(inputs, f"--config.weights={weights}") == 2
    assert "transformer/config.json cannot be read" in capfd.readouterr().err
    assert not (inputs / "run").exists()


def test_help_lists_the_settings(capsys):
    assert main.main(["main", "--help"]) == 0
    assert "config.finetune.steps=400" in capsys.readouterr().out


class TestRealProcess:
    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "reangle_jax.main", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_bad_input_is_one_line_on_stderr(self, inputs):
        result = self.run(f"--config={inputs / 'config.py'}", f"--workdir={inputs / 'run'}", "--config.num_frames=6")
        assert result.returncode == 2
        assert result.stderr == "error: config.num_frames=6 is not possible: it must be 1 + 4k, such as 5 or 9\n"
        assert result.stdout == ""

    def test_its_last_line_says_that_it_is_done_and_where(self, inputs):
        run = inputs / "run"
        result = self.run(f"--config={inputs / 'config.py'}", f"--workdir={run}", "--preview")
        assert result.returncode == 0
        assert f" look at {run}/views/*/warp.mp4\n" in result.stderr
        assert re.search(rf" done in [\d.]+ s: {re.escape(str(run))}\n\Z", result.stderr)

    def test_no_flags(self):
        result = self.run()
        assert result.returncode == 2
        assert result.stderr.startswith("error: --config is not set")

    def test_a_mistake_is_answered_before_the_models_are_loaded(self, inputs):
        """A clip that is too short is found by the first stage, which needs none."""
        arguments = ["main", f"--config={inputs / 'config.py'}", f"--workdir={inputs / 'run'}", "--config.num_frames=9"]
        program = f"""if True:
            import sys
            from reangle_jax import chosen_models, main
            chosen_models.check = lambda settings, parts: print(*parts)
            assert main.main({arguments!r}) == 2
            heavy = ("orbax", "reangle_jax.stages.depth", "reangle_jax.stages.finetune", "reangle_jax.plan")
            print([name for name in heavy if name in sys.modules])
        """
        result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "need 9" in result.stderr
        assert result.stdout.split() == ["transformer", "vae", "text_encoder", "[]"]

    def test_a_closed_stderr_loses_words_and_nothing_else(self, inputs):
        command = f"{sys.executable} -m reangle_jax.main --config={inputs / 'config.py'} --workdir=run 2>&- "
        result = subprocess.run(
            command + "--config.num_frames=6", shell=True, cwd=ROOT, capture_output=True, check=False
        )
        assert (result.returncode, result.stdout) == (2, b"")

    @pytest.mark.parametrize(("unbuffered", "code"), [("", 0), ("1", 141)], ids=["at the end", "midway"])
    def test_a_reader_of_stdout_may_leave(self, unbuffered, code):
        program = "from reangle_jax import stopping; stopping.run(lambda: print('words') or 0)"
        command = f'(sleep 1; PYTHONUNBUFFERED={unbuffered} {sys.executable} -c "{program}"; echo $? >&2) | true'
        result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.stderr == f"{code}\n"

    def test_no_file_takes_the_place_of_a_closed_stream(self, tmp_path):
        """A library that writes to descriptor 2 would write into it."""
        program = f"""if True:
            import os, sys
            from reangle_jax import stopping
            def main():
                with open({str(tmp_path / "artefact")!r}, "w") as file:
                    print("words", file=sys.stderr, flush=True)
                    os.write(2, b"more words")
                    file.write(str(file.fileno() > 2))
                return 3
            stopping.run(main)
        """
        (tmp_path / "program.py").write_text(program)
        command = f"{sys.executable} {tmp_path / 'program.py'} 0<&- 1>&- 2>&-"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, shell=True, cwd=ROOT, env=environment, check=False).returncode == 3
        assert (tmp_path / "artefact").read_text() == "True"


@pytest.fixture
def one_stage(monkeypatch):
    """Puts one small stage in the place of all, doing what the test says."""

    def put(work):
        stage = Stage("work", 1, lambda settings: (Unit(outputs=("out.npz",)),), work)
        monkeypatch.setattr(main, "stages", lambda **_: [stage])

    return put


def test_full_disk_is_the_users_to_mend_and_leaves_nothing_half(inputs, one_stage, monkeypatch, capfd):
    def do(settings, folder, work):
        for unit in work:
            files.atomic_savez(folder / unit.outputs[0], x=np.zeros(3))

    one_stage(do)
    real = os.fsync

    def full(descriptor):
        if "out.npz" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert call(inputs, "--preview") == 2
    assert "error: no space left on the disk: free some, or choose another --workdir" in capfd.readouterr().err
    assert not list((inputs / "run").glob("*out.npz*"))
    monkeypatch.setattr(os, "fsync", real)
    assert call(inputs, "--preview") == 0
    assert (inputs / "run" / "out.npz").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="this system mounts for root alone")
def test_a_disk_that_is_really_full(inputs, capfd):
    small = inputs / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("this system lets its root mount nothing")
    try:
        assert call(inputs, "--preview", workdir="small/run") == 2
        assert "error: no space left on the disk" in capfd.readouterr().err
        whole = {path.name for path in (small / "run").rglob("*") if path.is_file()}
        assert not {name for name in whole if name.endswith(".tmp")}
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@pytest.mark.parametrize("wrap", ["cause", "message"])
def test_full_disk_is_found_under_a_librarys_error(inputs, one_stage, wrap, capfd):
    def do(settings, folder, work):
        if wrap == "message":
            raise ValueError("tensorstore: No space left on device [os_error_code='28']")
        try:
            raise OSError(errno.ENOSPC, "full", "lora/x")
        except OSError as error:
            raise RuntimeError("saving failed") from error

    one_stage(do)
    assert call(inputs, "--preview") == 2
    assert "no space left on the disk" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback(inputs, one_stage):
    def do(settings, folder, work):
        raise ZeroDivisionError

    one_stage(do)
    with pytest.raises(ZeroDivisionError):
        call(inputs, "--preview")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals(inputs, one_stage, name, code, capfd):
    import signal

    def do(settings, folder, work):
        os.kill(os.getpid(), getattr(signal, name))

    one_stage(do)
    assert call(inputs, "--preview") == code
    assert f"stopped by {name}: the same command continues" in capfd.readouterr().err


def test_the_command_that_goes_on():
    argv = ["main", "--config=my file.py", "--preview", "--workdir", "run"]
    assert main._again(argv) == "python -m reangle_jax.main '--config=my file.py' --workdir run"


def test_stages_in_order():
    names = ["ingest", "depth", "warp_views", "first_warps", "finetune", "first_frames", "generate", "evaluate"]
    names += ["scene", "report"]
    assert [stage.name for stage in main.stages()] == names
    assert [stage.name for stage in main.stages(preview=True)] == names[:3]


def test_a_path_that_leaves_the_scene_is_warned_of(inputs, capfd):
    assert call(inputs, "--preview", "--config.pivot_depth=1e9") == 0
    lines = capfd.readouterr().err.splitlines()
    assert sum("nothing is visible in" in line for line in lines) == 2
    assert any(f"left:10: nothing is visible in {T - 1} of {T} frames: lower its amount" in line for line in lines)


def test_plan_writes_nothing(inputs, capsys):
    assert call(inputs, "--plan") == 0
    out = capsys.readouterr().out
    assert "ingest" in out
    assert "not done yet" in out
    assert not (inputs / "run").exists()


def test_plan_names_all_that_is_missing(inputs, capsys):
    def missing(*flags):
        assert call(inputs, "--plan", *flags) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing: ")]
        return [line.split()[1].rstrip(":") for line in lines]

    size = ["config.num_frames=5"]  # the small model takes 17
    assert missing() == size
    flags = ["--config.video=none.mp4", "--config.mesh=data:99", "--config.depth=model", "--config.depth_weights=none"]
    assert missing(*flags) == ["config.video", "config.depth_weights", *size, "config.mesh='data:99'"]


def test_plan_tells_done_from_to_do(inputs, capsys):
    assert call(inputs, "--preview") == 0
    capsys.readouterr()
    assert call(inputs, "--plan", "--config.start=1") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "config.start changed from 0 to 1" in lines["ingest"]
    assert "took" in lines["ingest"]
    assert "not done yet" in lines["first_frames"]
    assert call(inputs, "--plan") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["ingest"].endswith("done")
    assert lines["to"].startswith("to do: about")


def test_too_little_memory_is_the_users_line_and_numbers_that_are_not_finite_end_with_1(inputs, one_stage, capfd):
    from reangle_jax.errors import NotFiniteError

    def large(settings, folder, work):
        np.empty(1 << 50, np.uint8)

    one_stage(large)
    assert call(inputs, "--preview") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: work: out of memory: 1024.0 TiB were asked for at once, of ")
    assert f"config.num_frames={T} (lower), config.height={H} (lower), config.width={W} (lower)" in line

    def broken(settings, folder, work):
        raise NotFiniteError("finetune: the loss of step 7 is nan: lower the rate")

    one_stage(broken)
    assert call(inputs, "--preview") == 1
    assert "error: finetune: the loss of step 7 is nan: lower the rate" in capfd.readouterr().err


def test_the_configs_can_be_used():
    usual = {"demo", "tiny_dynamic", "dynamic", "demo_static", "tiny_static", "static"}
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert names == usual | {"fast_look", "card_24gb", "long_path", "static_fast", "static_for_4d"}
    for name in sorted(names):
        path = ROOT / "configs" / f"{name}.py"
        text, module = path.read_text(), runpy.run_path(str(path))
        c = module["get_config"]()
        c.video = "clip.mp4"
        settings = config.parse(c)
        assert f"python -m reangle_jax.main --config configs/{name}.py" in text
        for word in ("Purpose", "Cost", "Expect"):
            assert word in module["__doc__"]
        assert settings.mode == ("static" if "static" in name else "dynamic")
        if name in usual:
            assert settings.views == (config.FOUR_VIEWS if "static" in name else config.SIX_MOTIONS)
