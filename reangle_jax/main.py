"""New videos of the scene in one video, along other camera paths: reads the flags, then runs the stages in order.

python -m reangle_jax.main --config FILE [--config.KEY=VALUE ...] --workdir DIR [--plan | --preview]
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from reangle_jax import chosen_models, command_line, compilation_cache, config, faults, stopping
from reangle_jax.errors import InputError, NotFiniteError
from reangle_jax.measure import human_seconds
from reangle_jax.run import Ledger, Stage, run_stage
from reangle_jax.stopping import Stop, Stopped

_log = logging.getLogger("reangle_jax.main")  # by name: the command itself is __main__


def stages(*, preview: bool = False) -> Iterator[Stage]:
    """All stages in order, or those that show what the cameras will see.

    Each is imported when its turn comes, so that a mistake in the input is answered before the models are.
    """
    from reangle_jax.stages import ingest

    yield ingest.STAGE
    from reangle_jax.stages import depth

    yield depth.STAGE
    from reangle_jax.stages import warp_views

    yield warp_views.STAGE
    if preview:
        return
    from reangle_jax.stages import finetune

    yield finetune.STAGE
    from reangle_jax.stages import first_frames

    yield first_frames.STAGE
    from reangle_jax.stages import generate

    yield generate.STAGE
    from reangle_jax.stages import evaluate

    yield evaluate.STAGE


def _checks(settings: config.Settings, *, preview: bool = False) -> Iterator[Callable[[], object]]:
    """What must hold before any work, each raising `InputError`."""
    for part in chosen_models.needed(settings, preview=preview):
        yield functools.partial(chosen_models.check, settings, [part])
    if settings.mesh != "auto":
        from reangle_jax import mesh  # late: it looks for the devices

        yield functools.partial(mesh.make_mesh, settings.mesh)
    if settings.execution.attention != "auto":
        from reangle_jax.nn import execution

        yield functools.partial(execution.check, settings.execution.attention)


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code: 0 done, 2 unusable input, 143 or 130 stopped by a signal.

    It is 1 where numbers came out that are not finite. Anything else that goes wrong is raised: it is a bug, and Python
    exits with 1.
    """
    if command_line.wants_help(argv):
        print(command_line.usage())
        return 0
    stop = Stop()
    try:
        with _logging_to_stderr(), stop.installed():
            command = command_line.parse(argv)
            settings = config.parse(command.config)
            if command.plan:
                from reangle_jax import plan
                from reangle_jax.stages import ingest

                checks = [functools.partial(ingest.check, settings), *_checks(settings)]
                print(plan.table(Ledger(command.workdir, settings), list(stages()), checks))
                return 0
            for check in _checks(settings, preview=command.preview):
                check()
            compilation_cache.use(settings.compilation_cache)
            start = time.monotonic()
            with Ledger.opened(command.workdir, settings) as ledger:
                for stage in stages(preview=command.preview):
                    run_stage(stage, ledger, stop=stop)
            _log.info("done in %s: %s", human_seconds(time.monotonic() - start), ledger.root)
            return 0
    except InputError as error:
        return _complain(str(error))
    except Stopped as stopped:
        print(f"stopped by {stopped}: the same command continues", file=sys.stderr)
        return stopped.exit_code
    except NotFiniteError as error:
        return _complain(str(error), code=1)
    except Exception as error:
        full = faults.disk_full(error)
        if full is None:
            raise
        return _complain(f"no space left on the disk{full}: free some, or choose another --workdir, and run it again")


def _complain(message: str, *, code: int = 2) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _logging_to_stderr() -> Iterator[None]:
    logger = logging.getLogger("reangle_jax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries give the root logger a handler too: every line would come twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


if __name__ == "__main__":
    stopping.run(lambda: main(sys.argv))
