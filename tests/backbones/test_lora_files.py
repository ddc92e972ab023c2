"""LoRA files: read, joined and written back."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from converters import lora as command
from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.backbones.cogvideox import lora
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer import Transformer
from tests.backbones.lora_files import ALPHA, CONFIG, PREFIX, RANK, WIDTH, published, write
from tests.networks import fill_randomly


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "a.safetensors", published(), r=RANK, lora_alpha=ALPHA)


def content(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118 (no dict)


def test_read(file):
    adapters = lora.read(file, CONFIG)
    assert (adapters.rank, adapters.alpha) == (RANK, ALPHA)
    assert lora.read(file, CONFIG).rank == RANK
    arrays = published()
    a = adapters.arrays["blocks.layers.attn.to_out.lora_a"]
    np.testing.assert_array_equal(a[1], arrays["transformer.transformer_blocks.1.attn1.to_out.0.lora_A.weight"].T)
    # Channels of q are turned by halves here, by neighbours there: the first four of a head are 0, 2, 4, 6.
    b = adapters.arrays["blocks.layers.attn.to_q.lora_b"]
    theirs = arrays["transformer.transformer_blocks.0.attn1.to_q.lora_B.weight"]
    np.testing.assert_array_equal(b[0][:, :4], theirs[[0, 2, 4, 6]].T)


def small(folder):
    checkpoints.save_config(folder, CONFIG)
    return ["--transformer", str(folder)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back_is_bitwise(tmp_path, dtype, monkeypatch, capsys):
    arrays = published(dtype=np.dtype(getattr(ml_dtypes, dtype, dtype)))
    source = write(tmp_path / "pytorch_lora_weights.safetensors", arrays, r=RANK, lora_alpha=ALPHA)
    monkeypatch.setattr(command, "_KNOWN", (CONFIG,))
    assert command.import_command(["--source", str(tmp_path), "--out", str(tmp_path / "run/lora")]) == 0
    assert "rank 3, alpha 6" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run/lora").iterdir()) == ["lora.safetensors", "state"]
    out = tmp_path / "back.safetensors"
    assert command.export_command(["--source", str(tmp_path / "run"), "--out", str(out), "--dtype", dtype]) == 0
    back, metadata = content(out)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()
    assert json.loads(metadata["lora_adapter_metadata"])["transformer.lora_alpha"] == ALPHA
    # And again from the result: the same adapters to the last bit.
    again, first = lora.read(out, CONFIG), lora.read(source, CONFIG)
    assert all(np.array_equal(again.arrays[path], first.arrays[path]) for path in first.arrays)


def test_the_orbax_state_is_the_file(file, tmp_path):
    import orbax.checkpoint as ocp

    assert command.import_command(["--source", str(file), "--out", str(tmp_path / "l"), *small(tmp_path)]) == 0
    config = dataclasses.replace(CONFIG, lora_rank=RANK, lora_alpha=ALPHA)
    adapters = lora.read(tmp_path / "l", config)
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((tmp_path / "l/state").absolute(), lora.to_state(adapters, config))
    assert lora.from_state(state, config).arrays.keys() == adapters.arrays.keys()
    for path, array in lora.from_state(state, config).arrays.items():
        np.testing.assert_array_equal(array, adapters.arrays[path])


def renamed(layer, a, b, arrays=None):
    """Adapters as another writer names them; `layer` takes the number and the target."""
    result = {}
    for name, array in (arrays or published()).items():
        number, target = name.removeprefix(PREFIX).split(".attn1.")
        target, half = target.split(".lora_")
        result[layer(number, target) + (a if half[0] == "A" else b)] = array
    return result


def dotted(prefix):
    return lambda number, target: f"{prefix}transformer_blocks.{number}.attn1.{target}."


def underscored(prefix):
    return lambda number, target: f"{prefix}transformer_blocks_{number}_attn1_{target.replace('.', '_')}."


LAYOUTS = {
    "diffusers": (dotted("transformer."), "lora_A.weight", "lora_B.weight"),
    "bare": (dotted(""), "lora_A.weight", "lora_B.weight"),
    "peft": (dotted("base_model.model."), "lora_A.weight", "lora_B.weight"),
    "peft state": (dotted("base_model.model."), "lora_A.default.weight", "lora_B.default.weight"),
    "comfyui": (dotted("diffusion_model."), "lora_A.weight", "lora_B.weight"),
    "comfyui kohya": (dotted("diffusion_model."), "lora_down.weight", "lora_up.weight"),
    "old diffusers": (dotted("transformer."), "lora.down.weight", "lora.up.weight"),
    "dots": (dotted("transformer."), "lora_down.weight", "lora_up.weight"),
    "kohya": (underscored("lora_unet_"), "lora_down.weight", "lora_up.weight"),
    "cogvideox-fun": (underscored("lora_unet__"), "lora_down.weight", "lora_up.weight"),
    "kohya transformer": (underscored("lora_transformer_"), "lora_down.weight", "lora_up.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_writers(file, tmp_path, layout):
    want = lora.read(file, CONFIG)
    path = write(tmp_path / "b.safetensors", renamed(*LAYOUTS[layout]), header={"lora_alpha": str(ALPHA)})
    got = lora.read(path, CONFIG)
    assert (got.rank, got.alpha) == (RANK, ALPHA)
    assert all(np.array_equal(got.arrays[name], array) for name, array in want.arrays.items())


def change(adapters, target):
    """What the adapters of a target add to its kernel [layers, in, out]."""
    a, b = (adapters.arrays[f"blocks.layers.attn.{target}.lora_{half}"].astype(np.float64) for half in "ab")
    return adapters.alpha / adapters.rank * a @ b


class TestAlpha:
    def test_stated(self, file):
        with pytest.raises(InputError, match="states alpha 6, and alpha 2 was given: leave that out"):
            lora.read(file, CONFIG, alpha=2.0)
        assert lora.read(file, CONFIG, alpha=6.0).alpha == 6.0

    def test_given(self, tmp_path):
        path = write(tmp_path / "b.safetensors", published())
        assert lora.read(path, CONFIG, alpha=1.5).alpha == 1.5

    def test_neither_is_scale_1_with_a_warning(self, tmp_path, caplog):
        path = write(tmp_path / "b.safetensors", published())
        with caplog.at_level(logging.WARNING, logger="reangle_jax"):
            assert lora.read(path, CONFIG).alpha == RANK
        assert "does not state its alpha: the rank, 3, is taken, which is scale 1" in caplog.text

    @pytest.mark.parametrize("key", ["lora_alpha", "transformer.lora_alpha", "ss_network_alpha"])
    def test_in_the_header(self, tmp_path, key, caplog):
        path = write(tmp_path / "b.safetensors", published(), header={key: "48.0"})
        assert lora.read(path, CONFIG).alpha == 48.0
        assert not caplog.records
        path = write(tmp_path / "b.safetensors", published(), header={key: "much"})
        with pytest.raises(InputError, match=f"{key} in its header cannot be read"):
            lora.read(path, CONFIG)

    def test_beside_the_file_in_pefts_folder(self, tmp_path, caplog):
        write(tmp_path / "adapter_model.safetensors", renamed(*LAYOUTS["peft"]))
        fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 48, "init_lora_weights": True}
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
        assert lora.read(tmp_path, CONFIG).alpha == 48.0
        assert not caplog.records
        for other, words in (
            ({"peft_type": "LOHA"}, "it is LOHA and not LoRA"),
            ({"init_lora_weights": "pissa_niter_4"}, "it began as pissa_niter_4, which changes the base weights"),
            ({"lora_alpha": "x"}, r"adapter_config.json cannot be read"),
        ):
            (tmp_path / "adapter_config.json").write_text(json.dumps(fields | other))
            with pytest.raises(InputError, match=words):
                lora.read(tmp_path, CONFIG)

    @pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
    def test_as_tensors(self, tmp_path, dtype):
        arrays = renamed(*LAYOUTS["kohya"])
        arrays |= {name.replace("lora_up.weight", "alpha"): np.array(48.0, dtype) for name in arrays if "_up" in name}
        adapters = lora.read(write(tmp_path / "b.safetensors", arrays, header={"ss_network_alpha": "None"}), CONFIG)
        assert (adapters.rank, adapters.alpha) == (RANK, 48.0)
        arrays["lora_unet_transformer_blocks_0_attn1_to_q.alpha"] = np.array(0.0, dtype)
        with pytest.raises(InputError, match=r"0.attn1.to_q: its alpha is 0, with which it has no effect"):
            lora.read(write(tmp_path / "b.safetensors", arrays), CONFIG)

    def test_rank_stabilised(self, tmp_path):
        path = write(tmp_path / "b.safetensors", published(rank=4), r=4, lora_alpha=6.0, use_rslora=True)
        adapters = lora.read(path, CONFIG)
        assert adapters.alpha / adapters.rank == 6.0 / 2


class TestMixed:
    def test_ranks_and_alphas_by_pattern(self, tmp_path):
        """Each layer's change is as if it were alone: scale alpha / rank of its own."""
        arrays = published(targets=["to_q"], rank=2) | published(1, targets=["to_v"], rank=5)
        patterns = {"rank_pattern": {"to_v": 5}, "alpha_pattern": {r"transformer_blocks\.1\.attn1\.to_v": 20.0}}
        adapters = lora.read(write(tmp_path / "a.safetensors", arrays, r=2, lora_alpha=4.0, **patterns), CONFIG)
        assert adapters.rank == 5
        alone = lora.read(write(tmp_path / "b.safetensors", published(targets=["to_q"], rank=2)), CONFIG, alpha=4.0)
        np.testing.assert_allclose(change(adapters, "to_q"), change(alone, "to_q"), rtol=1e-6)
        alone = lora.read(write(tmp_path / "b.safetensors", published(1, targets=["to_v"], rank=5)), CONFIG, alpha=5.0)
        want = change(alone, "to_v") * np.array([4.0 / 5, 20.0 / 5])[:, None, None]
        np.testing.assert_allclose(change(adapters, "to_v"), want, atol=1e-6 * np.abs(want).max())

    def test_exported_and_read_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(command, "_KNOWN", (CONFIG,))
        arrays = published(targets=["to_q"], rank=2) | published(1, targets=["to_v"], rank=5)
        source = write(tmp_path / "a.safetensors", arrays, header={"lora_alpha": "10"})
        assert command.export_command(["--source", str(source), "--out", str(tmp_path / "o.safetensors")]) == 0
        first, again = lora.read(source, CONFIG), lora.read(tmp_path / "o.safetensors", CONFIG)
        assert (again.rank, again.alpha) == (5, 5.0)
        assert all(np.array_equal(again.arrays[path], first.arrays[path]) for path in first.arrays)


class TestValues:
    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_fp8(self, tmp_path, dtype):
        arrays = published(dtype=getattr(ml_dtypes, dtype))
        path = write(tmp_path / "a.safetensors", arrays, r=RANK, lora_alpha=ALPHA)
        wide = write(tmp_path / "b.safetensors", {k: v.astype(np.float32) for k, v in arrays.items()})
        want = lora.read(wide, CONFIG, alpha=ALPHA).arrays
        assert all(np.array_equal(array, want[name]) for name, array in lora.read(path, CONFIG).arrays.items())

    @pytest.mark.parametrize("alpha", [np.nan, np.inf, 1e300])
    def test_an_alpha_that_is_no_number_to_scale_by(self, tmp_path, alpha):
        path = write(tmp_path / "a.safetensors", published(), header={"lora_alpha": str(alpha)})
        with pytest.raises(InputError, match=r"attn1.to_q: its alpha is \S+, which is no strength"):
            lora.read(path, CONFIG)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_not_finite(self, tmp_path, value):
        arrays = published(dtype=np.float64)
        name = f"{PREFIX}1.attn1.to_k.lora_B.weight"
        arrays[name][3, 1] = value
        path = write(tmp_path / "a.safetensors", arrays, r=RANK, lora_alpha=ALPHA)
        with pytest.raises(InputError, match=rf"a.safetensors: {name} holds NaN or infinity"):
            lora.read(path, CONFIG)

    def test_quantised(self, tmp_path):
        arrays = published(dtype=np.int8)
        with pytest.raises(InputError, match="is int8: quantised adapters cannot be used"):
            lora.read(write(tmp_path / "a.safetensors", arrays), CONFIG)


@pytest.fixture(scope="module")
def base():
    model = checkpoints.abstract(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    return nnx.state(model)


@pytest.fixture(scope="module")
def outputs(base):
    """The transformer's output with adapters."""
    keys = jax.random.split(jax.random.key(0), 2)
    latents, text = jax.random.normal(keys[0], (1, 2, 16, 16, 8)), jax.random.normal(keys[1], (1, 16, 16))

    @functools.partial(jax.jit, static_argnums=0)
    def apply(graphdef, state):
        return nnx.merge(graphdef, state)(latents, text, jnp.array([500.0]))

    def run(adapters):
        config = dataclasses.replace(CONFIG, lora_rank=adapters.rank, lora_alpha=adapters.alpha)
        model = checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        nnx.update(model, base)
        nnx.update(model, lora.to_state(adapters, config))
        return np.asarray(apply(*nnx.split(model)))

    return run


class TestSeveral:
    @pytest.fixture
    def two(self, tmp_path, file):
        other = write(tmp_path / "b.safetensors", published(1, rank=5), r=5, lora_alpha=2.0)
        return lora.read(file, CONFIG), lora.read(other, CONFIG)

    def test_the_change_is_the_weighted_sum(self, two):
        joined = lora.combine([(two[0], 0.5), (two[1], -2.0)])
        assert (joined.rank, joined.alpha) == (8, 8.0)
        for target in lora.TARGETS:
            # b is rounded to float32 once more.
            want = 0.5 * change(two[0], target) - 2.0 * change(two[1], target)
            np.testing.assert_allclose(change(joined, target), want, atol=1e-6 * np.abs(want).max())

    def test_outputs(self, two, outputs):
        first = outputs(two[0])
        zero = lora.combine([(two[0], 0.0)])
        none = outputs(dataclasses.replace(zero, arrays={k: np.zeros_like(v) for k, v in zero.arrays.items()}))
        assert np.abs(first - none).max() > 0.01
        np.testing.assert_array_equal(outputs(zero), none)
        # The same adapter with its scale inside, or beside another of weight 0: other roundings of the same numbers.
        for parts in ([(two[0], 1.0)], [(two[0], 1.0), (two[1], 0.0)]):
            np.testing.assert_allclose(outputs(lora.combine(parts)), first, atol=1e-5 * np.abs(first).max())

    def test_state_lies_on_the_mesh(self, two):
        joined = lora.combine([(two[0], 1.0), (two[1], 1.0)])
        config = dataclasses.replace(CONFIG, lora_rank=8, lora_alpha=8.0)
        with meshes.use(meshes.make_mesh("r:2,u:4")):
            state = lora.to_state(joined, config)
            again = lora.from_state(state, config)
        shapes = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state)}
        assert shapes == {(2, WIDTH, 1), (2, 1, WIDTH)}
        assert all(np.array_equal(again.arrays[path], joined.arrays[path]) for path in joined.arrays)
