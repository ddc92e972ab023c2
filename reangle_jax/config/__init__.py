"""Settings: their defaults, their types, and the one place where unknown or impossible values are refused.

``get_default()`` is the ConfigDict that a file in configs/ starts from; ``parse()`` makes the frozen ``Settings``
that everything else reads. A setting is written down once, in `reangle_jax.config.settings`.
"""

from reangle_jax.config.defaults import get_default, get_tiny
from reangle_jax.config.reading import camera_wishes, flatten, from_text, parse, type_of, view_folder
from reangle_jax.config.settings import SIX_MOTIONS, Evaluate, Execution, Finetune, Sample, Settings

__all__ = [
    "SIX_MOTIONS",
    "Evaluate",
    "Execution",
    "Finetune",
    "Sample",
    "Settings",
    "camera_wishes",
    "flatten",
    "from_text",
    "get_default",
    "get_tiny",
    "parse",
    "type_of",
    "view_folder",
]
