"""The run: a folder of artefacts that are whole or absent, and a ledger of what is done, of what, and at what cost."""

from reangle_jax.cameras.views import view_file
from reangle_jax.run.following import follow
from reangle_jax.run.ledger import Ledger
from reangle_jax.run.stage import External, Stage, Unit
from reangle_jax.run.work import Work, run_stage

__all__ = ["External", "Ledger", "Stage", "Unit", "Work", "follow", "run_stage", "view_file"]
