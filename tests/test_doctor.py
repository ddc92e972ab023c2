"""`reangle doctor`: what is here, what is missing, and what it says to do."""

import importlib.metadata
import shutil

import jax
import pytest

from reangle_jax import compilation_cache, doctor, main, tiny


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, with the compilation cache in it, and packages as setup.py wants them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(compilation_cache, "folder", lambda: str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    asked = ["jax<0.12,>=0.10", "av>=17", 'torch==2.13.0; extra == "parity"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    return asked


def report(capsys, *arguments):
    """Exit code, and the lines by what they are about."""
    code = main.main(["reangle", "doctor", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def line(lines, start):
    (found,) = [line for line in lines if line[9:].startswith(start)]
    return found


def test_all_is_well(capsys):
    code, lines = report(capsys)
    assert code == 0
    assert all(line.startswith(("ok ", "- ")) for line in lines)
    assert f"{jax.device_count()} x cpu (cpu)" in line(lines, "devices: ")
    assert "GiB of this process" in line(lines, "memory: ")
    for package in ("jax", "jaxlib", "av"):
        assert f"{package} {importlib.metadata.version(package)}" in line(lines, "packages: ")
    assert "with libx264" in line(lines, "ffmpeg: ")
    small = line(lines, "small weights: ")
    parts = [path.parent.name for path in tiny.WEIGHTS.glob("*/config.json")]
    assert parts
    assert all(f"{part} (" in small for part in parts)
    model = line(lines, "cogvideox-5b-i2v: ")
    assert model.startswith("- ")
    assert "`python -m converters cogvideox-5b-i2v --source" in model


def test_packages_that_are_missing_or_of_another_version(here, capsys):
    here += ["jaxlib<0.2", "no-such-package>=3"]
    code, lines = report(capsys)
    assert code == 2
    assert line(lines, "jaxlib: ").endswith(": pip install 'jaxlib<0.2'")
    assert line(lines, "no-such-package: ") == (
        "MISSING  no-such-package: is not installed: pip install 'no-such-package>=3'"
    )
    assert not [line for line in lines if "torch" in line]


@pytest.mark.parametrize(
    ("version", "well"), [("0.10", True), ("0.9.9", False), ("0.12.0", False), ("0.11.1.dev3+x", True)]
)
def test_versions_at_the_ends_of_a_range(here, monkeypatch, capsys, version, well):
    here[:] = ["jax[cpu]>=0.10.0,<0.12"]
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "jax" else known(name))
    code, lines = report(capsys)
    assert code == (0 if well else 2)
    assert (f"ok       packages: jax {version}" in "\n".join(lines)) is well


def test_weights_in_given_folders(tmp_path, capsys):
    shutil.copytree(tiny.WEIGHTS / "vae", tmp_path / "mine/vae")
    (tmp_path / "empty").mkdir()
    code, lines = report(capsys, tmp_path / "mine")
    assert code == 0
    assert line(lines, "weights: ").endswith("mine: vae (VAEConfig), whole")
    weights = tmp_path / "mine/vae/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, lines = report(capsys, tmp_path / "mine", tmp_path / "empty")
    assert code == 2
    assert line(lines, "weights: ").startswith("MISSING")
    assert "is damaged" in line(lines, "weights: ")
    assert "none are there: give a folder that" in line(lines, f"weights in {tmp_path / 'empty'}")


def test_small_weights_that_were_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path)
    code, lines = report(capsys)
    assert code == 2
    assert "has no depth, transformer, " in line(lines, "small weights: ")


def test_disk(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    code, lines = report(capsys, "--workdir", tmp_path / "file/run")
    assert code == 2
    assert line(lines, "runs: ").endswith("file cannot be written: choose another --workdir")
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, lines = report(capsys, "--workdir", tmp_path / "new/run")
    assert code == 2
    assert line(lines, "runs: ").endswith(
        f"1 MiB free for {tmp_path / 'new/run'}: free some, or choose another --workdir"
    )
    monkeypatch.setattr(compilation_cache, "folder", lambda: None)
    assert "are not kept" in line(report(capsys)[1], "compiled programs: ")


def test_devices_that_cannot_be_used(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(doctor, "ACCELERATORS", [(str(tmp_path / "nvidia0"), "an NVIDIA GPU", "cuda")])
    code, lines = report(capsys)
    assert code == 2
    assert "MISSING  devices: JAX does not use an NVIDIA GPU, which is here: pip install -e '.[cuda]'" in lines

    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(doctor.measure, "devices", broken)
    assert "JAX finds none (Unable" in line(report(capsys)[1], "devices: ")


def test_what_it_cannot_read_is_one_line(capsys):
    assert main.main(["reangle", "doctor", "--wrong"]) == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --wrong")
