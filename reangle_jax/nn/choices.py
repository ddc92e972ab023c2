"""What can be chosen of a network's execution, without jax: settings are checked before it is there."""

import dataclasses

# What blocks keep for the backward pass, from the least memory to the most (`reangle_jax.nn.remat`).
ATTENTION = "attention"
REMATS = ("full", ATTENTION, "matmuls", "none")
IMPLEMENTATIONS = ("plain", "mapped", "xla", "cudnn", "splash")
# The platform that kernels of one platform alone need.
PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The user's choice; ``auto`` leaves it to `reangle_jax.nn.execution`."""

    # An implementation, or ``auto``: the platform's fused kernel if the dtype allows it, else ``mapped``, since all
    # heads' logits at once would fill any memory.
    attention: str = "auto"
    remat: str = "auto"  # one of ``REMATS``, or ``auto``: attention, where nobody has looked at the device's memory
    dtype: str = "auto"  # a dtype, or ``auto``: what the weights are stored in


AUTO = Choice()
