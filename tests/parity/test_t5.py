"""The T5 encoder against transformers, on random weights, through the conversion table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables.t5 import TABLE
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.text.t5 import T5Config, T5Encoder, relative_buckets
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {
    # Heads together wider than the tokens; three blocks.
    "small": T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=48, num_layers=3, num_heads=4),
    "tiny": T5Config.tiny(),
    "other_buckets": T5Config(
        vocab_size=64, d_model=48, d_kv=8, d_ff=40, num_layers=2, num_heads=3, relative_buckets=16,
        relative_max_distance=40,
    ),
}  # fmt: skip


def original(config):
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.relative_buckets,
            relative_attention_max_distance=config.relative_max_distance,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms away from 1 and a bias that matters: the initial values would hide a wrong one. Logits stay of
            # order 1: a saturated softmax would magnify rounding on both sides.
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape))
            elif "shared" in name or "bias" in name:
                parameter.copy_(torch.randn(parameter.shape))
            else:
                scale = parameter.shape[1] ** -0.5 * (config.d_kv**-0.5 if ".q." in name else 1.0)
                parameter.copy_(torch.randn(parameter.shape) * scale)
    return model


def tensors_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_encoder(rng, name):
    config, theirs = CONFIGS[name], original(CONFIGS[name])
    ours = abstract(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(ours).items()}
    parameters = convert(tensors_of(theirs), TABLE, shapes)
    fill(ours, parameters)
    # Longer than the greatest distance that has its own bucket.
    ids = rng.integers(0, config.vocab_size, (2, 150))
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids)).last_hidden_state.numpy()
    got = jax.jit(lambda model, ids: model(ids))(ours, jnp.asarray(ids, jnp.int32))
    # Float32 on both sides, outputs of order 1 (they end in a norm); sums in another order.
    assert 0.5 < expected.std() < 3
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_table_goes_back_and_forth():
    config, tensors = CONFIGS["small"], tensors_of(original(CONFIGS["small"]))
    model = abstract(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    back = revert(convert(tensors, TABLE, shapes), TABLE)
    assert set(back) == set(tensors) - {"encoder.embed_tokens.weight"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 40), (8, 20)])
def test_buckets(buckets, distance):
    length = 600
    way = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    function = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    expected = function(way, bidirectional=True, num_buckets=buckets, max_distance=distance)
    np.testing.assert_array_equal(relative_buckets(length, buckets, distance), expected.numpy())
