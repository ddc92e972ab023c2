"""``--dtype int8``: the blocks' kernels quantised on their way to the disk, everything else in bfloat16."""

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from converters import check, command, registry, stream
from converters.sources.folder import open_part
from reangle_jax import checkpoints
from reangle_jax.backbones.cogvideox import networks as of_cogvideox
from reangle_jax.data import weights_folder
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.nn.quantised import quantise
from tests.published import write_small

MODEL = "cogvideox-5b-i2v"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return folder, write_small(folder)


def writer(source, out, part="transformer", **keywords):
    (entry,) = registry.find(f"{MODEL}/{part}")[1]
    opened = open_part(source, entry, alone=False)
    return stream.Writer(MODEL, check.plan(MODEL, entry, opened), opened, out, stream.stored_dtype("int8"), **keywords)


def loaded(folder):
    config = checkpoints.load_config(folder, TransformerConfig)
    assert (config.kernel_dtype, config.param_dtype) == ("int8", "bfloat16")
    model = checkpoints.load_into(checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0))), folder)
    return {path: np.asarray(x[...]) for path, x in checkpoints.parameter_paths(model).items()}


def assert_right(got, want):
    want = dict(want)
    for path in [path for path in got if got[path].dtype == np.int8]:
        steps, scale = quantise(want.pop(path))
        np.testing.assert_array_equal(got.pop(path), steps)
        np.testing.assert_array_equal(got.pop(path.replace("kernel", "kernel_scale")), scale)
    assert got.keys() == want.keys()
    for path, values in want.items():
        np.testing.assert_array_equal(got[path], values.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("gathered", [0, 4 << 20])
def test_an_interruption_is_continued(published, tmp_path, monkeypatch, gathered):
    """A tensor counts as written when its integers and its scales are."""
    source, want = published
    monkeypatch.setattr(weights_folder, "REPORT_BYTES", 1)
    monkeypatch.setattr(weights_folder, "GATHER_BYTES", gathered)
    count = 40

    def stop(_):
        nonlocal count
        count -= 1
        if not count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer(source, tmp_path, advance=stop).run()
    lines = []
    assert writer(source, tmp_path, say=lines.append).run()
    assert lines[0].startswith("continuing: ")
    got = loaded(tmp_path / "transformer")
    assert sum(array.dtype == np.int8 for array in got.values()) == 8
    assert_right(got, want["transformer"])
    assert not writer(source, tmp_path).run()  # finished already
    # The setting's default takes them as they are.
    described = of_cogvideox.describe_transformer(tmp_path / "transformer", lora_rank=2, lora_alpha=2.0)
    found = of_cogvideox.load(described, tmp_path / "transformer")
    assert found.state["blocks"]["layers"]["ff"]["up"]["kernel"].dtype == np.int8


def test_other_parts_are_bfloat16(published, tmp_path):
    source, want = published
    made = writer(source, tmp_path, "vae")
    assert made.run()
    arrays = weights_folder.open_arrays(tmp_path / "vae")
    assert {path: array.dtype for path, array in arrays.items()} == dict.fromkeys(want["vae"], ml_dtypes.bfloat16)
    assert made.nbytes == 2 * sum(array.size for array in want["vae"].values())


def test_the_command_and_no_way_back(published, tmp_path, capsys):
    source, _ = published
    name, out = f"{MODEL}/transformer", str(tmp_path / "ours")
    assert command.main([name, "--source", str(source), "--out", out, "--dtype", "int8"]) == 0
    assert "bfloat16, its blocks' kernels int8" in capsys.readouterr().out
    back = ["--out", str(tmp_path / "theirs"), "--to-torch"]
    assert command.main([name, "--source", out, *back]) == 2
    assert "was made with --dtype=int8, which has no way back" in capsys.readouterr().err
    assert command.main([name, "--source", out, *back, "--dtype", "int8"]) == 2
    assert "--dtype=int8: published layouts have no int8" in capsys.readouterr().err
