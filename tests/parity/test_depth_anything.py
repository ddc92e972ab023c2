"""Depth Anything V2 against transformers, on random weights, through the conversion tables."""

import copy
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables import depth_anything as tables
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig
from reangle_jax.nn.stack import Stack
from reangle_jax.nn.vit import interpolate_positions
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = DepthAnythingConfig(
    width=32, depth=5, heads=2, taps=(1, 2, 4, 5), neck_widths=(8, 12, 16, 20), fusion_width=16, head_width=8,
    native_grid=5,
)  # fmt: skip
apply = jax.jit(lambda module, *inputs: module(*inputs))  # op by op, each would be compiled on its own
NATIVE, WIDE = (70, 70), (70, 112)
# Float32 on both sides, values of order 1, sums in another order: a module, and the whole network.
MODULE, WHOLE = {"atol": 1e-5, "rtol": 1e-5}, {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=CONFIG.width,
        num_attention_heads=CONFIG.heads,
        num_hidden_layers=CONFIG.depth,
        image_size=CONFIG.short_side,
        patch_size=CONFIG.patch_size,
        out_indices=list(CONFIG.taps),
        apply_layernorm=True,
        reshape_hidden_states=False,
        layer_norm_eps=1e-6,
    )
    model = transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=CONFIG.width,
            neck_hidden_sizes=list(CONFIG.neck_widths),
            fusion_hidden_size=CONFIG.fusion_width,
            head_hidden_size=CONFIG.head_width,
            max_depth=1,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and LayerScale away from 1, biases away from 0: the initial values would hide a wrong one.
            if parameter.ndim == 1:
                centre = 1.0 if ("norm" in name and "weight" in name) or "lambda" in name else 0.0
                parameter.copy_(centre + 0.3 * torch.randn(parameter.shape))
            elif "embeddings" in name and parameter.ndim == 3:
                parameter.copy_(torch.randn(parameter.shape))
            else:
                fan_in = parameter[0].numel() if "resize" not in name else parameter.shape[0]
                parameter.copy_(torch.randn(parameter.shape) * fan_in**-0.5)
        model.head.conv3.bias.fill_(1.0)  # otherwise the last ReLU would cut most of the map
    return model


@pytest.fixture(scope="module")
def tensors(original, tmp_path_factory):
    """The published names: transformers writes them, though the module's own differ."""
    from safetensors.numpy import load_file

    folder = tmp_path_factory.mktemp("depth_anything")
    original.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def build(tensors, table, config=CONFIG):
    model = abstract(lambda: DepthAnything(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    fill(model, convert(tensors, table, shapes))
    return model


def authors_positions(self, embeddings, height, width):
    """The rule of the authors' DINOv2, in torch."""
    side = math.isqrt(self.position_embeddings.shape[1] - 1)
    if height == width == side * self.patch_size:
        return self.position_embeddings
    grid = self.position_embeddings[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = tuple((n // self.patch_size + 0.1) / side for n in (height, width))
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([self.position_embeddings[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def use_authors_rule(monkeypatch):
    module = transformers.models.dinov2.modeling_dinov2.Dinov2Embeddings
    monkeypatch.setattr(module, "interpolate_pos_encoding", authors_positions)


def images_of(rng, size, batch=2):
    images = rng.normal(size=(batch, *size, 3)).astype(np.float32)
    return jnp.asarray(images), torch.from_numpy(images).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [NATIVE, WIDE], ids=["native", "wide"])
@pytest.mark.parametrize("rule", ["authors", "hf"])
def test_whole(rng, original, tensors, monkeypatch, size, rule):
    if rule == "authors":
        use_authors_rule(monkeypatch)
    ours, theirs = images_of(rng, size)
    with torch.no_grad():
        expected = original(theirs).predicted_depth.numpy()
    model = build(tensors, tables.hf(), dataclasses.replace(CONFIG, pos_interpolation=rule))
    got = apply(model, ours)
    assert expected.std() > 0.1
    assert (expected > 0).mean() > 0.5
    np.testing.assert_allclose(got, expected, **WHOLE)


def test_rules_differ_off_the_native_size(tensors):
    table = jnp.asarray(tensors["backbone.embeddings.position_embeddings"])
    rules = [interpolate_positions(table, 5, 5, 8, rule=rule) for rule in ("authors", "hf")]
    assert float(jnp.abs(rules[0] - rules[1]).max()) > 0.01


def test_metric(rng, original, tensors):
    metric = copy.deepcopy(original)
    metric.head.activation2, metric.head.max_depth = torch.nn.Sigmoid(), 20
    ours, theirs = images_of(rng, NATIVE)
    with torch.no_grad():
        expected = metric(theirs).predicted_depth.numpy()
    got = apply(build(tensors, tables.hf(), dataclasses.replace(CONFIG, max_depth=20.0)), ours)
    # Twenty times the tolerance of an output of order 1.
    np.testing.assert_allclose(got, expected, atol=20 * 1e-4)


def test_backbone_module_by_module(rng, original, tensors, monkeypatch):
    use_authors_rule(monkeypatch)
    model, backbone = build(tensors, tables.hf()).backbone, original.backbone
    ours, theirs = images_of(rng, WIDE)
    with torch.no_grad():
        embedded = backbone.embeddings(theirs)
        np.testing.assert_allclose(jax.jit(lambda m, x: m.embed(x))(model, ours), embedded.numpy(), **MODULE)
        x = torch.randn_like(embedded)
        layer = backbone.encoder.layer[1]
        expected_attention = layer.attention(x, attention_mask=None)[0].numpy()
        expected_block = layer(x, attention_mask=None)
        expected_taps = [tap.numpy() for tap in backbone(theirs).feature_maps]
    block = _layer(model.blocks, 1)
    np.testing.assert_allclose(apply(block.attn, jnp.asarray(x.numpy())), expected_attention, **MODULE)
    np.testing.assert_allclose(apply(block, jnp.asarray(x.numpy())), expected_block.numpy(), **MODULE)
    taps = jax.jit(lambda m, x: m.taps(x, CONFIG.taps))(model, ours)
    for got, expected in zip(taps, expected_taps, strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-5)  # up to five blocks deep
    np.testing.assert_allclose(apply(model, ours), expected_taps[-1], atol=5e-5)


def _layer(stack: Stack, k: int):
    graphdef, state = nnx.split(stack.layers)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[k], state))


def test_head_module_by_module(rng, original, tensors):
    head, neck = build(tensors, tables.hf()).head, original.neck
    rows, columns = 5, 8
    taps = [rng.normal(size=(2, 1 + rows * columns, CONFIG.width)).astype(np.float32) for _ in range(4)]
    ours = [jnp.asarray(tap) for tap in taps]
    with torch.no_grad():
        maps = neck.reassemble_stage([torch.from_numpy(tap) for tap in taps], rows, columns)
        levels = [conv(x) for conv, x in zip(neck.convs, maps, strict=True)]
        fused = neck.fusion_stage(levels)
        expected = original.head(fused, rows, columns).numpy()
    for k, (got, reassembled) in enumerate(zip(head.reassemble, maps, strict=True)):
        x = ours[k][:, 1:].reshape(2, rows, columns, -1)
        np.testing.assert_allclose(apply(got, x), nhwc(reassembled), **MODULE)
    got_levels = jax.jit(lambda m, x: m.levels(x, rows, columns))(head, ours)
    for got, level in zip(got_levels, levels, strict=True):
        np.testing.assert_allclose(got, nhwc(level), **MODULE)
    unit = neck.fusion_stage.layers[1].residual_layer1
    got = apply(head.fusion[1].skip, jnp.asarray(nhwc(levels[2])))
    np.testing.assert_allclose(got, nhwc(unit(levels[2])), **MODULE)
    got = jax.jit(lambda m, x: m.fuse(x))(head, [jnp.asarray(nhwc(level)) for level in levels])
    # Values of order 10 after four blocks that add up.
    np.testing.assert_allclose(got, nhwc(fused[-1]), atol=1e-5 * float(fused[-1].abs().max()))
    got = jax.jit(lambda m, x: jax.nn.relu(m(x, rows, columns)))(head, ours)
    np.testing.assert_allclose(got, expected, **WHOLE)


def as_pth(tensors):
    """The same weights as the authors' file would hold them, by the published renaming; q, k and v are joined."""
    import re

    result = {}
    for name, array in tensors.items():
        if ".key." in name or ".value." in name:
            continue
        if ".query." in name:
            parts = [tensors[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            array = np.concatenate(parts)
        for pattern, to in (
            (r"backbone\.embeddings\.patch_embeddings\.projection", "pretrained.patch_embed.proj"),
            (r"backbone\.embeddings\.position_embeddings", "pretrained.pos_embed"),
            (r"backbone\.embeddings\.", "pretrained."),
            (r"backbone\.encoder\.layer\.", "pretrained.blocks."),
            (r"backbone\.layernorm", "pretrained.norm"),
            (r"attention\.attention\.query", "attn.qkv"),
            (r"attention\.output\.dense", "attn.proj"),
            (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
            (r"neck\.reassemble_stage\.layers\.(\d)\.projection", r"depth_head.projects.\1"),
            (r"neck\.reassemble_stage\.layers\.(\d)\.resize", r"depth_head.resize_layers.\1"),
            (r"neck\.convs\.(\d)", lambda m: f"depth_head.scratch.layer{int(m[1]) + 1}_rn"),
            (r"neck\.fusion_stage\.layers\.(\d)", lambda m: f"depth_head.scratch.refinenet{4 - int(m[1])}"),
            (r"residual_layer(\d)\.convolution", r"resConfUnit\1.conv"),
            (r"(refinenet\d)\.projection", r"\1.out_conv"),
            (r"^head\.conv1", "depth_head.scratch.output_conv1"),
            (r"^head\.conv2", "depth_head.scratch.output_conv2.0"),
            (r"^head\.conv3", "depth_head.scratch.output_conv2.2"),
        ):
            name = re.sub(pattern, to, name)
        result[name] = array
    return result


def test_both_layouts_give_one_model(tensors):
    ours = [build(tensors, tables.hf()), build(as_pth(tensors), tables.pth())]
    states = [parameter_paths(model) for model in ours]
    assert states[0].keys() == states[1].keys()
    for path, variable in states[0].items():
        np.testing.assert_array_equal(variable[...], states[1][path][...], err_msg=path)


@pytest.mark.parametrize("layout", ["hf", "pth"])
def test_tables_go_back_and_forth(tensors, layout):
    source, table = (tensors, tables.hf()) if layout == "hf" else (as_pth(tensors), tables.pth())
    model = build(source, table)
    back = revert({path: np.asarray(v[...]) for path, v in parameter_paths(model).items()}, table)
    assert set(back) == set(source) - set(table.ignored)
    for name, array in back.items():
        np.testing.assert_array_equal(array, source[name], err_msg=name)
