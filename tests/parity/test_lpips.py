"""LPIPS against the authors' own package, with random backbones and the published heads, through the command.

The package takes its backbones from torchvision, which has no build for this torch: a stand-in gives it the layers of
torchvision's lists, written here with torch.nn. What is cut where, the scaling, the heads and the sums are the
package's.
"""

import importlib
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters import command, registry
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.scoring import perceptual
from tests.conversion import convert, fill

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
layers = torch.nn

BACKBONES = ("alex", "vgg", "squeeze")
# Float32 on both sides, sums in another order: a few of its 1e-7 a layer, through thirteen at most.
RELATIVE = 1e-5


class Fire(layers.Module):
    """SqueezeNet's module under torchvision's names."""

    def __init__(self, width, squeezed, expanded):
        super().__init__()
        self.squeeze = layers.Conv2d(width, squeezed, 1)
        self.expand1x1 = layers.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = layers.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


def alexnet():
    def relu():
        return layers.ReLU(inplace=True)

    return [
        layers.Conv2d(3, 64, 11, stride=4, padding=2), relu(), layers.MaxPool2d(3, 2),
        layers.Conv2d(64, 192, 5, padding=2), relu(), layers.MaxPool2d(3, 2),
        layers.Conv2d(192, 384, 3, padding=1), relu(),
        layers.Conv2d(384, 256, 3, padding=1), relu(),
        layers.Conv2d(256, 256, 3, padding=1), relu(), layers.MaxPool2d(3, 2),
    ]  # fmt: skip


def vgg16():
    found, width = [], 3
    for entry in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if entry == "M":
            found.append(layers.MaxPool2d(2, 2))
        else:
            found += [layers.Conv2d(width, entry, 3, padding=1), layers.ReLU(inplace=True)]
            width = entry
    return found


def squeezenet1_1():
    return [
        layers.Conv2d(3, 64, 3, stride=2), layers.ReLU(inplace=True), layers.MaxPool2d(3, 2, ceil_mode=True),
        Fire(64, 16, 64), Fire(128, 16, 64), layers.MaxPool2d(3, 2, ceil_mode=True),
        Fire(128, 32, 128), Fire(256, 32, 128), layers.MaxPool2d(3, 2, ceil_mode=True),
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    ]  # fmt: skip


class Classifier(layers.Module):
    """Features as torchvision has them, and a classifier, smaller than its own, that nothing uses."""

    def __init__(self, make, entry):
        super().__init__()
        self.features = layers.Sequential(*make())
        self.classifier = layers.Sequential(*(layers.Identity() for _ in range(entry)), layers.Linear(4, 3))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                # Of order 1 through all layers, biases away from 0.
                scale = (2.0 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def package():
    """The authors' package over the stand-in."""
    stand_in = types.ModuleType("torchvision.models")
    for make in (alexnet, vgg16, squeezenet1_1):
        setattr(stand_in, make.__name__, lambda pretrained, make=make: Classifier(make, 1))
    parent = types.ModuleType("torchvision")
    parent.__dict__["models"] = stand_in
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", parent)
        patch.setitem(sys.modules, "torchvision.models", stand_in)
        try:
            yield importlib.import_module("lpips")
        except ImportError:
            pytest.skip("the authors' package is not installed: pip install --no-deps lpips==0.1.4")
        for name in [name for name in sys.modules if name.partition(".")[0] == "lpips"]:
            patch.delitem(sys.modules, name)


@pytest.fixture(scope="module", params=BACKBONES)
def pair(request, package):
    """Their module with the published heads, and ours with its weights."""
    original = package.LPIPS(net=request.param, version="0.1", pnet_rand=True, verbose=False)
    (part,) = registry.find(f"lpips-{request.param}")[1]
    model = abstract(lambda: part.network(part.config, rngs=nnx.Rngs(0)))
    targets = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    tensors = {name: value.numpy() for name, value in original.state_dict().items()}
    fill(model, convert(tensors, part.layouts[1].table(part.config), targets))
    return original, model


def images_of(rng, height, width):
    """Smooth pictures and noisy copies, [2, H, W, 3] of 0 to 1."""
    waves = np.linspace(0, 9, height)[None, :, None, None] + np.linspace(0, 7, width)[None, None, :, None]
    images = 0.5 + 0.4 * np.sin(waves + rng.uniform(0, 6, (2, 1, 1, 3)))
    noisy = np.clip(images + rng.normal(0, 0.2, images.shape) * np.asarray([0.3, 1.0]).reshape(2, 1, 1, 1), 0, 1)
    return images.astype(np.float32), noisy.astype(np.float32)


def theirs_of(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_distances_and_features(pair, rng):
    """At a size with which windows that round down lose pixels, and those that round up reach over the edge or not."""
    original, model = pair
    images, noisy = images_of(rng, 45, 70)
    with torch.no_grad():
        total, parts = original(theirs_of(images), theirs_of(noisy), retPerLayer=True, normalize=True)
        taps = original.net(original.scaling_layer(2 * theirs_of(np.concatenate([images, noisy])) - 1))
    assert all(float(part.min()) > 1e-4 * float(total.max()) for part in parts)  # no tap could be left out unseen
    both = jax.jit(lambda model, a, b: (model.features(jnp.concatenate([a, b])), model(a, b)))  # computed once
    features, distances = both(model, jnp.asarray(images), jnp.asarray(noisy))
    assert len(features) == len(taps)
    for got, want in zip(features, taps, strict=True):
        want = want.permute(0, 2, 3, 1).numpy()
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=RELATIVE * want.max())
    np.testing.assert_allclose(distances, total.reshape(2).numpy(), rtol=RELATIVE)


def test_published_files(package, tmp_path, rng):
    """PyTorch's files through the command: torchvision's beside the package's own."""
    original = package.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    source = tmp_path / "in"
    source.mkdir()
    torch.save(Classifier(squeezenet1_1, 1).state_dict(), source / "squeezenet1_1-b8a52dc0.pth")
    heads = Path(package.__file__).parent / "weights/v0.1/squeeze.pth"
    (source / "squeeze.pth").write_bytes(heads.read_bytes())
    assert command.main(["lpips-squeeze", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    images, noisy = ((255 * x).astype(np.uint8) for x in images_of(rng, 45, 70))
    with torch.no_grad():
        want = original(*(theirs_of(x.astype(np.float32) / 255) for x in (images, noisy)), normalize=True)
    got = perceptual.load(tmp_path / "out/lpips")(images, noisy)
    np.testing.assert_allclose(got, want.reshape(2).numpy(), rtol=RELATIVE)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_package_holds_the_published_heads(package, backbone):
    """Its files are what the converter expects, and nothing in them is negative."""
    folder = Path(package.__file__).parent / "weights/v0.1"
    tensors = torch.load(folder / f"{backbone}.pth", weights_only=True, map_location="cpu")
    config = LpipsConfig(backbone)
    model = abstract(lambda: Lpips(config, rngs=nnx.Rngs(0)))
    widths = [head.shape[0] for head in model.heads]
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(widths)
    }
    assert all(float(value.min()) >= 0 for value in tensors.values())
