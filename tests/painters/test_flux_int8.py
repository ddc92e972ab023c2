"""The painter with its pair of transformers kept in int8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from reangle_jax.checkpoints import nbytes
from reangle_jax.data import safetensors, weights_folder
from reangle_jax.nn.quantised import quantise
from reangle_jax.painters.flux import networks
from tests.conversion import dequantised
from tests.painters import flux_networks


def round_kernels(folder):
    """Makes the blocks' kernels what they are after they were int8."""
    for part in ("flux_transformer", "flux_controlnet"):
        header, _ = safetensors.read_header(folder / part / weights_folder.WEIGHTS)
        arrays = {path: safetensors.read(tensor) for path, tensor in header.items()}
        for path in arrays:
            if ".layers." in path and path.endswith(".kernel"):
                arrays[path] = dequantised(*quantise(arrays[path]))
        weights_folder.save_arrays(folder / part, arrays)


def velocities(painter, parameters):
    """Of the pair, for two candidates and one condition."""
    rng, config = np.random.default_rng(0), painter.networks["transformer"].config
    tokens, told, words = ((2, 24, 16), (1, 24, 20), (1, 5, config.text_embed_dim))
    tokens, told, words, pooled = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in (tokens, told, words, words[::2])
    )

    @jax.jit
    def run(parameters):
        text = networks.Text(words, pooled)
        scale = jnp.float32(0.9)
        return networks.predict(
            painter.networks, parameters, tokens, flux_networks.GRID, jnp.float32(0.5), text, jnp.ones(1), told, scale
        )

    return np.asarray(run(parameters))


def test_both_networks_are_kept_in_int8(tmp_path):
    painter = flux_networks.painter(flux_networks.write_weights(tmp_path))
    kept = dataclasses.replace(painter, base_dtype="int8")
    loaded = kept.load()
    for block in (
        loaded.transformer["joint"]["layers"]["text"],
        loaded.controlnet["blocks"]["layers"]["block"]["picture"],
    ):
        assert block["ff"]["up"]["kernel"].dtype == np.int8
    assert loaded.transformer["single"]["layers"]["out"]["kernel"].dtype == np.int8
    assert loaded.controlnet["blocks"]["layers"]["residual"]["kernel"].dtype == np.int8
    assert loaded.transformer["head"]["proj_out"]["kernel"].dtype == np.float32
    assert loaded.vae.keys() == painter.load().vae.keys()
    got = velocities(kept, loaded)
    round_kernels(tmp_path)
    want = velocities(painter, painter.load())
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    # The plan counts the bytes that there are.
    for role in ("transformer", "controlnet"):
        # A quarter for the kernels; what is outside of the blocks is large beside these few.
        assert 0.25 < nbytes(kept.networks[role].state) / nbytes(painter.networks[role].state) < 0.6
    assert nbytes(kept.networks["vae"].state) == nbytes(painter.networks["vae"].state)
