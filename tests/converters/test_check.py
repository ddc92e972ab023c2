"""Every published layout, at full size, by its header: the whole file fits; any one tensor off is named."""

import json

import numpy as np
import pytest

from converters import check, registry
from converters.sources.folder import open_part
from reangle_jax.errors import InputError
from tests.manifests import manifest
from tests.published import CODES, write_sparse

MANIFESTS = {
    "cogvideox-5b-i2v/transformer": "cogvideox-5b-i2v.transformer",
    "cogvideox-5b-i2v/vae": "cogvideox-5b-i2v.vae",
    "cogvideox-5b-i2v/text_encoder": "t5-v1_1-xxl.encoder",
    "cogvideox1.5-5b-i2v/transformer": "cogvideox1.5-5b-i2v.transformer",
    "cogvideox-5b/transformer": "cogvideox-5b.transformer",
    "cogvideox-2b/transformer": "cogvideox-2b.transformer",
    "flux.1-dev/transformer": "flux.1-dev.transformer",
    "flux.1-dev/transformer ": "flux1-dev.bfl",
    "flux.1-fill-dev/transformer": "flux.1-fill-dev.transformer",
    "flux.1-fill-dev/transformer ": "flux1-fill-dev.bfl",
    "flux.1-dev-controlnet-inpainting-beta": "flux.1-dev-controlnet-inpainting-beta",
    "flux.1-dev/vae": "flux.1-dev.vae",
    "flux.1-dev/vae ": "flux1-ae.bfl",
    "flux.1-dev/text_encoder": "flux.1-dev.clip-l",
    "flux.1-dev/text_encoder_2": "t5-v1_1-xxl.encoder",
    "depth-anything-v2-small/depth": "depth-anything-v2.small-hf",
    "depth-anything-v2-base/depth": "depth-anything-v2.base-hf",
    "depth-anything-v2-large/depth": "depth-anything-v2.large-hf",
    "depth-anything-v2-small/depth ": "depth-anything-v2.vits.pth",
    "depth-anything-v2-base/depth ": "depth-anything-v2.vitb.pth",
    "depth-anything-v2-large/depth ": "depth-anything-v2.vitl.pth",
    "dust3r-512-dpt": "dust3r-512-dpt.hub",
    "dust3r-512-dpt ": "dust3r-512-dpt.pth",
    "dust3r-512-linear": "dust3r-512-linear.hub",
    "dust3r-224-linear": "dust3r-224-linear.hub",
    "mast3r-512": "mast3r-512-catmlpdpt-metric.hub",
    "mast3r-512 ": "mast3r-512-catmlpdpt-metric.pth",
    "dino-vits16": "dino-vits16-hf",
    "dino-vits16 ": "dino-vits16.pth",
    "featup-dino16": "featup-dino16-jbu-stack",
    "i3d-kinetics-400": "i3d-kinetics-400.ckpt",
}
CASES = [pytest.param(name.strip(), file, id=f"{name.partition('/')[0]}-{file}") for name, file in MANIFESTS.items()]


def checked(folder, name, tensors, config=None):
    """The plan of a header-only file."""
    model, (part,) = registry.find(name)
    write_sparse(folder / f"{part.stems[0]}.safetensors", tensors)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return check.plan(model.name, part, open_part(folder, part, alone=True))


def report(folder, name, tensors, config=None):
    with pytest.raises(InputError) as caught:
        checked(folder, name, tensors, config)
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.report


@pytest.mark.parametrize(("name", "file"), CASES)
def test_published_layouts_fit(tmp_path, name, file):
    facts = manifest(file)
    bare = file.endswith((".pth", ".bfl")) or name == "featup-dino16"  # published without a config.json
    plan = checked(tmp_path, name, facts["tensors"], None if bare else facts["config"])
    assert len({move.tensor.name for move in plan.moves}) + len(plan.ignored) == facts["tensor_count"]
    # What is unused because of another network is converted: with another it may be used.
    unused = [] if "unused_why" in facts else facts["unused_in_forward"]
    assert set(plan.ignored) == {*unused, *facts.get("aliases", {})}
    assert sum(np.prod(shape, dtype=np.int64) for shape in plan.targets.values()) <= facts["parameters"]
    assert plan.config == registry.find(name)[1][0].config
    assert plan.dtype.name == plan.layout.dtype
    assert [note for note in plan.notes if "config.json" not in note] == []


@pytest.mark.parametrize(("name", "file"), CASES)
def test_one_tensor_off_is_named(tmp_path, name, file):
    tensors = manifest(file)["tensors"]
    unused = {*manifest(file)["unused_in_forward"], *manifest(file).get("aliases", {})}
    used = [t for t in tensors if t not in unused]
    for k, broken in enumerate((used[0], used[len(used) // 2])):
        rest = {t: entry for t, entry in tensors.items() if t != broken}
        entry = tensors[broken]
        other = next(dtype for dtype in CODES if dtype != entry["dtype"])
        changes = {
            "missing": (rest, [f"{broken}: missing"]),
            "renamed": (
                {**rest, f"{broken}_": entry},
                [f"{broken}_: the model knows no such tensor", f"{broken}: mis"],
            ),
            "reshaped": ({**rest, broken: {**entry, "shape": [*entry["shape"][:-1], 7]}}, [f"{broken}: shape "]),
            "dtype": ({**rest, broken: {**entry, "dtype": other}}, [f"{broken}: is {other}, the others are "]),
        }
        for kind, (changed, starts) in changes.items():
            message, lines = report(tmp_path / f"{kind}{k}", name, changed)
            assert len(lines) == len(starts), (kind, lines)
            assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), (kind, lines)
            assert any(broken in part for part in (message, *lines))


def test_another_model_is_recognised(tmp_path):
    facts = manifest("cogvideox-5b.transformer")
    message, _ = report(tmp_path / "a", "cogvideox-5b-i2v/transformer", facts["tensors"])
    assert (
        "this looks like cogvideox-5b, not cogvideox-5b-i2v: patch_embed.proj.weight: shape [3072, 16, 2, 2]" in message
    )
    message, lines = report(tmp_path / "b", "cogvideox-5b-i2v/transformer", facts["tensors"], facts["config"])
    assert "this looks like cogvideox-5b, not cogvideox-5b-i2v" in message
    assert "config.json: patch_embed's input channels per latent channel is 1.0, not 2.0" in lines
    facts = manifest("depth-anything-v2.vitb.pth")
    message, _ = report(tmp_path / "c", "depth-anything-v2-large", facts["tensors"])
    assert "this looks like depth-anything-v2-base, not depth-anything-v2-large" in message


def test_another_network_altogether(tmp_path):
    message, _ = report(tmp_path, "cogvideox-5b-i2v/vae", manifest("t5-v1_1-xxl.encoder")["tensors"])
    assert "is no vae of cogvideox-5b-i2v" in message


def test_metric_depth(tmp_path):
    facts = manifest("depth-anything-v2.small-hf")
    config = {**facts["config"], "depth_estimation_type": "metric", "max_depth": 20}
    assert checked(tmp_path, "depth-anything-v2-small", facts["tensors"], config).config.max_depth == 20.0


def test_a_whole_file_of_another_dtype_is_noted(tmp_path):
    facts = manifest("cogvideox-5b-i2v.vae")
    tensors = {name: {**entry, "dtype": "bfloat16"} for name, entry in facts["tensors"].items()}
    plan = checked(tmp_path, "cogvideox-5b-i2v/vae", tensors, facts["config"])
    assert plan.dtype.name == "bfloat16"
    assert plan.notes == ("published as float32, this file is bfloat16",)


def test_integers_are_refused(tmp_path):
    tensors = {name: {**entry, "dtype": "int32"} for name, entry in manifest("cogvideox-5b-i2v.vae")["tensors"].items()}
    assert any("quantised" in line for line in report(tmp_path, "cogvideox-5b-i2v/vae", tensors)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": None}, "describes another network"),
        ({"activation_fn": "relu"}, "activation_fn is 'relu'"),
        ({"_class_name": "SanaTransformer2DModel"}, "_class_name"),
        ({"num_layers": "many"}, "describes another network"),
        ({"num_layers": 10**9}, "describes another network"),
        ({"num_layers": 10**5}, "would have 100000 layers"),
        ({"num_layers": True}, "num_layers is 'True'"),
        ({"attention_head_dim": 7}, "attention_head_dim 7"),
    ],
)
def test_config_that_cannot_be(tmp_path, change, words):
    facts = manifest("cogvideox-5b-i2v.transformer")
    message, _ = report(tmp_path, "cogvideox-5b-i2v/transformer", facts["tensors"], {**facts["config"], **change})
    assert words in message


def test_config_that_lacks_a_field(tmp_path):
    facts = manifest("cogvideox-5b-i2v.transformer")
    config = {key: value for key, value in facts["config"].items() if key != "num_layers"}
    message, _ = report(tmp_path, "cogvideox-5b-i2v/transformer", facts["tensors"], config)
    assert "lacks 'num_layers'" in message
