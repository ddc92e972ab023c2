"""Motion learning: what is trained and what is not, the mask, resuming."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import config, learning
from reangle_jax.arrays import to_unit
from reangle_jax.backbones.cogvideox import networks as of_cogvideox
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.config import Finetune
from reangle_jax.data import files
from reangle_jax.geometry import cameras, splat, trajectories
from reangle_jax.stages import finetune
from tests import networks
from tests.networks import FRAMES, HEIGHT, TEXT_LENGTH, WIDTH

pytestmark = pytest.mark.usefixtures("optax_promotion")
OPTIONS = Finetune(
    steps=4,
    rank=2,
    alpha=2.0,
    learning_rate=1e-2,
    decay=0.0,
    batch_size=2,
    masked=True,
    betas=(0.9, 0.95),
    weight_decay=1e-3,
    max_grad_norm=1.0,
    condition_dropout=0.05,
    noise_first_frame=True,
    checkpoint_every=0,
)


@pytest.fixture(scope="module")
def backbone(small_weights):
    return networks.backbone(small_weights)


@pytest.fixture(scope="module")
def loaded(backbone):
    """The denoiser's parameters and the encoder's."""
    return backbone.load_denoiser(), backbone.load_coder(decodes=False)


@pytest.fixture(scope="module")
def data(backbone, loaded):
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (3, FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8)
    visible = np.ones(videos.shape[:-1], bool)
    visible[1:, :, :, 32:] = False
    data = finetune.encode_videos(backbone, loaded[1], lambda number: (videos[number], visible[number]), len(videos))
    return data._replace(text=jnp.asarray(backbone.embed(["a", "b", "a"])))


def test_encoded_set_has_latent_shapes_and_masks(data):
    assert data.mean.shape == data.logvar.shape == (3, 2, HEIGHT // 4, WIDTH // 4, 4)
    assert data.mask.shape == (3, 2, HEIGHT // 4, WIDTH // 4)
    assert float(data.mask[0].min()) == 1.0
    np.testing.assert_array_equal(np.asarray(data.mask[1, 0, 0]), [1] * 8 + [0] * 8)
    np.testing.assert_array_equal(data.text[0], data.text[2])


def run_steps(backbone, loaded, data, count, options=OPTIONS):
    optimiser = finetune.make_optimiser(options)
    step = finetune.make_step(backbone, options, optimiser)
    state, losses = learning.init(backbone.init_adapters(key=jax.random.key(1)), optimiser), []
    for number in range(count):
        state, numbers = step(state, *loaded, data, jax.random.fold_in(jax.random.key(2), number))
        losses.append(float(numbers["loss"]))
    return state.parameters, losses, step


def test_the_rate_is_constant_or_falls_to_zero_at_the_end():
    assert finetune.learning_rate(OPTIONS) == 1e-2
    falling = finetune.learning_rate(dataclasses.replace(OPTIONS, steps=10, decay=0.4))
    assert callable(falling)
    rates = [float(falling(number)) for number in (0, 5, 6, 8, 10)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 1e-2, 5e-3, 0.0], atol=1e-8)


def test_only_adapters_change_and_one_program_serves_all_steps(backbone, loaded, data):
    before = jax.tree.map(np.array, loaded[0])
    lora, losses, step = run_steps(backbone, loaded, data, 3)
    fresh = backbone.init_adapters(key=jax.random.key(1))
    assert all(np.isfinite(losses))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), lora, fresh)))
    # The frozen base is the same to the last bit.
    jax.tree.map(np.testing.assert_array_equal, before, loaded[0])
    assert step._cache_size() == 1


def test_fresh_adapters_change_no_bit(backbone, loaded, small_weights):
    folder = small_weights / "transformer"
    plain = of_cogvideox.load(of_cogvideox.describe_transformer(folder), folder)
    lora = backbone.init_adapters(key=jax.random.key(1))
    keys = jax.random.split(jax.random.key(3), 3)
    latents, condition = (jax.random.normal(k, (1, 2, 16, 16, 4)) for k in keys[:2])
    text = jax.random.normal(keys[2], (1, TEXT_LENGTH, 16))
    t = jnp.array([500])
    with_lora = of_cogvideox.predictor(backbone.transformer.graphdef)(latents, t, lora, loaded[0], condition, text)
    without = of_cogvideox.predictor(plain.graphdef)(latents, t, nnx.State({}), plain.state, condition, text)
    np.testing.assert_array_equal(with_lora, without)


def test_loss_looks_at_visible_latents_only(backbone, loaded, data):
    lora = backbone.init_adapters(key=jax.random.key(1))
    one = dataclasses.replace(OPTIONS, batch_size=1)

    def loss(mask, options=one):
        given = (lora, *loaded, data._replace(mask=mask), options)
        return float(finetune.motion_loss(backbone, *given, key=jax.random.key(7)))

    ones, zeros = jnp.ones_like(data.mask), jnp.zeros_like(data.mask)
    left = ones.at[:, :, :, 4:].set(0)
    plain = loss(zeros, dataclasses.replace(one, masked=False))
    assert loss(zeros) == 0.0
    # 1e-6: sums in another order.
    assert loss(ones) == pytest.approx(plain, rel=1e-6)
    assert loss(left) + loss(ones - left) == pytest.approx(plain, rel=1e-6)
    assert 0 < loss(left) < plain


def test_what_moves_counts_more_in_loss_and_gradient(backbone, loaded, data):
    """A latent's weight is 1 + k times the share of its pixels that move; none where it is not visible."""
    clip = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    visible, moving = np.ones(clip.shape[:3], bool), np.zeros(clip.shape[:3], bool)
    visible[:, :, 32:] = False
    moving[1, 8:10, :8] = moving[1, 8:10, 40:] = True  # a quarter of a group's frames, half of a row of latents
    found = finetune.encode_videos(backbone, loaded[1], lambda _: (clip, visible, moving), 1, 16.0).mask[0]
    weights = np.zeros(found.shape)
    weights[:, :, :8] = 1.0
    weights[1, 2, :2] = 1.0 + 16.0 / 8
    np.testing.assert_array_equal(found, weights)

    lora, key = backbone.init_adapters(key=jax.random.key(1)), jax.random.key(7)
    one = dataclasses.replace(OPTIONS, batch_size=1)

    def gradient(mask, **options):
        given = dataclasses.replace(one, **options)
        spread = data._replace(mask=jnp.broadcast_to(jnp.asarray(mask, jnp.float32), data.mask.shape))
        rest = (*loaded, spread, given)
        return jax.tree.leaves(jax.grad(functools.partial(finetune.motion_loss, backbone))(lora, *rest, key=key))

    shown, moved = (np.asarray(weights > least, np.float32) for least in (0, 1))
    parts = [gradient(mask) for mask in (shown, moved)]
    for options in ({"moving_weight": 16.0}, {"moving_weight": 16.0, "masked": False}):
        for whole, plain, extra in zip(gradient(weights, **options), *parts, strict=True):
            np.testing.assert_allclose(whole, plain + 2 * extra, rtol=1e-4, atol=1e-7)


def test_what_moves_is_what_the_evaluation_calls_so(tmp_path):
    """In the clip and in its warp, which another camera sees: a square that jumps aside, on a floor that stays."""
    values = config.get_tiny().to_dict() | {"video": "v.mp4", "train_views": ("left:8",), "num_frames": 5}
    values["finetune"]["moving_weight"] = 3.0
    settings = config.parse(values)
    frames = np.random.default_rng(0).integers(90, 110, (1, 64, 64, 3)).astype(np.uint8).repeat(5, axis=0)
    frames[3, 20:30, 20:30] = 255
    depth = np.full(frames.shape[:3], 2.0, np.float32)
    K = cameras.default_intrinsics(64, 64)
    source = cameras.identity_cameras(K, 5)
    target = trajectories.view_cameras(trajectories.parse_view("left:8"), source.K[0], 2.0, 5, "dynamic")
    warp, visible = map(np.asarray, splat.warp_video(jnp.asarray(frames), jnp.asarray(depth), source, target))
    files.atomic_savez(tmp_path / "input/frames.npz", frames=frames, fps=np.float64(8))
    files.atomic_savez(tmp_path / "input/depth.npz", depth=depth)
    files.atomic_savez(tmp_path / "views/left_8/warp.npz", frames=warp, visible=visible)
    for path, path_cameras in (("input", source), ("views/left_8", target)):
        cameras.save_cameras(tmp_path / path / "cameras.json", path_cameras, 64, 64, 2.0)
    own, seen = finetune._marks(settings, tmp_path)
    expected = np.zeros(own.shape, bool)
    expected[3, 20:30, 20:30] = True
    np.testing.assert_array_equal(own, expected)
    # The warp mixes the square's rim with the floor, 90 to 109, which is more than 40 levels darker.
    least, most = (visible & (warp.max(axis=-1) > level) for level in (149, 130))
    assert not (least & ~seen).any()
    assert not (seen & ~most).any()
    assert 80 < seen.sum() < 130
    assert (seen != own).any()  # another camera sees it elsewhere

    (unit,) = finetune.units(settings)
    assert {"input/depth.npz", "input/cameras.json", "views/left_8/cameras.json"} < set(unit.inputs)
    values["finetune"]["moving_weight"] = 0.0
    (unit,) = finetune.units(config.parse(values))
    assert unit.inputs == ("input/frames.npz", "views/left_8/warp.npz")


def test_of_several_times_the_noisiest_is_learnt_at(backbone, loaded, data, monkeypatch):
    seen, plain = [], type(backbone).noised
    monkeypatch.setattr(type(backbone), "noised", lambda self, z, eps, t: (seen.append(t), plain(self, z, eps, t))[1])
    key = jax.random.key(7)
    drawn = backbone.times(8, key=jax.random.split(key, 8)[6])
    lora = backbone.init_adapters(key=jax.random.key(1))
    for count in (1, 4):
        options = dataclasses.replace(OPTIONS, noisiest_of=count)
        finetune.motion_loss(backbone, lora, *loaded, data, options, key=key)
    np.testing.assert_array_equal(seen[0], backbone.times(2, key=jax.random.split(key, 8)[6]))
    np.testing.assert_array_equal(seen[1], drawn.reshape(2, 4).max(axis=1))


def test_condition_in_training_is_the_condition_in_sampling(backbone, loaded, data):
    condition = backbone.condition(loaded[1], to_unit(data.first[:1]), key=jax.random.key(0))
    mean, logvar = backbone.encode(loaded[1], data.first[:1, None])
    # The first latent lies about the scaled posterior mean, within 6 deviations; the rest is zero.
    deviation = jnp.exp(0.5 * logvar) * backbone.vae.config.scaling_factor
    offset = jnp.abs(condition[:, :1] - mean * backbone.vae.config.scaling_factor)
    assert bool(jnp.all(offset <= 6 * deviation + 1e-6))
    assert bool(jnp.all(condition[:, 1:] == 0))


class Recorder(CogVideoXBackbone):
    """A transformer whose tokens span two latent frames, for clips of three: keeps what it is given, predicts zero."""

    seen: typing.ClassVar = []

    @property
    def front(self):
        return -3 % 2

    def predict(self, adapters, base, noised, condition, text, t):
        self.seen[:] = [noised, condition]
        return jnp.zeros_like(noised)

    def condition(self, coder, image, *, key):
        return of_cogvideox.image_condition(self._encoding(coder), image, 3 + self.front, key=key)


def test_odd_clips_are_filled_up_in_front_for_tokens_of_two_frames(backbone, loaded, data):
    model = Recorder(**{field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)})
    three = data._replace(
        mean=jnp.concatenate([data.mean, data.mean[:, :1]], axis=1),
        logvar=jnp.full((3, 3, *data.logvar.shape[2:]), -30.0),
        mask=jnp.zeros((3, 3, *data.mask.shape[2:])).at[:, 0].set(1.0),
    )
    options = dataclasses.replace(OPTIONS, batch_size=1, condition_dropout=0.0)

    def loss(data):
        return float(finetune.motion_loss(model, None, *loaded, data, options, key=jax.random.key(7)))

    first = loss(three)
    noised, condition = map(np.asarray, model.seen)
    assert noised.shape[1] == condition.shape[1] == 4
    assert condition[:, 0].any()
    assert not condition[:, 1:].any()
    # The copy counts where the frame that it copies counts: of four frames' v the masks of the first and the others
    # take two each, and together all.
    last = loss(three._replace(mask=1.0 - three.mask))
    both = loss(three._replace(mask=jnp.ones_like(three.mask)))
    assert 0 < first < both
    assert first + last == pytest.approx(both, rel=1e-5)


def test_training_lowers_the_loss(backbone, loaded, data):
    options = dataclasses.replace(OPTIONS, batch_size=4, learning_rate=3e-2)
    _, losses, _ = run_steps(backbone, loaded, data, 40, options)
    assert np.mean(losses[-10:]) < 0.97 * np.mean(losses[:10])
