"""The scripts around a run: what each would do, and that preemption is picked up, by a gcloud that only pretends."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import local
from reangle_jax.errors import InputError

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = [LAUNCH / "tpu_vm.sh", LAUNCH / "slurm.sbatch", LAUNCH / "gke" / "run.sh"]
TPU = [
    *("--name", "a", "--zone", "z", "--type", "v5litepod-8", "--runtime", "v2-alpha-tpuv5-lite"),
    *("--bucket", "gs://b/runs/a", "--wheel", "dist/x.whl"),
]
GKE = [
    *("--name", "n", "--image", "i", "--bucket", "b", "--accelerator", "tpu-v5-lite-podslice"),
    *("--topology", "4x4", "--hosts", "2", "--chips", "8", "--slices", "3"),
]
CAPTION = 'a dog\'s "day" $HOME'


def run(script, *arguments, **options):
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    assert checker, "the extra [test] brings it"
    result = run(checker, script)
    assert result.stdout == ""


def _words(command):
    """A command as a shell reads it."""
    return run("bash", "-c", f"printf '%s\\0' {command}").stdout.split("\0")[:-1]


class TestTpuVm:
    def test_a_dry_run_says_every_command(self, tmp_path):
        more = ["--weights", "gs://b/w", "--input", "clip.mp4", "--spot", "--queued", "--fetch", "out", "--dry-run"]
        flags = ["--config", "configs/dynamic.py", f"--config.caption={CAPTION}"]
        result = run(SCRIPTS[0], *TPU, *more, "--", *flags)
        assert result.returncode == 0, result.stderr
        steps = [_words(line.removeprefix("+ ")) for line in result.stdout.splitlines()]
        assert steps[0][:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
        assert {"--spot", "v5litepod-8", "v2-alpha-tpuv5-lite"} <= set(steps[0])
        assert steps[-1][3:6] == ["queued-resources", "delete", "a"]
        for word in ("x.whl", "configs", "clip.mp4", "gs://b/w", "--worker=all", "gs://b/runs/a/LATEST out"):
            assert word in result.stdout
        # What a host does with it: the program gets the flags as they were given.
        start = next(step for step in steps if any("reangle_jax.main" in word for word in step))
        (tmp_path / "reangle/venv/bin").mkdir(parents=True)
        program = tmp_path / "reangle/venv/bin/python"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/given\nexit 7\n")
        program.chmod(0o755)
        assert run("bash", "-c", start[start.index("--command") + 1], cwd=tmp_path).returncode == 0
        assert (tmp_path / "given").read_text().splitlines() == ["-m", "reangle_jax.main", "--workdir", "run", *flags]
        assert (tmp_path / "reangle/code").read_text() == "7\n"

    @pytest.mark.parametrize(("code", "left"), [(0, 0), (2, 2)])
    def test_a_preempted_slice_is_made_again_and_a_users_error_is_not_tried_twice(self, tmp_path, code, left):
        """The connection breaks once, with the slice preempted."""
        fake = tmp_path / "gcloud"
        fake.write_text(
            f"""#!/usr/bin/env bash
echo "$*" >> {tmp_path}/calls
case "$*" in
  *describe*) cat {tmp_path}/state 2> /dev/null || exit 1 ;;
  *"tpu-vm create"*) echo READY > {tmp_path}/state ;;
  *"tpu-vm delete"*) rm -f {tmp_path}/state ;;
  *"tail -n"*) [[ ! -f {tmp_path}/broken ]] || exit {code}
    touch {tmp_path}/broken; echo PREEMPTED > {tmp_path}/state; exit 255 ;;
  *"storage cat"*) echo 1 ;;
esac
"""
        )
        fake.chmod(0o755)
        (tmp_path / "x.whl").touch()
        flags = [*TPU[:-1], str(tmp_path / "x.whl"), "--fetch", str(tmp_path / "out"), "--", "--config", "c.py"]
        result = run(SCRIPTS[0], *flags, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
        assert result.returncode == left, result.stderr
        calls = (tmp_path / "calls").read_text().splitlines()
        kinds = [next(k for k in ("create", "delete") if f"tpu-vm {k}" in call) for call in calls
                 if "tpu-vm create" in call or "tpu-vm delete" in call]  # fmt: skip
        assert kinds == ["create", "delete", "create", "delete"]
        assert sum("storage rsync --recursive gs://b/runs/a/1" in call for call in calls) == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([*TPU, "--wrong"], "unknown flag --wrong"),
            (TPU[2:], "--name is not set"),
            (TPU, "nothing follows --"),
            ([*TPU, "--", "--config", "c.py"], "--wheel: no such file: dist/x.whl"),
            ([*TPU, "--tries", "none", "--dry-run", "--", "x"], "--tries=none is not possible"),
            ([*TPU[:-3], "b/runs", "--dry-run", *TPU[-2:], "--", "x"], "it must be gs://"),
        ],
    )
    def test_mistakes_get_one_line(self, arguments, words, tmp_path):
        result = run(SCRIPTS[0], *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_slurm_says_what_it_would_run():
    found = run(SCRIPTS[1], "--dry-run", "--config", "c.py", f"--config.caption={CAPTION}")
    assert shlex.split(found.stdout) == [
        "+", "srun", "--kill-on-bad-exit=1", "--gpu-bind=none", "python", "-m", "reangle_jax.main", "--config", "c.py",
        f"--config.caption={CAPTION}",
    ]  # fmt: skip
    found = run(SCRIPTS[1], "--dry-run", "--many", "clips.txt", "--out", "runs", "--", "--config", "c.py")
    assert shlex.split(found.stdout)[1:] == [
        "srun", "--ntasks=1", "python", "-m", "reangle_jax.many", "--share", "auto", "clips.txt", "--out", "runs", "--",
        "--config", "c.py",
    ]  # fmt: skip


def test_slurm_queues_a_stopped_job_again(tmp_path):
    for name, text in (("srun", "exit 143"), ("scontrol", f'echo "$*" > {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    assert run(SCRIPTS[1], "--config", "c.py", env=environment).returncode == 143
    assert (tmp_path / "asked").read_text() == "requeue 17\n"


def test_the_image_holds_what_the_wheel_needs_the_configs_and_the_demos_clip():
    first, *rest = (LAUNCH / "gke/Dockerfile.dockerignore").read_text().splitlines()[1:]
    assert first == "*"  # no weights, no runs
    kept = {line.removeprefix("!") for line in rest if line.startswith("!")}
    assert all((LAUNCH.parent / name).exists() for name in kept)
    wheel = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "reangle_jax", "converters"}
    assert kept >= wheel | {"configs", "assets"}


def test_gke_fills_in_the_job():
    result = run(SCRIPTS[2], *GKE, "--dry-run", "--", "--config", "/configs/c.py", f"--config.caption={CAPTION}")
    job = yaml.safe_load(result.stdout)
    assert "{" not in result.stdout.replace("{operator: In, values: [2]}", "").replace("{name: REANGLE", "").replace(
        "{fieldRef: {fieldPath", ""
    )
    (slices,) = job["spec"]["replicatedJobs"]
    hosts = slices["template"]["spec"]
    assert (slices["replicas"], hosts["completions"], hosts["parallelism"]) == (3, 2, 2)
    pod = hosts["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "reangle_jax.main"]
    assert container["args"] == ["--config", "/configs/c.py", f"--config.caption={CAPTION}"]
    assert container["resources"]["limits"]["google.com/tpu"] == 8
    many = yaml.safe_load(run(SCRIPTS[2], *GKE, "--many", "--dry-run", "--", "clips.txt", "--out", "/data/runs").stdout)
    (container,) = many["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1] == "reangle_jax.many"
    assert container["args"][:2] == ["--share", "auto"]
    assert {one["name"]: one.get("value") for one in container["env"]} == {
        "REANGLE_SHARES": "2", "REANGLE_SLICES": "3", "REANGLE_SLICE": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--hosts", "two"], "--hosts=two is not possible"),
        (["--slices", "0"], "--slices=0 is not possible"),
        (["--chips", "4"], "--topology=4x4 has 16 chips, and --hosts=2 x --chips=4 are 8"),
        (["--topology", "4"], "--topology=4 is not possible"),
        (["--name", "My_run"], "--name=My_run is not possible"),
    ],
)
def test_gke_refuses_what_the_cluster_would(wrong, words):
    result = run(SCRIPTS[2], *GKE, *wrong, "--dry-run", "--", "--config", "/configs/c.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {words}")
    assert result.stderr.count("\n") == 1


class TestLocal:
    def test_a_dry_run_says_what_each_process_gets(self, capsys):
        assert (
            local.main(["local", "--processes", "2", "--devices-per-process", "4", "--dry-run", "--", "--config=c"])
            == 0
        )
        lines = capsys.readouterr().out.splitlines()
        assert [f"REANGLE_PROCESS='{index}'" in line for index, line in enumerate(lines)] == [True, True]
        assert all("--xla_force_host_platform_device_count=4" in line and line.endswith("--config=c") for line in lines)

    def test_a_gpu_each(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
        assert [own["CUDA_VISIBLE_DEVICES"] for own in local.environments(2, 0, 1)] == ["4", "5"]

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--processes", "0"], "argument --processes: 0 is no whole number from 1 to 64"),
            (["--processes", "1000"], "argument --processes: 1000 is no whole number from 1 to 64"),
            (
                ["--processes", "2", "--devices-per-process", "-1"],
                "argument --devices-per-process: -1 is no whole number from 1 on",
            ),
            (["--processes", "2", "--config=c"], "unknown flag --config=c: the run's own flags follow --"),
            (["--processes", "4"], "CUDA_VISIBLE_DEVICES=4,5,6 names 3 for --processes=4"),
        ],
    )
    def test_mistakes_are_said_before_anything_starts(self, monkeypatch, flags, words):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
        with pytest.raises(InputError, match=words):
            local.main(["local", *flags, "--dry-run", "--", "--config=c"])

    @pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((2, 2), 2), ((0, 3), 3), ((-15, 0), 143)])
    def test_one_exit_code(self, codes, expected):
        program = "import os, sys; c = int(sys.argv[1]); os.kill(os.getpid(), -c) if c < 0 else sys.exit(c)"
        commands = [[sys.executable, "-S", "-c", program, str(code)] for code in codes]
        script = f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local; "
        script += f"sys.exit(local.run({commands}, [{{}}] * 2))"
        ended = subprocess.run([sys.executable, "-c", script], check=False, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == expected
        assert ended.stderr == ("process 0 was ended by SIGTERM, and the others with it\n" if min(codes) < 0 else "")

    def test_the_first_to_fail_ends_the_others_and_gives_the_code(self):
        commands = [
            [sys.executable, "-S", "-c", words] for words in ("import time; time.sleep(100)", "import sys; sys.exit(3)")
        ]
        script = f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local; local.PATIENCE = 0.2; "
        script += f"sys.exit(local.run({commands}, [{{}}] * 2))"
        assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 3

    def test_a_signal_goes_to_all_and_what_others_say_has_their_number(self):
        program = r"import os, time; os.write(2, b'begun\n'); time.sleep(100)"  # in one piece: all write to one pipe
        command = [sys.executable, "-S", "-c", program]
        script = f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local; "
        script += f"sys.exit(local.run([{command}] * 3, [{{}}] * 3))"
        launcher = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        lines = {launcher.stderr.readline() for _ in range(3)}
        launcher.terminate()
        assert launcher.wait(timeout=60) == 143
        launcher.stderr.close()
        assert lines == {"begun\n", "[1] begun\n", "[2] begun\n"}
