"""Settings: their defaults, their types, and the one place where unknown or impossible values are refused.

``get_default()`` is the ConfigDict that a file in configs/ starts from; ``parse()`` makes the frozen ``Settings``
that everything else reads. A setting is written down once, in `reangle_jax.config.settings`.
"""

from reangle_jax.config.defaults import get_default as get_default
from reangle_jax.config.defaults import get_tiny as get_tiny
from reangle_jax.config.reading import UNTUNED as UNTUNED
from reangle_jax.config.reading import camera_wishes as camera_wishes
from reangle_jax.config.reading import defaults as defaults
from reangle_jax.config.reading import flatten as flatten
from reangle_jax.config.reading import from_flat as from_flat
from reangle_jax.config.reading import from_text as from_text
from reangle_jax.config.reading import parse as parse
from reangle_jax.config.reading import type_of as type_of
from reangle_jax.config.rules import read_window as read_window
from reangle_jax.config.settings import AUTO as AUTO
from reangle_jax.config.settings import FOUR_VIEWS as FOUR_VIEWS
from reangle_jax.config.settings import SIX_MOTIONS as SIX_MOTIONS
from reangle_jax.config.settings import TWELVE_WARPS as TWELVE_WARPS
from reangle_jax.config.settings import Edit as Edit
from reangle_jax.config.settings import Evaluate as Evaluate
from reangle_jax.config.settings import Execution as Execution
from reangle_jax.config.settings import Finetune as Finetune
from reangle_jax.config.settings import FirstFrames as FirstFrames
from reangle_jax.config.settings import Sample as Sample
from reangle_jax.config.settings import Settings as Settings
