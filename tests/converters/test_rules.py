import numpy as np
import pytest

from converters.rules import CONV2D, CONV3D, IDENTITY, LINEAR, Rule, Table, match, permute, pieces, places
from tests.conversion import convert, revert, tensor

TABLE = Table(
    [
        Rule("proj.weight", "proj.kernel", LINEAR),
        Rule("blocks.{i}.fc{n}.weight", "stack.fc{n}.kernel", LINEAR),
        Rule("blocks.{i}.norm.bias", "stack.norm.bias"),
    ],
    ignored=("blocks.{i}.position_ids",),
)
TARGETS = {
    "proj.kernel": (3, 2),
    "stack.fc1.kernel": (2, 4, 3),
    "stack.fc2.kernel": (2, 3, 4),
    "stack.norm.bias": (2, 3),
}


@pytest.fixture
def source(rng):
    tensors = {"proj.weight": rng.normal(size=(2, 3)), "blocks.0.position_ids": np.arange(4)}
    for i in range(2):
        tensors[f"blocks.{i}.fc1.weight"] = rng.normal(size=(3, 4))
        tensors[f"blocks.{i}.fc2.weight"] = rng.normal(size=(4, 3))
        tensors[f"blocks.{i}.norm.bias"] = rng.normal(size=(3,)).astype(np.float16)
    return tensors


def faults(source, targets=TARGETS, table=TABLE):
    return match({name: tensor(name, x.shape, x.dtype) for name, x in source.items()}, table, targets)[2]


def test_layers_are_stacked_in_order(source):
    result = convert(source, TABLE, TARGETS)
    assert {path: array.shape for path, array in result.items()} == TARGETS
    np.testing.assert_array_equal(result["proj.kernel"], source["proj.weight"].T)
    for i in range(2):
        np.testing.assert_array_equal(result["stack.fc1.kernel"][i], source[f"blocks.{i}.fc1.weight"].T)
        np.testing.assert_array_equal(result["stack.norm.bias"][i], source[f"blocks.{i}.norm.bias"])
    assert result["stack.norm.bias"].dtype == np.float16


def test_order_of_the_source_does_not_matter(source):
    backwards = dict(reversed(source.items()))
    for path, array in convert(backwards, TABLE, TARGETS).items():
        np.testing.assert_array_equal(array, convert(source, TABLE, TARGETS)[path])


def test_there_and_back(source):
    back = revert(convert(source, TABLE, TARGETS), TABLE)
    assert back.keys() == source.keys() - {"blocks.0.position_ids"}
    assert all(np.array_equal(back[name], source[name]) for name in back)
    assert all(array.flags.c_contiguous for array in back.values())


def test_a_scalar_stays_one():
    table = Table([Rule("temperature", "temperature")])
    assert revert({"temperature": np.array(2.0, np.float32)}, table)["temperature"].shape == ()


def test_all_faults_together(source):
    del source["blocks.1.fc1.weight"]
    source["extra.weight"] = np.zeros(1)
    source["blocks.0.fc2.weight"] = np.zeros((4, 5))
    source["blocks.2.norm.bias"] = np.zeros(3)
    assert sorted(faults(source)) == [
        "blocks.0.fc2.weight: shape [4, 5], the model has [4, 3]",
        "blocks.1.fc1.weight: missing",
        "blocks.2.norm.bias: the model has 2 layers only",
        "extra.weight: the model knows no such tensor",
    ]


def test_parameter_without_a_tensor(source):
    assert faults(source, {**TARGETS, "head.bias": (3,)}) == ["head.bias: no rule of the table fills it"]


def test_tensor_without_a_parameter(source):
    targets = {path: shape for path, shape in TARGETS.items() if path != "proj.kernel"}
    assert faults(source, targets) == ["proj.weight: this model has no such tensor (proj.kernel)"]


def test_two_tensors_for_one_parameter(source):
    table = Table([*TABLE.rules, Rule("proj_copy.weight", "proj.kernel", LINEAR)], TABLE.ignored)
    source["proj_copy.weight"] = source["proj.weight"]
    assert faults(source, table=table) == ["proj_copy.weight: is the same parameter as proj.weight"]


def test_nothing_is_taken_by_a_part_of_its_name():
    assert places("model.proj.weight", TABLE) == []
    assert places("proj.weight.1", TABLE) == []
    assert places("projxweight", TABLE) == []
    assert places("blocks.a.norm.bias", TABLE) == []


def test_numbers_of_the_target_are_no_index():
    ((rule, path, index),) = places("blocks.11.fc2.weight", TABLE)
    assert (rule.stacked, path, index) == (("i",), "stack.fc2.kernel", (11,))


def test_two_stacked_axes(rng):
    table = Table([Rule("up.{i}.resnets.{j}.weight", "up.kernel")])
    source = {f"up.{i}.resnets.{j}.weight": rng.normal(size=(4,)) for j in range(3) for i in range(2)}
    result = convert(source, table, {"up.kernel": (2, 3, 4)})["up.kernel"]
    np.testing.assert_array_equal(result[1, 2], source["up.1.resnets.2.weight"])
    assert revert({"up.kernel": result}, table).keys() == source.keys()


def test_a_placeholder_named_twice_is_one_number():
    table = Table([Rule("a{i}.b{i}.weight", "stack")])
    assert len(places("a1.b1.weight", table)) == 1
    assert places("a1.b2.weight", table) == []


JOINED = Table(
    [
        Rule("{i}.joined.weight", "first.kernel", LINEAR, rows=(0, 2, 5)),
        Rule("{i}.joined.weight", "second.kernel", LINEAR, rows=(2, 5, 5)),
        Rule("{i}.other", "other"),
    ]
)
HALVES = {"first.kernel": (2, 3, 2), "second.kernel": (2, 3, 3), "other": (2, 1)}


def test_parameters_share_a_tensors_rows(rng):
    source = {f"{i}.joined.weight": rng.normal(size=(5, 3)) for i in range(2)}
    source |= {f"{i}.other": np.ones(1) for i in range(2)}
    result = convert(source, JOINED, HALVES)
    np.testing.assert_array_equal(result["first.kernel"][1], source["1.joined.weight"][:2].T)
    np.testing.assert_array_equal(result["second.kernel"][0], source["0.joined.weight"][2:].T)
    back = revert(result, JOINED)
    assert back.keys() == source.keys()
    assert all(np.array_equal(back[name], source[name]) for name in back)
    moves = match({name: tensor(name, x.shape) for name, x in source.items()}, JOINED, HALVES)[0]
    assert [move.name for move in moves][:2] == ["0.joined.weight[0:2]", "0.joined.weight[2:5]"]


def test_a_shared_tensors_fault_is_said_once():
    source = {"0.joined.weight": np.ones((4, 3)), "0.other": np.ones(1), "1.other": np.ones(1)}
    assert faults(source, HALVES, JOINED) == [
        "0.joined.weight: shape [4, 3], the model has [5, 3]",
        "1.joined.weight: missing",
    ]


def test_parameter_without_a_name():
    assert pieces("unknown", (1,), TABLE) == {}


@pytest.mark.parametrize(
    ("transform", "shape", "want"),
    [
        (IDENTITY, (2, 3), (2, 3)),
        (LINEAR, (2, 3), (3, 2)),
        (CONV2D, (2, 3, 4, 5), (4, 5, 3, 2)),
        (CONV3D, (2, 3, 4, 5, 6), (4, 5, 6, 3, 2)),
        (permute("odd", 2, 0, 1), (2, 3, 4), (4, 2, 3)),
    ],
)
def test_transforms_have_inverses(rng, transform, shape, want):
    x = rng.normal(size=shape)
    assert transform.forward(x).shape == want
    np.testing.assert_array_equal(transform.inverse(transform.forward(x)), x)


def test_convolution_kernels_keep_their_taps(rng):
    x = rng.normal(size=(2, 3, 4, 5))
    assert CONV2D.forward(x)[1, 2, 0, 1] == x[1, 0, 1, 2]
    y = rng.normal(size=(2, 3, 4, 5, 6))
    assert CONV3D.forward(y)[3, 1, 2, 0, 1] == y[1, 0, 3, 1, 2]
