"""Float weights read as int8: the same whatever the form and the mesh, and each kernel read once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.data.quantised_weights import quantised
from reangle_jax.data.weights_folder import Stored
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.quantised import quantise
from tests.conversion import dequantised, fill
from tests.networks import TRANSFORMER_SMALL, fill_randomly, write_forms

CONFIG = dataclasses.replace(TRANSFORMER_SMALL, num_attention_heads=4, lora_rank=2, lora_alpha=2.0)
INT8 = dataclasses.replace(CONFIG, kernel_dtype="int8")
INPUTS = ((2, 2, 16, 16, 8), (2, 16, 16))


def abstract(config):
    return checkpoints.abstract(lambda: Transformer(config, execution=Execution("mapped"), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    model = abstract(CONFIG)
    fill_randomly(model)
    return model


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    return write_forms(tmp_path_factory.mktemp("forms"), model, CONFIG)


def bases(tree):
    return {
        path: np.asarray(x[...]) for path, x in checkpoints.parameter_paths(checkpoints.base_parameters(tree)).items()
    }


@pytest.mark.parametrize(("form", "text"), [("safetensors", "data:1"), ("orbax", "u:4"), ("orbax", "r:2,u:2")])
def test_any_form_and_mesh(model, folders, form, text):
    mesh = meshes.make_mesh(text)
    loaded = checkpoints.load_into(abstract(INT8), folders / form, mesh=mesh)
    got, want = bases(loaded), bases(model)
    kernels = [path for path in got if got[path].dtype == np.int8]
    # The blocks' eight maps, and nothing outside of the blocks.
    assert len(kernels) == 8
    assert all(path.startswith("blocks.layers.") and path.endswith(".kernel") for path in kernels)
    for path in kernels:
        steps, scale = quantise(want.pop(path))
        np.testing.assert_array_equal(got.pop(path), steps)
        np.testing.assert_array_equal(got.pop(path.replace("kernel", "kernel_scale")), scale)
    assert got.keys() == want.keys()
    for path, values in want.items():
        np.testing.assert_array_equal(got[path], values)
    variable = loaded.blocks.layers.attn.to_out.kernel  # divided along the axis that its scales are taken over
    assert variable[...].sharding == meshes.sharding_for(variable, mesh)


def loss_and_gradients(model):
    graphdef, lora, base = nnx.split(model, nnx.LoRAParam, ...)
    keys = jax.random.split(jax.random.key(0), 2)
    latents, text = (jax.random.normal(key, shape) for key, shape in zip(keys, INPUTS, strict=True))

    @jax.jit
    def run(lora, base):
        return jax.value_and_grad(
            lambda lora: jnp.mean(jnp.square(nnx.merge(graphdef, lora, base)(latents, text, jnp.array([10.0, 700.0]))))
        )(lora)

    return run(lora, base)


def adapters(config=CONFIG):
    rng = np.random.default_rng(1)
    state = nnx.state(abstract(config), nnx.LoRAParam)
    for _, variable in nnx.to_flat_state(state):
        variable.set_value(jnp.asarray(0.1 * rng.normal(size=variable.shape), jnp.float32))
    return state


def test_adapters_train_through_it(model, folders):
    """Loss and gradients are those of a float base that holds the rounded kernels; divided, too."""
    rounded = abstract(CONFIG)
    arrays = bases(model)
    for path in arrays:
        if path.startswith("blocks.") and path.endswith(".kernel"):
            steps, scale = quantise(arrays[path])
            arrays[path] = dequantised(steps, scale)
    fill(rounded, arrays)
    nnx.update(rounded, adapters())
    want = loss_and_gradients(rounded)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want[1]))
    with meshes.use(meshes.make_mesh("r:2,u:2")):
        kept = checkpoints.load_into(abstract(INT8), folders / "orbax")
        nnx.update(kept, meshes.constrain(adapters()))
        got = loss_and_gradients(kept)
    # Sums in another order, and a scale that multiplies the sum and not its terms.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), got, want)


def test_a_kernel_is_read_once(rng):
    kernel, reads = rng.normal(size=(3, 8, 4)).astype(np.float32), []

    def read(index):
        reads.append(index)
        return kernel[index]

    stored = {"a.kernel": Stored(kernel.shape, kernel.dtype, read), "b": Stored((), np.dtype("float32"), read)}
    steps, scale = quantise(kernel)
    for order in (("a.kernel", "a.kernel_scale"), ("a.kernel_scale",)):
        found = quantised(stored, {"a.kernel": np.dtype("int8"), "b": np.dtype("float32")})
        assert found["b"] is stored["b"]
        reads.clear()
        for path in order:
            np.testing.assert_array_equal(found[path].read(()), {"a.kernel": steps, "a.kernel_scale": scale}[path])
        assert len(reads) == 3
    np.testing.assert_array_equal(found["a.kernel"].read((slice(1, 3), slice(2, 5), slice(1, 3))), steps[1:3, 2:5, 1:3])


def test_how_it_is_kept():
    assert checkpoints.as_kept(CONFIG, "auto") is CONFIG
    assert checkpoints.as_kept(CONFIG, "int8") == INT8
    assert checkpoints.as_kept(INT8, "auto") == checkpoints.as_kept(INT8, "int8") == INT8
    assert checkpoints.as_kept(CONFIG, "bfloat16") == dataclasses.replace(CONFIG, param_dtype="bfloat16")
    with pytest.raises(
        InputError, match=r"config\.base_dtype=bfloat16: W are int8, which cannot be undone: set .*auto"
    ):
        checkpoints.as_kept(INT8, "bfloat16", "W")
