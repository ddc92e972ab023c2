"""What README and docs/ name exists: imports, settings, files."""

import importlib
import re
from pathlib import Path

import pytest

from reangle_jax import config
from reangle_jax.config import reading

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*DOCUMENTS, *sorted((ROOT / "configs").glob("*.py"))]


def named(path):
    return str(path.relative_to(ROOT))


def test_what_readme_imports_is_there():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    lines = re.findall(r"^from (\S+) import ([\w, ]+?)\s*(?:#.*)?$", block, re.MULTILINE)
    assert len(lines) == len(block.strip().splitlines())
    for module, names in lines:
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}: {name}"


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_settings_that_are_named_exist(path):
    keys = [key for key, _ in reading.leaves()]
    for key, text in re.findall(r"--config\.([a-z_.]+[a-z_])(?:=(\S*?))?[`\s\\\"]", path.read_text(encoding="utf-8")):
        assert key in keys, f"{path.name} names config.{key}"
        if text and not re.match(r"[A-Z({\"']", text) and config.type_of(key) is not str:
            config.from_text(key, text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_files_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:docs|tests|benchmarks|configs|reangle_jax|converters|training)/[\w./]*)`", text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_commands_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"--config (configs/\S+\.py)", text):
        assert (ROOT / name).is_file(), f"{path.name} names {name}"
    for name in re.findall(r"python -m ((?:reangle_jax|converters|training|benchmarks)[\w.]*\w)", text):
        module = ROOT.joinpath(*name.split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), f"{path.name} names {name}"


def test_readme_is_short_shows_a_picture_first_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert text.split("\n\n")[1].startswith("![")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in text


def test_the_house_has_the_rooms_that_its_plan_names():
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    inside = plan[plan.index("\nreangle_jax/\n") :].split("```")[0]
    planned = re.findall(r"^  ([\w]+(?:\.py|/))", inside, re.MULTILINE)
    there = [p for p in (ROOT / "reangle_jax").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert sorted(planned) == sorted(f"{p.name}/" if p.is_dir() else p.name for p in there if p.name != "__init__.py")
