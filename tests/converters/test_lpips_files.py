"""LPIPS's files: the published names and shapes find their places, two files are read as one, mistakes are named."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from converters import check, command, registry
from converters.sources.folder import open_part
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.lpips import LpipsConfig
from reangle_jax.scoring import perceptual
from tests.conversion import convert, revert
from tests.manifests import table_faults
from tests.networks import fill_randomly
from tests.published import write_sparse

FILES = {"alex": "alexnet-7be5be79", "vgg": "vgg16-397923af", "squeeze": "squeezenet1_1-b8a52dc0"}
# As its documentation counts them.
PARAMETERS = {"alex": 61_100_840, "vgg": 138_357_544, "squeeze": 1_235_496}
# Shapes of lin0.model.1.weight and so on, read from the files of PyPI's lpips 0.1.4.
HEADS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
# torchvision's layers with weights: name, channels out and in, window.
_VGG = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256), *[(512, 512)] * 5]
_VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_FIRES = {
    3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192), 10: (384, 48, 192),
    11: (384, 64, 256), 12: (512, 64, 256),
}  # fmt: skip
LAYERS = {
    "alex": [
        ("features.0", 64, 3, 11), ("features.3", 192, 64, 5), ("features.6", 384, 192, 3), ("features.8", 256, 384, 3),
        ("features.10", 256, 256, 3), ("classifier.1", 4096, 9216), ("classifier.4", 4096, 4096),
        ("classifier.6", 1000, 4096),
    ],
    "vgg": [
        *((f"features.{k}", *widths, 3) for k, widths in zip(_VGG_PLACES, _VGG, strict=True)),
        ("classifier.0", 4096, 25088), ("classifier.3", 4096, 4096), ("classifier.6", 1000, 4096),
    ],
    "squeeze": [
        ("features.0", 64, 3, 3),
        *(
            layer
            for k, (width, squeezed, expanded) in _FIRES.items()
            for layer in (
                (f"features.{k}.squeeze", squeezed, width, 1), (f"features.{k}.expand1x1", expanded, squeezed, 1),
                (f"features.{k}.expand3x3", expanded, squeezed, 3),
            )
        ),
        ("classifier.1", 1000, 512, 1),
    ],
}  # fmt: skip


def torchvision_tensors(backbone):
    tensors = {}
    for name, out, into, *window in LAYERS[backbone]:
        tensors[f"{name}.weight"] = {"shape": [out, into, *window, *window], "dtype": "float32"}
        tensors[f"{name}.bias"] = {"shape": [out], "dtype": "float32"}
    return tensors


def head_tensors(backbone):
    return {
        f"lin{k}.model.1.weight": {"shape": [1, width, 1, 1], "dtype": "float32"}
        for k, width in enumerate(HEADS[backbone])
    }


def whole_tensors(backbone):
    """The names of the module's state_dict: slices of torchvision's layers end where a tap is."""
    ends = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}[backbone]
    tensors = head_tensors(backbone)
    tensors |= {f"lins.{name.removeprefix('lin')}": entry for name, entry in tensors.items()}
    tensors |= {f"scaling_layer.{x}": {"shape": [1, 3, 1, 1], "dtype": "float32"} for x in ("shift", "scale")}
    for name, entry in torchvision_tensors(backbone).items():
        if name.startswith("features."):
            rest = name.removeprefix("features.")
            place = next(n for n, end in enumerate(ends, 1) if int(rest.partition(".")[0]) <= end)
            tensors[f"net.slice{place}.{rest}"] = entry
    return tensors


def write_pair(folder, backbone):
    """Both files as published, of which only the headers take room."""
    write_sparse(folder / f"{FILES[backbone]}.safetensors", torchvision_tensors(backbone))
    write_sparse(folder / f"{backbone}.safetensors", head_tensors(backbone))
    return folder


def part(backbone):
    return registry.find(f"lpips-{backbone}")[1][0]


@pytest.mark.parametrize("backbone", FILES)
def test_published_names_fit(backbone):
    model = part(backbone)
    abstracted = abstract(lambda: model.network(model.config, rngs=nnx.Rngs(0)))
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(abstracted).items()}
    features = torchvision_tensors(backbone)
    assert sum(np.prod(entry["shape"], dtype=int) for entry in features.values()) == PARAMETERS[backbone]
    both, whole = (layout.table(model.config) for layout in model.layouts)
    assert table_faults({**features, **head_tensors(backbone)}, both, targets) == []
    assert set(features) & set(both.ignored) == {name for name in features if name.startswith("classifier.")}
    assert table_faults(whole_tensors(backbone), whole, targets) == []


@pytest.mark.parametrize("backbone", FILES)
def test_two_files_are_one_source(backbone, tmp_path, capsys):
    write_pair(tmp_path, backbone)
    assert command.main([f"lpips-{backbone}", "--source", str(tmp_path), "--check"]) == 0
    count = len(torchvision_tensors(backbone)) + len(HEADS[backbone])
    assert f"lpips-{backbone}/lpips: {count} tensors" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [False, True])
def test_converted_and_loaded(whole, tmp_path, rng):
    """From two files, and from the module's own state_dict in one; what the rules put where is what is loaded."""
    model = part("squeeze")
    network = abstract(lambda: model.network(model.config, rngs=nnx.Rngs(0)))
    fill_randomly(network)
    wanted = {path: np.asarray(variable[...]) for path, variable in parameter_paths(network).items()}
    tensors = revert(wanted, model.layouts[whole].table(model.config))
    source = tmp_path / "in"
    source.mkdir()
    if whole:
        tensors |= {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}
        save_file(tensors, source / "any-name.safetensors")
    else:
        tensors |= {"classifier.1.bias": np.zeros(1000, np.float32)}
        heads = {name: tensors.pop(name) for name in list(tensors) if name.startswith("lin")}
        save_file(tensors, source / "squeezenet1_1.safetensors")
        save_file(heads, source / "squeeze.safetensors")
    assert command.main(["lpips-squeeze", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out/lpips/manifest.json").read_text())
    assert len(manifest["sources"]) == (1 if whole else 2)
    assert len(manifest["unused"]) == 1
    images, references = (rng.integers(0, 256, (1, 20, 24, 3), np.uint8) for _ in range(2))
    got = perceptual.load(tmp_path / "out/lpips")(images, references)
    np.testing.assert_array_equal(got, perceptual.measure(network)(images, references))


def error(capsys, *arguments):
    assert command.main(arguments) == 2
    return capsys.readouterr().err


def test_what_is_missing_or_too_much_is_named(tmp_path, capsys):
    folder = write_pair(tmp_path / "a", "alex")
    arguments = "lpips-alex", "--check", "--source", str(folder)
    (folder / "alex.safetensors").rename(folder / "heads.bak")
    assert "holds alexnet-7be5be79.safetensors, but no alex.pth to go with it" in error(capsys, *arguments)
    only = error(capsys, *arguments[:-1], str(folder / "alexnet-7be5be79.safetensors"))
    assert "lin0.model.1.weight: missing" in only
    (folder / "heads.bak").rename(folder / "alex.safetensors")
    write_sparse(folder / "alexnet-owt.safetensors", torchvision_tensors("alex"))
    assert "holds alexnet-7be5be79.safetensors, alexnet-owt.safetensors; leave one" in error(capsys, *arguments)
    (folder / "alexnet-owt.safetensors").unlink()
    write_sparse(folder / "alex.safetensors", {**head_tensors("alex"), **torchvision_tensors("alex")})
    assert "is in alexnet-7be5be79.safetensors too" in error(capsys, *arguments)


def test_another_backbones_files_are_told_apart(tmp_path, capsys):
    for name, tensors in (("squeezenet1_1", torchvision_tensors("alex")), ("squeeze", head_tensors("alex"))):
        write_sparse(tmp_path / f"{name}.safetensors", tensors)
    message = error(capsys, "lpips-squeeze", "--check", "--source", str(tmp_path))
    assert "this looks like lpips-alex, not lpips-squeeze" in message


def test_the_list_says_what_the_source_is(capsys):
    assert command.main(["--list"]) == 0
    assert "lpips-vgg: --source is a folder with torchvision's vgg16-*.pth" in capsys.readouterr().out
    assert "here a folder with torchvision's alexnet-*.pth" in error(capsys, "lpips-alex")


def test_every_tensor_knows_its_file(tmp_path):
    plan = check.plan("lpips-vgg", part("vgg"), open_part(write_pair(tmp_path, "vgg"), part("vgg"), alone=True))
    assert len(plan.moves) == 2 * 13 + 5
    assert len(plan.ignored) == 6
    assert {move.tensor.file.name for move in plan.moves} == {"vgg16-397923af.safetensors", "vgg.safetensors"}


def test_rules_are_their_own_inverse(rng):
    model = part("alex")
    config = LpipsConfig(divisor=16)
    network = abstract(lambda: model.network(config, rngs=nnx.Rngs(0)))
    fill_randomly(network)
    wanted = {path: np.asarray(variable[...]) for path, variable in parameter_paths(network).items()}
    for layout in model.layouts:
        table = layout.table(config)
        got = convert(revert(wanted, table), table, {path: x.shape for path, x in wanted.items()})
        for path, x in wanted.items():
            np.testing.assert_array_equal(got[path], x, err_msg=path)
