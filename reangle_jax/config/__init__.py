"""Settings: their defaults, their types, and the one place where unknown or impossible values are refused.

``get_default()`` is the ConfigDict that a file in configs/ starts from; ``parse()`` makes the frozen ``Settings``
that everything else reads. A setting is written down once, in `reangle_jax.config.settings`.
"""

from reangle_jax.config.defaults import get_default, get_tiny
from reangle_jax.config.reading import (
    UNTUNED,
    camera_wishes,
    flatten,
    from_flat,
    from_text,
    parse,
    type_of,
    view_folder,
)
from reangle_jax.config.rules import read_window
from reangle_jax.config.settings import (
    AUTO,
    FOUR_VIEWS,
    SIX_MOTIONS,
    TWELVE_WARPS,
    Edit,
    Evaluate,
    Execution,
    Finetune,
    FirstFrames,
    Sample,
    Settings,
)

__all__ = [
    "AUTO",
    "FOUR_VIEWS",
    "SIX_MOTIONS",
    "TWELVE_WARPS",
    "UNTUNED",
    "Edit",
    "Evaluate",
    "Execution",
    "Finetune",
    "FirstFrames",
    "Sample",
    "Settings",
    "camera_wishes",
    "flatten",
    "from_flat",
    "from_text",
    "get_default",
    "get_tiny",
    "parse",
    "read_window",
    "type_of",
    "view_folder",
]
