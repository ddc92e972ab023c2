"""DINO against transformers' ViT, and FeatUp's upsampler against its arithmetic in plain PyTorch, on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters import command
from converters.tables import dino as tables
from converters.tables import featup as featup_tables
from reangle_jax.checkpoints import abstract, load_config, load_into, parameter_paths
from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, VisionTransformer
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")
transformers = pytest.importorskip("transformers")

CONFIG = DinoConfig(width=24, depth=3, heads=2, native_grid=4)
NATIVE, ODD = (64, 64), (80, 112)  # 4x4 and 5x7 tokens
# Float32 on both sides, sums in another order: three blocks; four stages whose kernels add up.
BLOCKS, STACK = 2e-5, 1e-4
features = jax.jit(lambda module, images: module.features(images))
apply = jax.jit(lambda module, *inputs: module(*inputs))  # op by op, each would be compiled on its own


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=CONFIG.width,
            intermediate_size=4 * CONFIG.width,
            num_hidden_layers=CONFIG.depth,
            num_attention_heads=CONFIG.heads,
            image_size=CONFIG.patch_size * CONFIG.native_grid,
            patch_size=CONFIG.patch_size,
            layer_norm_eps=1e-6,
        ),
        add_pooling_layer=False,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
            elif "embeddings" in name and parameter.ndim == 3:
                parameter.normal_()
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def tensors(original, tmp_path_factory):
    """The published names: transformers writes them, though the module's own differ."""
    from safetensors.numpy import load_file

    folder = tmp_path_factory.mktemp("dino")
    original.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def as_pth(tensors):
    """The same weights as the authors' file holds them: q, k and v joined."""
    result = {}
    for name, array in tensors.items():
        if ".key." in name or ".value." in name:
            continue
        if ".query." in name:
            array = np.concatenate(
                [tensors[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            )
        for old, new in (
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.", ""),
            ("encoder.layer.", "blocks."),
            ("attention.attention.query", "attn.qkv"),
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm", "norm"),
        ):
            name = name.replace(old, new)
        result[name] = array
    return result


def build(make, tensors, table):
    model = abstract(make)
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    fill(model, convert(tensors, table, shapes))
    return model


def build_vit(tensors, table, config=CONFIG):
    return build(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)), tensors, table)


def images_of(rng, size, batch=2):
    images = rng.normal(size=(batch, *size, 3)).astype(np.float32)
    return jnp.asarray(images), torch.from_numpy(images).permute(0, 3, 1, 2)


def authors_positions(self, embeddings, height, width):
    """The rule of the authors' DINO, in torch."""
    side = CONFIG.native_grid
    if height == width == side * CONFIG.patch_size:
        return self.position_embeddings
    grid = self.position_embeddings[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = tuple((n // CONFIG.patch_size + 0.1) / side for n in (height, width))
    grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([self.position_embeddings[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("size", [NATIVE, ODD], ids=["native", "odd"])
@pytest.mark.parametrize("rule", ["authors", "hf"])
def test_dino(rng, original, tensors, monkeypatch, size, rule):
    if rule == "authors":
        module = transformers.models.vit.modeling_vit.ViTEmbeddings
        monkeypatch.setattr(module, "interpolate_pos_encoding", authors_positions)
    ours, theirs = images_of(rng, size)
    with torch.no_grad():
        expected = original(theirs, interpolate_pos_encoding=True).last_hidden_state.numpy()
    model = build_vit(tensors, tables.hf(), dataclasses.replace(CONFIG, pos_interpolation=rule))
    got = apply(model, ours)
    assert expected.std() > 0.3
    np.testing.assert_allclose(got, expected, atol=BLOCKS)
    rows, columns = size[0] // 16, size[1] // 16
    grid = expected[:, 1:].reshape(2, rows, columns, -1)
    np.testing.assert_allclose(features(model, ours), grid, atol=BLOCKS)


def test_both_layouts_give_one_model(tensors):
    states = [parameter_paths(build_vit(*x)) for x in ((tensors, tables.hf()), (as_pth(tensors), tables.pth()))]
    assert states[0].keys() == states[1].keys()
    for path, variable in states[0].items():
        np.testing.assert_array_equal(variable[...], states[1][path][...], err_msg=path)


@pytest.mark.parametrize("layout", ["hf", "pth"])
def test_tables_go_back_and_forth(tensors, layout):
    source, table = (tensors, tables.hf()) if layout == "hf" else (as_pth(tensors), tables.pth())
    model = build_vit(source, table)
    back = revert({path: np.asarray(v[...]) for path, v in parameter_paths(model).items()}, table)
    assert set(back) == set(source)
    for name, array in back.items():
        np.testing.assert_array_equal(array, source[name], err_msg=name)


# FeatUp's network cannot be imported here (its convolution is compiled), so the paper's arithmetic is written out.
def conv(tensors, name, x):
    return functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def perceptron(tensors, name, x):
    return conv(tensors, f"{name}.3", functional.gelu(conv(tensors, f"{name}.0", x)))


def neighbours(x, radius):
    """[B, C, H, W] to [B, C, K, H, W]."""
    side = 2 * radius + 1
    padded = functional.pad(x, [radius] * 4, mode="reflect")
    return functional.unfold(padded, side).reshape(*x.shape[:2], side * side, *x.shape[2:])


def stage_in_torch(tensors, name, source, guidance, radius):
    keys = perceptron(tensors, f"{name}.range_proj", guidance)
    temperature = tensors[f"{name}.range_temp"].exp().clamp(1e-4, 1e4)
    likeness = torch.einsum("bckhw,bchw->bkhw", neighbours(keys, radius), keys)
    line = torch.linspace(-1, 1, 2 * radius + 1)
    squares = line[:, None] ** 2 + line[None, :] ** 2
    nearness = torch.exp(-squares / (2 * tensors[f"{name}.sigma_spatial"] ** 2)).reshape(1, -1, 1, 1)
    weights = torch.softmax(temperature * likeness, dim=1) * nearness
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-7)
    weights = weights + 0.1 * perceptron(tensors, f"{name}.fixup_proj", torch.cat([weights, guidance], 1))
    large = functional.interpolate(source, guidance.shape[-2:], mode="bicubic")
    return torch.einsum("bckhw,bkhw->bchw", neighbours(large, radius), weights)


def stack_in_torch(tensors, source, guidance, stages, radius):
    for k in range(1, stages + 1):
        size = 2 * source.shape[-2], 2 * source.shape[-1]
        small = functional.adaptive_avg_pool2d(guidance, size)
        source = stage_in_torch(tensors, f"upsampler.up{k}", source, small, radius)
    return source + 0.1 * conv(tensors, "upsampler.fixup_proj.1", source)


def featup_tensors(config, vit):
    """Random weights under FeatUp's names, beside a backbone's."""
    generator = torch.Generator().manual_seed(0)
    taps = (2 * config.radius + 1) ** 2
    shapes = {"upsampler.fixup_proj.1": (config.width, config.width)}
    result = {f"model.0.model.{name}": torch.from_numpy(array) for name, array in vit.items()}
    for k in range(1, config.stages + 1):
        shapes[f"upsampler.up{k}.range_proj.0"] = (config.key_width, 3)
        shapes[f"upsampler.up{k}.range_proj.3"] = (config.key_width, config.key_width)
        shapes[f"upsampler.up{k}.fixup_proj.0"] = (taps, taps + 3)
        shapes[f"upsampler.up{k}.fixup_proj.3"] = (taps, taps)
        result[f"upsampler.up{k}.range_temp"] = torch.tensor(0.3 * k - 0.5)
        result[f"upsampler.up{k}.sigma_spatial"] = torch.tensor(0.5 + 0.2 * k)
    for name, shape in shapes.items():
        result[f"{name}.weight"] = torch.randn(*shape, 1, 1, generator=generator) * shape[1] ** -0.5
        result[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)
    result["model.1.norm.weight"] = 1 + 0.3 * torch.randn(config.width, generator=generator)
    result["model.1.norm.bias"] = 0.3 * torch.randn(config.width, generator=generator)
    return result


def test_featup(rng, original, tensors, monkeypatch):
    """Odd token counts, and a guidance image whose size the features' is no divisor of."""
    module = transformers.models.vit.modeling_vit.ViTEmbeddings
    monkeypatch.setattr(module, "interpolate_pos_encoding", authors_positions)
    config = FeatUpConfig(**dataclasses.asdict(CONFIG), key_width=8, stages=3)
    weights = featup_tensors(config, as_pth(tensors))
    table = featup_tables.table(config)
    model = build(lambda: FeatUp(config, rngs=nnx.Rngs(0)), {k: v.numpy() for k, v in weights.items()}, table)
    ours, theirs = images_of(rng, ODD, batch=1)
    guidance = rng.uniform(size=(1, 90, 133, 3)).astype(np.float32)
    with torch.no_grad():
        tokens = original(theirs, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        normed = functional.layer_norm(
            tokens, (config.width,), weights["model.1.norm.weight"], weights["model.1.norm.bias"], eps=1e-5
        )
        source = normed.transpose(1, 2).reshape(1, config.width, 5, 7)
        guide = torch.from_numpy(guidance).permute(0, 3, 1, 2)
        first = stage_in_torch(
            weights, "upsampler.up1", source, functional.adaptive_avg_pool2d(guide, (10, 14)), config.radius
        )
        expected = stack_in_torch(weights, source, guide, 3, config.radius)
        small = functional.adaptive_avg_pool2d(guide, (10, 14)).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.3
    np.testing.assert_allclose(features(model, ours), source.permute(0, 2, 3, 1).numpy(), atol=BLOCKS)
    got = apply(model.upsampler.stages[0], jnp.asarray(source.permute(0, 2, 3, 1).numpy()), jnp.asarray(small))
    np.testing.assert_allclose(got, first.permute(0, 2, 3, 1).numpy(), atol=BLOCKS)
    got = apply(model, ours, jnp.asarray(guidance))
    assert got.shape == (1, 40, 56, config.width)
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1).numpy(), atol=STACK)
    back = revert({path: np.asarray(v[...]) for path, v in parameter_paths(model).items()}, table)
    assert set(back) == set(weights)
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name].numpy(), err_msg=name)


def test_dinov2_as_transformers_saves_it_through_the_converter(rng, tmp_path):
    """Folder in, folder out, and the same tokens."""
    torch.manual_seed(1)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, layerscale_value=0.7
    )
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "published")
    arguments = ["--source", str(tmp_path / "published"), "--out", str(tmp_path / "weights")]
    assert command.main(["dinov2-small", *arguments]) == 0
    folder = tmp_path / "weights" / "dinov2"
    ours_config = load_config(folder, DinoConfig)
    assert ours_config == dataclasses.replace(DinoConfig.dinov2(width=24, depth=2, heads=2), native_grid=4)
    ours = load_into(abstract(lambda: VisionTransformer(ours_config, rngs=nnx.Rngs(0))), folder)
    images, theirs = images_of(rng, (56, 56))
    with torch.no_grad():
        expected = model(theirs).last_hidden_state.numpy()
    np.testing.assert_allclose(apply(ours, images), expected, atol=BLOCKS)
    # DINO, which lacks LayerScale, is another model, and said to be.
    assert command.main(["dino-vits16", *arguments[:3], str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other" / "dino").exists()
