import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from manifests import manifest, table_faults
from safetensors import safe_open

from converters.tables import cogvideox_transformer
from reangle_jax.backbones.cogvideox import lora_layouts
from reangle_jax.backbones.cogvideox.lora import export_lora_safetensors, from_state, published_lora
from reangle_jax.checkpoints import abstract, load_config, load_into, parameter_paths, save_model
from reangle_jax.models.cogvideox.positions import crop_region
from reangle_jax.models.cogvideox.transformer import Transformer, patchify, unpatchify
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.nn.channel_order import to_halves, to_pairs
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.products import einsum
from tests.conversion import fill, tensor

SMALL = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=6,
    out_channels=3,
    time_embed_dim=16,
    text_embed_dim=12,
    max_text_seq_length=5,
    sample_frames=9,
    sample_height=4,
    sample_width=6,
    use_learned=True,
)
LORA = {"lora_rank": 3, "lora_alpha": 6.0}
PUBLISHED = {
    "cogvideox-5b-i2v": (TransformerConfig.cogvideox_5b_i2v, 5_625_087_552),
    "cogvideox-5b": (TransformerConfig.cogvideox_5b, 5_570_283_072),
    "cogvideox-2b": (TransformerConfig.cogvideox_2b, 1_693_783_872),
    "cogvideox1.5-5b-i2v": (TransformerConfig.cogvideox1_5_5b_i2v, 5_571_594_880),
}


def abstractly(config):
    return abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def shapes_of(tree):
    return {path: tuple(variable.shape) for path, variable in parameter_paths(tree).items()}


@functools.partial(jax.jit, static_argnums=0)
def compiled(graphdef, state, *args):
    return nnx.merge(graphdef, state)(*args)


@pytest.fixture(scope="module")
def call():
    """Runs a model as one compiled function, which models of equal structure share."""
    return lambda model, *args: compiled(*nnx.split(model), *args)


@pytest.fixture
def inputs(rng):
    latents = jnp.asarray(rng.normal(size=(2, 3, 4, 6, 6)), jnp.float32)
    text = jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32)
    return latents, text, jnp.asarray([3.0, 800.0])


def adapted(config=SMALL):
    """A model whose adapters do something."""
    model = Transformer(dataclasses.replace(config, **LORA), rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.LoRAParam)
    for k, variable in enumerate(parameter_paths(state).values()):
        variable.set_value(0.3 * jax.random.normal(jax.random.key(k), variable.shape))
    nnx.update(model, state)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_equal_the_manifests(name):
    make, parameters = PUBLISHED[name]
    facts, config = manifest(f"{name}.transformer"), make()
    targets = shapes_of(abstractly(config))
    assert sum(int(np.prod(shape)) for shape in targets.values()) == facts["parameters"] == parameters
    assert table_faults(facts["tensors"], cogvideox_transformer.table(config), targets) == []
    renamed = {"use_rotary": "use_rotary_positional_embeddings", "use_learned": "use_learned_positional_embeddings"}
    for field, value in dataclasses.asdict(config).items():
        assert facts["config"].get(renamed.get(field, field), value) == value


def test_published_adapters_equal_the_manifest():
    facts = manifest("cogvideox-5b-i2v.lora-r128")
    config = dataclasses.replace(TransformerConfig.cogvideox_5b_i2v(), lora_rank=128, lora_alpha=128.0)
    targets = shapes_of(nnx.state(abstractly(config), nnx.LoRAParam))
    assert sum(int(np.prod(shape)) for shape in targets.values()) == facts["parameters"] == 132_120_576
    tensors = {name: tensor(name, entry["shape"]) for name, entry in facts["tensors"].items()}
    adapters = lora_layouts.read_header(Path("x"), tensors, {}, layers=config.num_layers, width=config.inner_dim)
    assert {2 * len(adapters), len(tensors)} == {2 * 42 * 4}
    assert {each.rank for each in adapters.values()} == {128}


def test_full_size_runs_abstractly():
    config = TransformerConfig.cogvideox_5b_i2v()
    model = abstractly(config)
    args = ((1, 13, 60, 90, 32), "bfloat16"), ((1, 226, 4096), "bfloat16"), ((1,), "float32")
    out = jax.eval_shape(lambda m, *a: m(*a), model, *(jax.ShapeDtypeStruct(s, jnp.dtype(d)) for s, d in args))
    assert (out.shape, out.dtype) == ((1, 13, 60, 90, 16), jnp.bfloat16)


def test_tiny_fits_beside_the_other_weights():
    config = TransformerConfig.tiny()
    assert 9e6 < sum(int(np.prod(shape)) for shape in shapes_of(abstractly(config)).values()) < 12e6
    latents = (1, config.sample_latent_frames, config.sample_height, config.sample_width, config.in_channels)
    assert latents == (1, 5, 32, 48, 2 * config.out_channels)


def test_logical_axes_of_the_kernels():
    axes = {path: variable.axes for path, variable in parameter_paths(abstractly(SMALL)).items()}
    assert {axes[f"blocks.layers.attn.to_{x}.kernel"][-2:] for x in "qkv"} == {("embed", "gathered")}
    assert axes["blocks.layers.attn.to_out.kernel"][-2:] == ("gathered", "embed")
    assert axes["blocks.layers.ff.up.kernel"][-2:] == ("embed", "gathered")
    assert axes["blocks.layers.ff.down.kernel"][-2:] == ("gathered", "embed")


def test_patches_and_back(rng):
    x = rng.normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
    tokens = patchify(jnp.asarray(x), 2, 2)
    assert tokens.shape == (2, 2 * 3 * 4, 3 * 8)
    # Token (1, 2, 0), then channel 1, frame 0, row 1, column 0 of its patch.
    assert tokens[0, (1 * 3 + 2) * 4 + 0, 1 * 8 + 0 * 4 + 1 * 2 + 0] == x[0, 2, 5, 0, 1]
    np.testing.assert_array_equal(unpatchify(tokens, (2, 3, 4), 2, 2), x)


def test_head_channels_and_back(rng):
    x = np.arange(16)
    np.testing.assert_array_equal(to_halves(x, 8), [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15])
    y = rng.normal(size=(3, 32))
    np.testing.assert_array_equal(to_pairs(to_halves(y, 16), 16), y)


@pytest.mark.parametrize(
    ("grid", "region"),
    [
        ((30, 45), ((0, 0), (30, 45))),
        ((60, 90), ((0, 0), (30, 45))),
        ((30, 30), ((0, 8), (30, 38))),
        ((15, 45), ((8, 0), (23, 45))),
    ],
)
def test_crop_region(grid, region):
    assert crop_region(grid, (30, 45)) == region


def test_the_table_serves_its_own_length_alone(call, inputs, rng):
    latents, *rest = inputs
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    longer = jnp.concatenate([latents, latents[:, :1]], axis=1)
    before = call(model, latents, *rest), call(model, longer, *rest)
    table = model.patch_embed.pos_embedding
    table.set_value(jnp.asarray(rng.normal(size=table.shape), jnp.float32))
    after = call(model, latents, *rest), call(model, longer, *rest)
    assert not np.allclose(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_positions_and_times_matter(call, inputs):
    latents, text, times = inputs
    for config in (SMALL, dataclasses.replace(SMALL, use_learned=False)):
        model = Transformer(config, rngs=nnx.Rngs(0))
        same = call(model, jnp.ones_like(latents), text, times)
        assert np.ptp(np.asarray(same)[0, :, 0, 0, 0]) > 1e-5
        assert not np.allclose(call(model, latents, text, times), call(model, latents, text, times[::-1]))


def loss_and_gradients(execution):
    rng = np.random.default_rng(0)
    shapes = (2, 3, 4, 6, 6), (2, 5, 12), (2,)
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    graphdef, state = nnx.split(Transformer(SMALL, execution=execution, rngs=nnx.Rngs(0)))
    return jax.jit(jax.value_and_grad(lambda s: jnp.sum(jnp.square(nnx.merge(graphdef, s)(*inputs)))))(state)


@pytest.fixture(scope="module")
def plain():
    return loss_and_gradients(Execution())


@pytest.mark.parametrize("execution", [Execution("mapped", remat="attention"), Execution("xla")], ids=str)
def test_ways_of_computing_agree(plain, execution):
    want, wanted = plain
    got, gradients = loss_and_gradients(execution)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # The order of float32 sums differs; small gradients are sums of large terms.
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


def test_bfloat16_follows_float32(call, inputs):
    exact = Transformer(SMALL, rngs=nnx.Rngs(0))
    rounded = Transformer(dataclasses.replace(SMALL, param_dtype="bfloat16"), rngs=nnx.Rngs(0))
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(exact, nnx.Param))
    nnx.update(rounded, state)
    assert {variable.dtype for variable in parameter_paths(rounded).values()} == {jnp.dtype("bfloat16")}
    want, got = np.asarray(call(exact, *inputs)), call(rounded, *inputs)
    assert got.dtype == jnp.bfloat16
    # Eight bits of mantissa over two blocks.
    assert np.abs(np.asarray(got, np.float32) - want).max() < 0.03 * np.abs(want).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_no_bit(call, inputs, dtype):
    config = dataclasses.replace(SMALL, param_dtype=dtype)
    base = Transformer(config, rngs=nnx.Rngs(0))
    fresh = Transformer(dataclasses.replace(config, **LORA), rngs=nnx.Rngs(1))
    nnx.update(fresh, nnx.state(base, nnx.Param))
    assert shapes_of(nnx.state(fresh, nnx.LoRAParam))
    np.testing.assert_array_equal(
        np.asarray(call(fresh, *inputs), np.float32), np.asarray(call(base, *inputs), np.float32)
    )


def merge_lora(model):
    """The same without adapters: their products are added to the kernels."""
    arrays = {path: value[...] for path, value in parameter_paths(model).items()}
    for path in [path for path in arrays if path.endswith(".lora_a")]:
        a, b = arrays.pop(path), arrays.pop(path.replace("lora_a", "lora_b"))
        arrays[path.replace("lora_a", "kernel")] += einsum("lir,lro->lio", a, b) * model.config.lora.scale
    merged = Transformer(dataclasses.replace(model.config, lora_rank=0, lora_alpha=0.0), rngs=nnx.Rngs(0))
    fill(merged, arrays)
    return merged


def test_merged_equals_unmerged(call, inputs):
    model = adapted()
    kernel = np.asarray(model.blocks.layers.attn.to_q.kernel[...])
    merged = merge_lora(model)
    assert merged.config == SMALL
    assert not shapes_of(nnx.state(merged, nnx.LoRAParam))
    np.testing.assert_array_equal(model.blocks.layers.attn.to_q.kernel[...], kernel)
    want = np.asarray(call(model, *inputs))
    # The largest value is near 1; sums of 35 float32 products in another order.
    np.testing.assert_allclose(call(merged, *inputs), want, atol=1e-5 * np.abs(want).max())
    base = Transformer(SMALL, rngs=nnx.Rngs(0))
    assert np.abs(np.asarray(call(base, *inputs)) - want).max() > 0.01 * np.abs(want).max()


def test_nothing_to_export():
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no adapters to export"):
        from_state(nnx.state(model, nnx.LoRAParam), SMALL)


def test_exported_file(tmp_path):
    model = adapted()
    lora = from_state(nnx.state(model, nnx.LoRAParam), model.config)
    export_lora_safetensors(tmp_path / "lora.safetensors", lora, model.config)
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]
    with safe_open(tmp_path / "lora.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (3, 6.0)
    assert len(arrays) == 2 * 4 * SMALL.num_layers
    name = "transformer.transformer_blocks.1.attn1.to_out.0"
    np.testing.assert_array_equal(
        arrays[f"{name}.lora_B.weight"], np.asarray(model.blocks.layers.attn.to_out.lora_b[...])[1].T
    )
    assert published_lora(lora, model.config).keys() == arrays.keys()


def test_saved_and_loaded(call, inputs, tmp_path):
    model = Transformer(SMALL, rngs=nnx.Rngs(3))
    save_model(tmp_path, model, SMALL)
    config = load_config(tmp_path, TransformerConfig)
    assert config == SMALL
    loaded = load_into(abstractly(config), tmp_path)
    np.testing.assert_array_equal(call(loaded, *inputs), call(model, *inputs))


@pytest.mark.parametrize(
    ("latents", "text", "message"),
    [
        ((1, 3, 6, 4, 6), (1, 5, 12), "latents are 6x4; the learned position table is for 4x6 only"),
        ((1, 3, 4, 6, 6), (1, 4, 12), "text has 4 tokens; the position table needs exactly 5"),
        ((1, 3, 4, 6, 3), (1, 5, 12), "latents have 3 channels, the model takes 6"),
        ((1, 3, 4, 5, 6), (1, 5, 12), "latents of 3x4x5 are not whole patches of 1x2x2"),
        ((1, 3, 4, 6, 6), (1, 5, 13), "text is 13 wide, the model takes 12"),
    ],
)
def test_sizes_that_do_not_fit(latents, text, message):
    model = abstractly(SMALL)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda m: m(jnp.zeros(latents), jnp.zeros(text), jnp.zeros(1)), model)


def test_rope_alone_takes_any_size_and_text():
    model = abstractly(dataclasses.replace(SMALL, use_learned=False))
    out = jax.eval_shape(lambda m: m(jnp.zeros((1, 2, 8, 4, 6)), jnp.zeros((1, 9, 12)), jnp.zeros(1)), model)
    assert out.shape == (1, 2, 8, 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_head_dim": 24}, "24 is not a multiple of 16"),
        ({"sample_width": 7}, "patches of 2 do not tile 4x7"),
        ({"use_rotary": False}, "without rope"),
        ({"lora_rank": 4}, "lora_rank 4 needs lora_alpha > 0"),
    ],
)
def test_impossible_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
