"""DUSt3R and MASt3R against the PyTorch original, on random weights, through the conversion tables.

The original is PyPI's mini-dust3r, whose network gives the outputs of the authors' own. It has no MASt3R: the dense
head of both is one, and the descriptors' perceptron is written here from the paper (arXiv 2406.09756, section 3.2).
"""

import dataclasses
import functools
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables import dust3r as tables
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig, preprocess
from tests.conversion import convert, fill, revert

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning")]
torch = pytest.importorskip("torch")
mini_dust3r = pytest.importorskip("mini_dust3r.model")
dpt_head = pytest.importorskip("mini_dust3r.heads.dpt_head")

LINEAR = Dust3rConfig(
    encoder_width=32, encoder_depth=3, encoder_heads=2, decoder_width=24, decoder_depth=3, decoder_heads=2,
    head="linear", image_size=224,
)  # fmt: skip
# The original's dense head wants ten decoder blocks.
DPT = dataclasses.replace(
    LINEAR, encoder_depth=2, decoder_depth=10, head="dpt", image_size=512, neck_widths=(8, 12, 16, 20), fusion_width=16,
    head_width=8,
)  # fmt: skip
MAST3R = dataclasses.replace(DPT, head="mast3r")
SQUARE, ODD = (64, 64), (80, 112)  # 4x4 and 5x7 tokens
# Float32 on both sides, sums in another order, ten blocks and a deep head: relative to a point's length plus one.
WHOLE = 2e-5
apply = jax.jit(lambda module, *inputs: module(*inputs))  # op by op, each would be compiled on its own


def randomise(module):
    """Norms away from 1, biases away from 0, everything of order 1: the initial values would hide a wrong one."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
                if name.endswith("dpt.head.4.weight"):  # the fusion adds up, and an exponential follows
                    parameter.mul_(0.2)


def make_original(config):
    torch.manual_seed(0)
    widths = {"feature_dim": config.fusion_width, "last_dim": config.head_width, "layer_dims": list(config.neck_widths)}
    published = dpt_head.DPTOutputAdapter_fix
    with pytest.MonkeyPatch.context() as patch:  # the published widths are written into the original
        patch.setattr(dpt_head, "DPTOutputAdapter_fix", lambda **rest: published(**{**rest, **widths}))
        model = _original(config)
    randomise(model)
    return model


def _original(config):
    return mini_dust3r.AsymmetricCroCo3DStereo(
        pos_embed="RoPE100",
        head_type="linear" if config.head == "linear" else "dpt",
        img_size=(config.image_size, config.image_size),
        landscape_only=False,
        enc_embed_dim=config.encoder_width,
        enc_depth=config.encoder_depth,
        enc_num_heads=config.encoder_heads,
        dec_embed_dim=config.decoder_width,
        dec_depth=config.decoder_depth,
        dec_num_heads=config.decoder_heads,
    ).eval()


@pytest.fixture(scope="module")
def linear():
    return make_original(LINEAR)


@pytest.fixture(scope="module")
def dpt():
    return make_original(DPT)


@pytest.fixture(scope="module")
def local_features():
    """MASt3R's two perceptrons."""
    torch.manual_seed(1)
    width = MAST3R.encoder_width + MAST3R.decoder_width
    values = (MAST3R.descriptor_width + 1) * MAST3R.patch_size**2
    names = [f"downstream_head{n}.head_local_features" for n in (1, 2)]
    pairs = [(torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, values)) for _ in names]
    for pair in pairs:
        for layer in pair:
            randomise(layer)
    return dict(zip(names, pairs, strict=True))


def tensors_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def mast3r_tensors(dpt, local_features):
    tensors = tensors_of(dpt)
    for name, pair in local_features.items():
        for k, layer in enumerate(pair, start=1):
            tensors[f"{name}.fc{k}.weight"] = layer.weight.detach().numpy()
            tensors[f"{name}.fc{k}.bias"] = layer.bias.detach().numpy()
    return tensors


def build(tensors, config):
    model = abstract(lambda: Dust3r(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    fill(model, convert(tensors, tables.table(config.head), shapes))
    return model


def pair_of(rng, first, second, batch=2):
    ours = [rng.uniform(-1, 1, size=(batch, *size, 3)).astype(np.float32) for size in (first, second)]
    views = [
        {"img": torch.from_numpy(x).permute(0, 3, 1, 2), "instance": [f"{n}{k}" for k in range(batch)]}
        for n, x in enumerate(ours)
    ]
    return [jnp.asarray(x) for x in ours], views


def check(got, expected, points):
    want = expected[points].numpy()
    assert want.std() > 0.3
    assert got.points.shape == want.shape
    length = np.linalg.norm(want, axis=-1)
    error = np.linalg.norm(got.points - want, axis=-1) / (1.0 + length)
    assert error.max() < WHOLE
    np.testing.assert_allclose(got.confidence, expected["conf"].numpy(), rtol=WHOLE)


@pytest.mark.parametrize(("first", "second"), [(ODD, ODD), (ODD, SQUARE)])
def test_linear(rng, linear, first, second):
    ours, views = pair_of(rng, first, second)
    with torch.no_grad():
        expected = linear(*views)
    got = apply(build(tensors_of(linear), LINEAR), *ours)
    check(got[0], expected[0], "pts3d")
    check(got[1], expected[1], "pts3d_in_other_view")


def test_dense_and_descriptors(rng, dpt, local_features):
    ours, views = pair_of(rng, ODD, SQUARE, batch=1)
    with torch.no_grad():
        _, features, places = dpt._encode_symmetrized(*views)
        decoded = list(dpt._decoder(features[0], places[0], features[1], places[1]))
        expected = dpt(*views)
        descriptors = []
        for size, outputs, (fc1, fc2) in zip((ODD, SQUARE), decoded, local_features.values(), strict=True):
            x = fc2(torch.nn.functional.gelu(fc1(torch.cat([outputs[0], outputs[-1]], -1))))
            x = x.transpose(1, 2).reshape(1, -1, size[0] // 16, size[1] // 16)
            descriptors.append(torch.nn.functional.pixel_shuffle(x, 16).permute(0, 2, 3, 1))
    got = apply(build(mast3r_tensors(dpt, local_features), MAST3R), *ours)
    check(got[0], expected[0], "pts3d")
    check(got[1], expected[1], "pts3d_in_other_view")
    for view, raw in zip(got, descriptors, strict=True):
        want = torch.nn.functional.normalize(raw[..., :24], dim=-1)
        np.testing.assert_allclose(view.descriptors, want.numpy(), atol=WHOLE)
        np.testing.assert_allclose(view.descriptor_confidence, raw[..., 24].exp().numpy(), rtol=WHOLE)


@pytest.mark.usefixtures("unchecked")  # a head that gives tokens back
def test_modules(rng, linear):
    """Encoder and decoders by themselves, tighter than the whole."""
    ours, views = pair_of(rng, ODD, ODD)
    with torch.no_grad():
        _, features, places = linear._encode_symmetrized(*views)
        decoded = list(linear._decoder(features[0], places[0], features[1], places[1]))
    model = build(tensors_of(linear), LINEAR)
    tokens = [jax.jit(lambda m, x: m.encode(x))(model, x) for x in ours]
    for got, expected in zip(tokens, features, strict=True):
        np.testing.assert_allclose(got.reshape(expected.shape), expected.numpy(), atol=2e-5)

    def last_tokens(model, x, y):
        model.head1 = model.head2 = lambda taps: taps[-1]
        return model.decode(x, y)

    captured = jax.jit(last_tokens)(model, *tokens)
    for got, outputs in zip(captured, decoded, strict=True):
        np.testing.assert_allclose(got.reshape(outputs[-1].shape), outputs[-1].numpy(), atol=2e-5)


def test_hub_and_pth_give_one_model(dpt):
    """The Hub's file lacks the copies that the .pth file holds."""
    pth = tensors_of(dpt)
    hub = {name: array for name, array in pth.items() if ".layer_rn." not in name}
    assert len(pth) - len(hub) == 8
    states = [parameter_paths(build(tensors, DPT)) for tensors in (pth, hub)]
    for path, variable in states[0].items():
        np.testing.assert_array_equal(variable[...], states[1][path][...], err_msg=path)


@pytest.mark.parametrize("config", [LINEAR, MAST3R], ids=["linear", "mast3r"])
def test_tables_go_back_and_forth(linear, dpt, local_features, config):
    source = tensors_of(linear) if config is LINEAR else mast3r_tensors(dpt, local_features)
    table = tables.table(config.head)
    model = build(source, config)
    back = revert({path: np.asarray(v[...]) for path, v in parameter_paths(model).items()}, table)
    assert set(back) == set(source) - set(table.ignored)
    for name, array in back.items():
        np.testing.assert_array_equal(array, source[name], err_msg=name)


def original_loader(monkeypatch):
    """The original's image loader. Of torchvision, which cannot be installed beside this torch, it needs two lines."""
    transforms = types.ModuleType("torchvision.transforms")
    transforms.Compose = lambda steps: lambda x: functools.reduce(lambda y, step: step(y), steps, x)
    transforms.ToTensor = lambda: lambda x: torch.from_numpy(np.array(x)).permute(2, 0, 1).float() / 255
    transforms.Normalize = lambda mean, std: lambda x: (x - mean[0]) / std[0]
    package = types.ModuleType("torchvision")
    package.transforms = transforms
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", transforms)
    return importlib.import_module("mini_dust3r.utils.image")


@pytest.mark.parametrize("square_ok", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((97, 143), 512), ((150, 150), 512), ((600, 800), 512), ((531, 1000), 512), ((97, 143), 224), ((400, 300), 224)],
)
def test_preprocess(rng, tmp_path, monkeypatch, shape, size, square_ok):
    from PIL import Image

    loader = original_loader(monkeypatch)
    # Noise and a ramp: the first shows every weight, the second every shift.
    pixels = rng.integers(0, 256, (*shape, 3)) // 2 + np.arange(shape[1])[None, :, None] * 127 // shape[1]
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    loaded = loader.load_images([str(tmp_path / "a.png")], size=size, square_ok=square_ok, verbose=False)
    expected = loaded[0]["img"][0].permute(1, 2, 0).numpy()
    got = preprocess(pixels.astype(np.uint8), image_size=size, square_ok=square_ok)
    assert got.shape == expected.shape
    # Pillow keeps its weights in fixed point: a byte may fall to the other side of a half, none further.
    difference = np.abs(got - expected) * 127.5
    assert difference.max() < 1.01
    assert (difference > 0.5).mean() < 0.002
