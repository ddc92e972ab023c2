"""The CogVideoX transformer against diffusers, on random weights, through the conversion table.

Tolerances are relative to the largest value: 1e-5 for a module, whose sums are short, and 1e-4 for the whole. What
differs is the order of float32 sums, and angles that diffusers rounds to float32 before taking their sines. The time
embedding has 1e-4: its angles reach 999 rad, and one unit in a frequency's last place there is 6e-5 rad.
"""

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from converters.tables import cogvideox_transformer
from reangle_jax.backbones.cogvideox import lora
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.cogvideox.positions import rope_table, sincos_table
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

MODULE, TIME, WHOLE = 1e-5, 1e-4, 1e-4
SMALL = TransformerConfig(
    num_layers=2,
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=8,
    out_channels=4,
    time_embed_dim=24,
    text_embed_dim=20,
    max_text_seq_length=7,
    sample_frames=49,
    sample_height=8,
    sample_width=12,
)
I2V = dataclasses.replace(SMALL, use_learned=True)
T2V = dataclasses.replace(SMALL, in_channels=4)
SINCOS = dataclasses.replace(SMALL, in_channels=4, use_rotary=False)
V1_5 = dataclasses.replace(SMALL, patch_size_t=2, ofs_embed_dim=24, sample_frames=81, sample_height=30, sample_width=30)
# Config and latent frames, height, width.
CASES = {
    "i2v_learned_table": (I2V, 13, 8, 12),
    "i2v_other_length": (I2V, 3, 8, 12),
    "rope_only": (T2V, 5, 8, 12),
    "rope_other_shape": (T2V, 2, 14, 6),
    "sincos": (SINCOS, 13, 8, 12),
    "sincos_other_shape": (SINCOS, 2, 6, 10),
    "v1_5": (V1_5, 4, 8, 6),
    "tiny": (dataclasses.replace(TransformerConfig.tiny(), num_layers=1), 5, 32, 48),
}


def original(config):
    """diffusers' model with every parameter away from its initial value."""
    torch.manual_seed(0)
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        time_embed_dim=config.time_embed_dim,
        ofs_embed_dim=config.ofs_embed_dim,
        text_embed_dim=config.text_embed_dim,
        num_layers=config.num_layers,
        sample_width=config.sample_width,
        sample_height=config.sample_height,
        sample_frames=config.sample_frames,
        patch_size=config.patch_size,
        patch_size_t=config.patch_size_t,
        max_text_seq_length=config.max_text_seq_length,
        use_rotary_positional_embeddings=config.use_rotary,
        use_learned_positional_embeddings=config.use_learned,
        patch_bias=config.patch_size_t is None,
    ).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name and name.endswith("weight") and value.ndim == 1:
                value.copy_(1 + 0.3 * torch.randn(value.shape))
            elif value.ndim == 1:
                value.copy_(0.3 * torch.randn(value.shape))
            elif name.endswith("pos_embedding"):
                value.copy_(torch.randn(value.shape))
            else:
                value.copy_(torch.randn(value.shape) * value[0].numel() ** -0.5)
    return model


def load(torch_model, config):
    """Our model with the same parameters."""
    source = {name: value.numpy().astype(np.float32) for name, value in torch_model.state_dict().items()}
    model = abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(v.shape) for path, v in parameter_paths(model).items() if "lora" not in path}
    arrays = convert(source, cogvideox_transformer.table(config), shapes)
    fill(model, arrays)
    back = revert(arrays, cogvideox_transformer.table(config))
    assert back.keys() == source.keys()
    assert all(np.array_equal(back[name], source[name]) for name in source)
    return model


def inputs(rng, config, frames, height, width, batch=2):
    """Latents (channels last), text and different times."""
    latents = rng.normal(size=(batch, frames, height, width, config.in_channels)).astype(np.float32)
    text = rng.normal(size=(batch, config.max_text_seq_length, config.text_embed_dim)).astype(np.float32)
    return latents, text, np.array([999.0, 19.0], np.float32)[:batch]


def pipeline_rope(config, frames, height, width):
    """The tables that the published pipeline prepares for a latent video."""
    fields = types.SimpleNamespace(
        patch_size=config.patch_size,
        patch_size_t=config.patch_size_t,
        sample_width=config.sample_width,
        sample_height=config.sample_height,
        attention_head_dim=config.attention_head_dim,
    )
    pipeline = types.SimpleNamespace(
        vae_scale_factor_spatial=8, transformer=types.SimpleNamespace(config=fields), device="cpu"
    )
    return diffusers.CogVideoXImageToVideoPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, torch.device("cpu")
    )


def run_original(model, config, latents, text, times):
    """diffusers' output, channels last."""
    rope = pipeline_rope(config, *latents.shape[1:4]) if config.use_rotary else None
    ofs = torch.full((1,), 2.0) if config.ofs_embed_dim else None
    with torch.no_grad():
        y = model(
            torch.from_numpy(latents).permute(0, 1, 4, 2, 3),
            torch.from_numpy(text),
            torch.from_numpy(times),
            ofs=ofs,
            image_rotary_emb=rope,
        ).sample
    return y.permute(0, 1, 3, 4, 2).numpy()


def apply(model, method, *args):
    """Runs a jitted function of the model."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *args: method(nnx.merge(graphdef, state), *args))(state, *args)


def error(ours, theirs):
    """Largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module")
def measured():
    """Collects the errors, and prints them (-s) at the end."""
    errors = {}
    yield errors
    print("".join(f"\n{name}: {value:.1e}" for name, value in errors.items()))


@pytest.mark.parametrize("case", CASES)
def test_whole(rng, case, measured):
    config, *shape = CASES[case]
    theirs = original(config)
    ours = load(theirs, config)
    args = inputs(rng, config, *shape)
    got = apply(ours, lambda model, *args: model(*args), *args)
    measured[case] = error(got, run_original(theirs, config, *args))
    assert measured[case] < WHOLE


@pytest.mark.parametrize("case", ["i2v_learned_table", "rope_only", "sincos", "v1_5"])
def test_modules(rng, case, measured):
    config, *shape = CASES[case]
    theirs = original(config)
    ours = load(theirs, config)
    latents, text, times = inputs(rng, config, *shape)
    seen = {}

    def keep(name):
        return lambda module, args, kwargs, output: seen.__setitem__(name, (args, kwargs, output))

    watched = ("patch_embed", "time_embedding", "transformer_blocks.0", "norm_final", "proj_out")
    for name in watched:
        theirs.get_submodule(name).register_forward_hook(keep(name), with_kwargs=True)
    run_original(theirs, config, latents, text, times)
    length = config.max_text_seq_length

    def close(name, got, want, tolerance=MODULE):
        measured[f"{case}.{name}"] = error(got, want.detach().numpy())
        assert measured[f"{case}.{name}"] < tolerance

    close("patch_embed", apply(ours, lambda m, *a: m.patch_embed(*a), latents, text), seen["patch_embed"][2])
    close("time_embedding", apply(ours, lambda m, t: m.time_embedding(t), times), seen["time_embedding"][2], TIME)

    kwargs, (video, words) = seen["transformer_blocks.0"][1:]
    x = torch.cat([kwargs["encoder_hidden_states"], kwargs["hidden_states"]], 1).numpy()
    time = torch.nn.functional.silu(kwargs["temb"]).numpy()

    def first_block(model, x, time):
        graphdef, state = nnx.split(model.blocks.layers)
        block = nnx.merge(graphdef, jax.tree.map(lambda array: array[0], state))
        return block(x, time, model.rope(latents.shape, length), length, x.shape[1])

    close("block", apply(ours, first_block, x, time), torch.cat([words, video], 1))
    before = seen["norm_final"][0][0].numpy()
    close("head", apply(ours, lambda m, *a: m.head(*a), before, time), seen["proj_out"][2])


@pytest.mark.parametrize("shape", [(13, 60, 90), (5, 16, 24), (3, 60, 60), (2, 90, 60)])
def test_rope_tables_are_the_pipelines(shape):
    config = TransformerConfig.cogvideox_5b_i2v()
    # Float32 angles reach 45 rad in diffusers: 45 * 2^-24 = 2.7e-6.
    for ours, theirs in zip(rope_table(config, *shape), pipeline_rope(config, *shape), strict=True):
        theirs = theirs.numpy()
        assert np.array_equal(theirs[:, ::2], theirs[:, 1::2])
        np.testing.assert_allclose(np.asarray(ours), theirs[:, ::2], atol=5e-6)


def test_rope_tables_of_version_1_5():
    config = TransformerConfig.cogvideox1_5_5b_i2v()
    for ours, theirs in zip(rope_table(config, 6, 20, 34), pipeline_rope(config, 6, 20, 34), strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs.numpy()[:, ::2], atol=5e-6)


def test_sincos_table():
    theirs = diffusers.models.embeddings.get_3d_sincos_pos_embed(96, (12, 7), 5, 1.875, 1.0, output_type="pt")
    config = dataclasses.replace(SMALL, num_attention_heads=6, use_rotary=False)
    ours = sincos_table(config, 5, 14, 24)
    np.testing.assert_allclose(np.asarray(ours), theirs.flatten(0, 1).numpy(), atol=2e-6)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The same adapters, not zero, in both libraries."""
    peft = pytest.importorskip("peft")
    config = dataclasses.replace(T2V, lora_rank=4, lora_alpha=6.0)
    theirs = original(config)
    ours = load(theirs, config)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    theirs.add_adapter(peft.LoraConfig(r=4, lora_alpha=6.0, target_modules=targets, init_lora_weights=False))
    arrays = {}
    for name, value in peft.get_peft_model_state_dict(theirs).items():
        with torch.no_grad():
            value.copy_(0.3 * torch.randn(value.shape))
        arrays[f"transformer.{name}"] = value.numpy().copy()
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(arrays, file)
    nnx.update(ours, lora.to_state(lora.read(file, config, alpha=config.lora_alpha), config))
    return config, theirs, ours, arrays


def test_adapters(rng, adapted, measured):
    config, theirs, ours, arrays = adapted
    args = inputs(rng, config, 2, 8, 12)
    got = apply(ours, lambda model, *args: model(*args), *args)
    want = run_original(theirs, config, *args)
    theirs.disable_adapters()
    base = run_original(theirs, config, *args)
    theirs.enable_adapters()
    assert error(base, want) > 0.05
    measured["lora"] = error(got, want)
    assert measured["lora"] < WHOLE
    published = lora.published_lora(lora.from_state(nnx.state(ours, nnx.LoRAParam), config), config)
    assert published.keys() == arrays.keys()
    assert all(np.array_equal(published[name], arrays[name]) for name in arrays)


def test_exported_adapters_load_in_diffusers(rng, adapted, tmp_path):
    config, theirs, ours, _ = adapted
    adapters = lora.from_state(nnx.state(ours, nnx.LoRAParam), config)
    lora.export_lora_safetensors(tmp_path / "lora.safetensors", adapters, config)
    args = inputs(rng, config, 2, 8, 12)
    want = run_original(theirs, config, *args)
    fresh = original(config)
    pipeline = diffusers.CogVideoXPipeline
    tensors, metadata = pipeline.lora_state_dict(
        tmp_path, weight_name="lora.safetensors", return_lora_metadata=True, local_files_only=True
    )
    pipeline.load_lora_into_transformer(tensors, fresh, metadata=metadata)
    # Alpha is not the rank here: a lost one would change the result.
    assert fresh.peft_config["default_0"].lora_alpha == 6.0
    np.testing.assert_array_equal(run_original(fresh, config, *args), want)
