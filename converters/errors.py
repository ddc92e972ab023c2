"""What the command prints in place of a traceback."""

from reangle_jax.errors import InputError


class SourceError(InputError):
    """A published checkpoint that cannot be used.

    Attributes:
        report: every fault, one a line; empty where the message says all.
    """

    def __init__(self, message: str, report: tuple[str, ...] = ()):
        super().__init__(message)
        self.report = report
