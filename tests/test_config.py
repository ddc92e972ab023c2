import dataclasses
from pathlib import Path

import numpy as np
import pytest

from reangle_jax import config
from reangle_jax.backbones.interface import Sampling
from reangle_jax.cameras.views import folder_name
from reangle_jax.config import Sample, reading, table
from reangle_jax.data import lora_files
from reangle_jax.errors import InputError


def settings(**changes):
    """Parsed settings of a default config with dotted keys changed (dots written as __)."""
    c = config.get_default()
    c.video = "clip.mp4"
    with c.unlocked():
        for key, value in changes.items():
            group, _, leaf = key.rpartition("__")
            target = c[group] if group else c
            target[leaf] = value
    return config.parse(c)


def raw(**changes):
    """The same from a plain dict, which has no types of its own."""
    values = config.get_default().to_dict()
    values["video"] = "clip.mp4"
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (values[group] if group else values)[leaf] = value
    return config.parse(values)


def test_defaults_are_the_papers():
    s = settings()
    assert (s.num_frames, s.height, s.width, s.model) == (49, 480, 720, "cogvideox-5b-i2v")
    f = s.finetune
    assert (f.steps, f.rank, f.alpha, f.learning_rate, f.decay, f.batch_size) == (400, 128, 128.0, 1e-4, 0.0, 1)
    assert (f.betas, f.weight_decay, f.max_grad_norm, f.condition_dropout) == ((0.9, 0.95), 1e-3, 1.0, 0.05)
    assert (f.masked, f.noise_first_frame) == (True, True)
    assert (s.sample.steps, s.sample.guidance_scale, s.sample.dynamic_guidance, s.sample.sampler) == (
        40,
        6.0,
        True,
        "ddim",
    )
    assert len(s.train_views) == 6
    assert s.vae_tiles == "auto"


def test_settings_are_frozen_and_typed():
    s = raw(fps=24, finetune__alpha=64, seed=3.0, views=["left:5"], focal="260", pivot_depth=3)
    assert (s.fps, s.finetune.alpha, s.seed, s.views, s.focal, s.pivot_depth) == (
        24.0,
        64.0,
        3,
        ("left:5",),
        260.0,
        3.0,
    )
    assert isinstance(s.seed, int)
    assert isinstance(s.fps, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.seed = 1
    hash(s)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, r"config\.seeds is not a setting: did you mean config\.seed\?"),
        ({"finetune__rnk": 1}, r"config\.finetune\.rnk is not a setting: did you mean config\.finetune\.rank\?"),
        ({"zzz": 1}, r"config\.zzz is not a setting: there are video, caption"),
        ({"video": ""}, r"config\.video is not set"),
        ({"num_frames": 16}, r"config\.num_frames=16 is not possible: it must be 1 \+ 4k, such as 13 or 17"),
        ({"num_frames": 0}, "such as 1 or 5"),
        ({"num_frames": 17.5}, r"config\.num_frames=17\.5 has the wrong type \(float\): it must be a whole number"),
        ({"height": 100}, r"config\.height=100 is not possible: it must be a multiple of 16, such as 96 or 112"),
        ({"width": 8}, "config.width=8"),
        ({"start": 10**23}, f"config.start={10**23} is not possible: it must be at least 0 and at most 1000000000"),
        ({"num_frames": 4 * 10**20 + 1}, r"is not possible: it must be 1 \+ 4k and at most 1000000000"),
        ({"start": -1}, "config.start=-1 is not possible: it must be at least 0"),
        ({"fps": float("nan")}, "config.fps=nan is not finite: it must be a number"),
        ({"fps": -2}, "config.fps=-2.0"),
        ({"seed": -1}, "config.seed=-1"),
        ({"seed": True}, "config.seed=True has the wrong type"),
        ({"infill": 1}, "config.infill=1 has the wrong type"),
        ({"caption": None}, "config.caption=None has the wrong type"),
        ({"finetune": 3}, "config.finetune is a group of settings"),
        ({"depth_kind": "metrc"}, r"config\.depth_kind='metrc'.*did you mean metric\?"),
        ({"depth": "depth.exr"}, "config.depth='depth.exr'.*npy"),
        ({"depth": "none.npy"}, r"config\.depth: no such file: none\.npy"),
        ({"focal": "wide"}, "config.focal='wide' is not possible: it must be auto or a number above 0"),
        ({"focal": 0}, "config.focal=0.0"),
        ({"seed": 10**400}, r"config\.seed=10+\.\.\. has the wrong type \(int\): it must be a whole number"),
        ({"focal": float("inf")}, "config.focal=inf"),
        ({"pivot_depth": "nan"}, "config.pivot_depth=nan"),
        ({"mode": "still"}, "config.mode='still' is not possible: it must be one of dynamic, static"),
        ({"views": ()}, "config.views is empty"),
        ({"views": "left:10"}, r"config\.views='left:10' has the wrong type \(str\): it must be a tuple"),
        ({"views": ("lft:10",)}, "config.views: unknown motion 'lft'"),
        ({"views": ("left:400",)}, "config.views: .*out of range"),
        ({"views": ("left",)}, "config.views: "),
        ({"train_views": ("left:x",)}, "config.train_views: "),
        ({"views": ("left:10", "left:10")}, "config.views: 'left:10' and 'left:10' share the folder left_10: keep one"),
        (
            {"views": ("path/transforms.json",)},
            "config.views: path/transforms.json: no such file; give a camera file",
        ),
        ({"model": "cogvideox-5b"}, r"config\.model='cogvideox-5b'.*did you mean cogvideox-5b-i2v\?"),
        ({"mesh": "u=8"}, "config.mesh='u=8' is not possible"),
        (
            {"execution__attention": "flash"},
            r"config\.execution\.attention='flash' is not possible: it must be one",
        ),
        ({"execution__dtype": "bfloat"}, r"config\.execution\.dtype='bfloat'.*did you mean bfloat16\?"),
        ({"execution__remat": True}, r"config\.execution\.remat=True has the wrong type"),
        ({"sample__shared_noise": True}, r"config\.sample\.shared_noise=True has the wrong type"),
        ({"sample__shared_noise": "on"}, r"config\.sample\.shared_noise='on' .* one of off, same, warped"),
        ({"first_frames__model": "flux.1"}, r"config\.first_frames\.model='flux\.1' .*did you mean flux\.1-dev\?"),
        ({"first_frames__candidates": 0}, "config.first_frames.candidates=0 is not possible: it must be from 1 to"),
        ({"first_frames__eta": 1.5}, r"config\.first_frames\.eta=1\.5 is not possible: it must be from 0 to 1"),
        ({"first_frames__guided": "0.25:1.5"}, r"config\.first_frames\.guided='0\.25:1\.5' .* from 0 to 1 in order"),
        ({"first_frames__guided": "0.5:0.25"}, r"config\.first_frames\.guided='0\.5:0\.25' is not possible"),
        ({"first_frames__guided": "half"}, r"config\.first_frames\.guided='half' .* such as 0\.25:1\.0"),
        ({"first_frames__guided": "nan:1"}, r"config\.first_frames\.guided='nan:1' is not possible"),
        ({"finetune__moving_weight": -1.0}, r"config\.finetune\.moving_weight=-1\.0 .* it must be from 0 to 1000"),
        ({"first_frames__scale": 0.5}, r"config\.first_frames\.scale=0\.5"),
        ({"first_frames__every": 0}, r"config\.first_frames\.every=0"),
        ({"first_frames__noise": "white"}, r"config\.first_frames\.noise='white'"),
        (
            {"views": ("left:8", "up:8"), "first_frames__order": ("left:8",)},
            r"config\.first_frames\.order='left:8' .* each of config\.views once: left:8, up:8",
        ),
        ({"first_frames__given": "nowhere"}, r"config\.first_frames\.given: no such file or folder: nowhere"),
        (
            {"edit__caption": "a fox", "first_frames__model": "flux.1-fill-dev"},
            r"config\.edit\.caption: flux\.1-fill-dev only fills holes: set .*model to flux\.1-dev or tiny",
        ),
        (
            {"first_frames__strength": 0.5},
            r"config\.first_frames\.strength=0\.5 .* set config\.first_frames\.infill=True too",
        ),
        (
            {"first_frames__candidates": 5, "first_frames__fewest": 6},
            r"config\.first_frames\.fewest=6 .* at most config\.first_frames\.candidates=5, or 0",
        ),
        ({"edit__skip": 28}, r"config\.edit\.skip=28 is not possible: it must be below config\.edit\.steps=28"),
        ({"finetune__steps": -1}, "config.finetune.steps=-1"),
        ({"finetune__rank": 0}, "config.finetune.rank=0"),
        ({"finetune__betas": (0.9,)}, "config.finetune.betas"),
        ({"finetune__betas": (0.9, 1.0)}, "config.finetune.betas"),
        ({"finetune__condition_dropout": 1.5}, r"config\.finetune\.condition_dropout=1\.5.*from 0 to 1"),
        ({"finetune__max_grad_norm": 0}, "config.finetune.max_grad_norm"),
        ({"sample__steps": 0}, "config.sample.steps=0"),
        ({"num_frames": 10**5000}, r"config\.num_frames=<int of too many digits> has the wrong type"),
        ({"views": [10**5000]}, r"config\.views=<list of too many digits> has the wrong type \(list\): it must be"),
        ({"num_frames": "9" * 5000}, r"config\.num_frames='9{196}\.\.\. has the wrong type"),
        ({"views": np.zeros((2, 2))}, r"config\.views=array\(\[\[0\., 0\.\], \[0\., 0\.\]\]\) has the wrong type"),
        ({"sample__sampler": "euler"}, "config.sample.sampler='euler' is not possible: it must be one of ddim, dpm"),
    ],
)
def test_refusals_are_one_line_with_setting_and_mend(changes, words):
    with pytest.raises(InputError, match=words) as caught:
        raw(**changes)
    assert "\n" not in str(caught.value)


def test_each_mode_has_its_own_views():
    """The paper's: six motions; twelve warps, of six types at two amounts, and four views among them."""
    moving, still = settings(), settings(mode="static")
    assert moving.views == moving.train_views == config.SIX_MOTIONS
    assert (still.views, still.train_views) == (config.FOUR_VIEWS, config.TWELVE_WARPS)
    assert len(set(still.train_views)) == 12
    assert {warp.split(":")[0] for warp in still.train_views} == {"left", "right", "up", "down", "in", "out"}
    assert set(still.views) <= set(still.train_views)
    other = settings(mode="static", views=("right:20",), train_views=())
    assert (other.views, other.train_views) == (("right:20",), ())


def test_the_painters_defaults_are_the_papers():
    f = settings().first_frames
    assert (f.model, f.steps, f.guidance_scale, f.control_scale) == ("flux.1-dev", 50, 3.5, 0.9)
    assert (f.candidates, config.read_window(f.guided), f.every, f.order) == (25, (0.25, 1.0), 1, ("auto",))
    e = settings().edit
    assert (e.steps, e.skip, e.guidance_scale, e.source_guidance_scale) == (28, 4, 5.5, 1.5)  # FlowEdit's


def test_one_edit_of_the_first_frame(tmp_path):
    (tmp_path / "edited.png").touch()
    settings(first_frames__given=str(tmp_path), edit__caption="a fox")  # a folder of some views' frames
    with pytest.raises(InputError, match=r"edited\.png is the first frame as you edited it.*config\.edit\.caption"):
        settings(first_frames__given=str(tmp_path / "edited.png"), edit__caption="a fox")


def test_missing_key():
    values = config.get_default().to_dict()
    del values["sample"]["steps"]
    with pytest.raises(InputError, match=r"config\.sample\.steps is missing"):
        config.parse(values)


def test_flatten_covers_every_key():
    flat = config.flatten(settings())
    assert flat["finetune.betas"] == [0.9, 0.95]
    assert flat["views"] == list(config.SIX_MOTIONS)
    groups = ("finetune", "first_frames", "edit", "sample", "evaluate", "execution")
    nested = sum(len(config.get_default()[group]) for group in groups)
    assert len(flat) == len(config.get_default()) - len(groups) + nested


def test_each_setting_says_what_it_means():
    for key, field in reading.leaves():
        assert field.metadata["meaning"], key
        assert field.type in reading.KINDS, key
        rule, default = field.metadata["rule"], field.default
        assert rule is None or rule.holds(default), key


def test_the_docs_table_is_up_to_date():
    """`make docs` writes it."""
    written = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == table.markdown()
    assert all(f"`{key}`" in written for key in config.flatten(settings()))


def test_bounds_are_spelt_whole():
    with pytest.raises(InputError, match=r"config\.seed=4294967296 .* from 0 to 4294967295$"):
        settings(seed=2**32)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "3", 3),
        ("fps", "2.5", 2.5),
        ("infill", "True", True),
        ("infill", "0", False),
        ("focal", "260", "260"),  # parse makes a number of it
        ("caption", "3", "3"),
        ("views", "left:10, up:5", ("left:10", "up:5")),
        ("views", "('left:10',)", ("left:10",)),
        ("loras", "", ()),
        ("finetune.betas", "0.8,0.9", (0.8, 0.9)),
        ("finetune.betas", "[0.8, 0.9]", (0.8, 0.9)),
    ],
)
def test_words_of_the_command_line(key, text, value):
    assert config.from_text(key, text) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [("views", "('left:10'"), ("finetune.betas", "a,b"), ("seed", "1.5"), ("seed", "9" * 5000), ("views", "(" * 5000)],
)
def test_words_of_another_type_are_refused(key, text):
    with pytest.raises(InputError, match=rf"^config\.{key}=.{{1,200}} has the wrong type: it must be a "):
        config.from_text(key, text)


def test_view_folders_follow_the_contract():
    assert [folder_name(v) for v in ("left:10", "in:0.15", "left:10+up:5")] == [
        "left_10",
        "in_0_15",
        "left_10_up_5",
    ]
    files = ("paths/my path.json", "runs/scene.v2/sparse/0", "x.npz")
    assert [folder_name(v) for v in files] == ["my_path", "0", "x"]


@pytest.mark.parametrize("steps", [400, 0])
@pytest.mark.parametrize("alpha", [0, -1])
def test_adapters_that_act_on_nothing_are_refused(alpha, steps):
    with pytest.raises(InputError, match=r"config\.finetune\.alpha=.* it must be above 0.*finetune\.steps=0 turns"):
        settings(finetune__alpha=float(alpha), finetune__steps=steps)


@pytest.mark.parametrize("key", ["video", "depth", "weights", "depth_weights", "compilation_cache"])
def test_paths_may_begin_at_the_home_and_may_not_be_addresses(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.npy").touch()
    values = config.get_default().to_dict() | {"video": "clip.mp4"}
    assert getattr(config.parse(values | {key: "~/a.npy"}), key) == str(tmp_path / "a.npy")
    with pytest.raises(InputError, match=rf"^config\.{key}: s3://bucket/a\.npy is an address"):
        config.parse(values | {key: "s3://bucket/a.npy"})


def test_loras_may_begin_at_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.safetensors").touch()
    values = config.get_default().to_dict() | {"video": "clip.mp4"}
    parsed = config.parse(values | {"loras": ("~/a.safetensors:0.5",)})
    assert lora_files.choice(parsed.loras[0]) == (tmp_path / "a.safetensors", 0.5)
    with pytest.raises(InputError, match=r"^config\.loras: gs://bucket/a\.safetensors:0\.5 is an address"):
        config.parse(values | {"loras": ("gs://bucket/a.safetensors:0.5",)})


def test_every_option_of_sampling_reaches_the_sampler_but_what_its_noise_is_made_of():
    assert {field.name for field in dataclasses.fields(Sample)} == {*Sampling._fields, "shared_noise"}
