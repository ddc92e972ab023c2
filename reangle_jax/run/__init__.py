"""The run: a folder of artefacts, and a ledger of what is done, of what, and at what cost."""

from reangle_jax.run.ledger import Run, Stage, Unit, view_file

__all__ = ["Run", "Stage", "Unit", "view_file"]
