"""The arrows of docs/architecture.md: which room imports which, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "reangle_jax"
# What every room may use: words for errors and for arrays' types.
BASE = {"errors", "arrays"}
# Each room, and which it may use beside BASE: from the bottom up, so that an arrow points to a line above.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "arrays": set(),
    "tiny": set(),
    "needs": set(),
    "nn": set(),
    "models": {"nn"},
    "geometry": {"nn"},
    "diffusion": set(),
    "data": {"nn"},
    "heartbeat": set(),
    "distributed": {"data", "heartbeat"},
    "randomness": set(),
    "stopping": set(),
    "measure": set(),
    "faults": {"measure"},
    "commands": {"faults", "stopping"},
    "compilation_cache": set(),
    "many": {"commands", "data", "measure", "stopping"},
    "progress": {"measure"},
    "mesh": {"needs", "nn"},
    "checkpoints": {"data", "mesh", "nn"},
    "prompts": {"checkpoints", "mesh", "models", "nn"},
    "backbones": {"checkpoints", "data", "diffusion", "mesh", "models", "needs", "nn", "prompts"},
    "painters": {"checkpoints", "diffusion", "mesh", "models", "needs", "nn", "prompts"},
    "cameras": {"commands", "data", "faults", "geometry"},
    "config": {"backbones", "cameras", "data", "geometry", "mesh", "nn", "painters"},
    "command_line": {"config", "data"},
    "saved_states": {"mesh"},
    "learning": {"mesh", "progress", "saved_states", "stopping"},
    "chosen_models": {"backbones", "config", "data", "diffusion", "measure", "mesh", "needs", "nn", "painters", "tiny"},
    "run": {
        "cameras", "compilation_cache", "config", "data", "distributed", "faults", "geometry", "measure", "stopping",
    },
    "export": {"cameras", "commands", "data", "faults", "geometry"},
    "scoring": {
        "checkpoints", "commands", "compilation_cache", "data", "faults", "geometry", "models", "nn", "tiny",
    },
    "evaluation": {
        "cameras", "commands", "compilation_cache", "data", "export", "faults", "scoring",
    },
    "plan": {
        "checkpoints", "chosen_models", "config", "diffusion", "faults", "measure", "mesh", "models", "needs", "run",
        "scoring",
    },
    "stages": {
        "backbones", "cameras", "checkpoints", "chosen_models", "config", "data", "diffusion", "export", "geometry",
        "learning", "measure", "mesh", "models", "painters", "plan", "progress", "randomness", "run", "scoring", "tiny",
    },
    "doctor": {"backbones", "commands", "compilation_cache", "data", "measure", "painters", "stopping", "tiny"},
    "main": {
        "chosen_models", "command_line", "commands", "compilation_cache", "config", "distributed", "doctor", "faults",
        "measure", "mesh", "nn", "plan", "run", "scoring", "stages", "stopping",
    },
}  # fmt: skip
# Rooms whose own rooms know nothing of each other.
APART = ("models", "stages", "backbones", "painters")
# Beside the package: what each may use of it, and of the others.
BESIDE = {
    "converters": {*BASE, "backbones", "checkpoints", "commands", "data", "faults", "models", "nn", "stopping"},
    "training": {*ARROWS},
}


def imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written from the package's name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(folder: Path, package: str = PACKAGE) -> Iterator[tuple[Path, list[str]]]:
    """Every file under a folder or itself, with the parts of each name that it imports from a package."""
    for file in [folder] if folder.is_file() else sorted(folder.rglob("*.py")):
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1:
                yield file.relative_to(ROOT), parts[1:]


def path_of(room: str) -> Path:
    folder = ROOT / PACKAGE / room
    return folder if folder.is_dir() else folder.with_suffix(".py")


def test_every_room_is_in_the_list_and_in_the_plan_of_the_house():
    found = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert found == ARROWS.keys()
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    # The plan's lines: two spaces, the room's name, what it is for.
    lines = [line.split()[0] for line in plan.splitlines() if line.startswith("  ") and line[2:3].strip()]
    assert found - BASE <= {line.removesuffix("/").removesuffix(".py") for line in lines}


def test_arrows_point_down():
    above: set[str] = set()
    for room, rooms in ARROWS.items():
        assert rooms <= above, f"{room} -> {rooms - above}: list what is used first"
        above.add(room)


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_uses_what_it_may(room):
    allowed = ARROWS[room] | BASE | {room}
    found = list(used(path_of(room)))
    wrong = [f"{file} imports {'.'.join(parts)}" for file, parts in found if parts[0] not in allowed]
    # The package itself holds its version alone.
    assert [line for line in wrong if not line.endswith("__version__")] == []
    assert ARROWS[room] <= {parts[0] for _, parts in found}, "an arrow that no import needs"


@pytest.mark.parametrize("room", APART)
def test_rooms_of_one_layer_know_nothing_of_each_other(room):
    folder, wrong = path_of(room), []
    shared = {"__init__", "registry", "interface"}  # what they have in common
    own = {path.stem for path in folder.iterdir()} - shared
    for name in own:
        for file, parts in used(next(path for path in folder.iterdir() if path.stem == name)):
            if parts[0] == room and len(parts) > 1 and parts[1] in own - {name}:
                wrong.append(f"{file} imports {'.'.join(parts)}")
    assert wrong == []


@pytest.mark.parametrize("beside", BESIDE)
def test_what_lies_beside_the_package(beside):
    wrong = [
        f"{file} imports {'.'.join(parts)}" for file, parts in used(ROOT / beside) if parts[0] not in BESIDE[beside]
    ]
    assert wrong == []
    for other in (PACKAGE, *BESIDE):
        if other != beside:
            assert list(used(ROOT / other, beside)) == []


@pytest.mark.parametrize("folder", [PACKAGE, "training"])
def test_nothing_imports_torch(folder):
    wrong = [file for file in (ROOT / folder).rglob("*.py") for name in imports(file) if name.split(".")[0] == "torch"]
    assert wrong == []
