"""FeatUp's joint bilateral upsampler with its backbone: the ``state_dict`` of ``*_jbu_stack_cocostuff.ckpt``."""

from converters.rules import Rule, Table, Transform
from converters.tables.common import affine, norm, pointwise
from converters.tables.dino import backbone
from reangle_jax.models.dino import FeatUpConfig

POINTWISE = pointwise(2)
SCALAR = Transform("scalar", lambda x: x.reshape(1), lambda x: x.reshape(()))
# What training used beside the upsampler.
TRAINING = (
    "scale_net.net.weight", "scale_net.net.bias", "downsampler.attention_net.1.weight",
    "downsampler.attention_net.1.bias", "downsampler.w", "downsampler.b",
)  # fmt: skip


def table(config: FeatUpConfig) -> Table:
    """The rules for so many doublings; ``use_norm`` changes the backbone's prefix too."""
    prefix = "model.0.model." if config.use_norm else "model.model."
    rules = backbone(prefix, "backbone.")
    rules += norm("model.1.norm", "norm") if config.use_norm else []
    for k in range(config.stages):
        source, target = f"upsampler.up{k + 1}", f"upsampler.stages.{k}"
        rules += [
            Rule(f"{source}.range_temp", f"{target}.log_temperature", SCALAR),
            Rule(f"{source}.sigma_spatial", f"{target}.sigma", SCALAR),
        ]
        for name, to in (("range_proj", "range"), ("fixup_proj", "fixup")):
            rules += affine(f"{source}.{name}.0", f"{target}.{to}1", POINTWISE)
            rules += affine(f"{source}.{name}.3", f"{target}.{to}2", POINTWISE)
    rules += affine("upsampler.fixup_proj.1", "upsampler.fixup", POINTWISE)
    return Table(rules, TRAINING)
