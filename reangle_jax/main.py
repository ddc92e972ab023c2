"""New videos of the scene in one video, along other camera paths: reads the flags, then runs the stages in order.

reangle --config FILE [--config.KEY=VALUE ...] --workdir DIR [--plan | --preview]      or python -m reangle_jax.main
reangle doctor [DIR ...] [--workdir DIR]                                              or python -m reangle_jax.doctor
"""

import contextlib
import functools
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from reangle_jax import chosen_models, command_line, commands, compilation_cache, config, distributed, faults, stopping
from reangle_jax.distributed import Team
from reangle_jax.errors import about
from reangle_jax.measure import human_seconds
from reangle_jax.run import Ledger, Stage, follow, run_stage
from reangle_jax.stopping import Stop

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
    from reangle_jax.stages import first_warps

    yield first_warps.STAGE
    from reangle_jax.stages import finetune

    yield finetune.STAGE
    from reangle_jax.stages import first_frames

    yield first_frames.STAGE
    from reangle_jax.stages import generate

    yield generate.STAGE
    from reangle_jax.stages import evaluate

    yield evaluate.STAGE
    from reangle_jax.stages import scene

    yield scene.STAGE
    from reangle_jax.stages import report

    yield report.STAGE


def _checks(settings: config.Settings, *, preview: bool = False) -> Iterator[Callable[[], object]]:
    """What must hold before any work, each raising `InputError`."""
    for part in chosen_models.needed(settings, preview=preview):
        yield functools.partial(chosen_models.check, settings, [part])
    if settings.first_frames.given:
        from reangle_jax.run import first_picture  # late: it brings OpenCV

        yield functools.partial(first_picture.check, settings)
    if not preview and chosen_models.paints(settings):
        from reangle_jax.run import first_picture
        from reangle_jax.scoring import agreement  # late: it brings the networks

        folder, open_views = chosen_models.painter_folder(settings), set(settings.views)
        open_views -= set(first_picture.given_of_views(settings))
        if settings.edit.caption or open_views:
            yield functools.partial(chosen_models.check_painter, settings)
        chooses = bool(open_views) and settings.first_frames.candidates > 1
        if settings.mode == "static" and (chooses or agreement.there(folder)):
            yield functools.partial(about(chosen_models.PAINTER_KEY)(agreement.check), folder)
    if settings.mesh != "auto":
        from reangle_jax import mesh  # late: it looks for the devices

        yield functools.partial(mesh.make_mesh, settings.mesh)
    if settings.execution.attention != "auto":
        from reangle_jax.nn import execution

        yield functools.partial(execution.check, settings.execution.attention)


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code, as `commands.answer` has them."""
    if list(argv[1:2]) == ["doctor"]:
        return commands.answer(lambda stop: _doctor(argv[2:]))
    if command_line.wants_help(argv):
        print(command_line.usage())
        return 0
    with _logging_to_stderr():
        met: list[Team] = []
        code = commands.answer(lambda stop: met.append(_meet()))
        if code:
            return code
        team = met[0]

        def explain(error: Exception) -> str | None:
            team.blame(error)
            return _explain(error)

        return team.run(lambda: commands.answer(lambda stop: _run(argv, team, stop), explain=explain, claim=team.claim))


def console() -> NoReturn:
    """The console command ``reangle``."""
    stopping.run(lambda: main(sys.argv))


def _doctor(arguments: Sequence[str]) -> int:
    from reangle_jax import doctor  # late: it looks for the devices

    return doctor.main(arguments)


def _meet() -> Team:
    team = distributed.join()
    if not team.owns:
        logger = logging.getLogger("reangle_jax")  # process 0 says it all
        logger.setLevel(logging.WARNING)
        for handler in logger.handlers:
            handler.setFormatter(logging.Formatter(f"%(asctime)s process {team.index}: %(message)s", "%H:%M:%S"))
    return team


def _run(argv: Sequence[str], team: Team, stop: Stop) -> None:
    if not team.owns:
        follow(list(stages()), team, stop)
        return
    command = command_line.parse(argv)
    settings = config.parse(command.config)
    if command.plan:
        from reangle_jax import plan
        from reangle_jax.stages import ingest

        checks = [functools.partial(ingest.check, settings), *_checks(settings)]
        print(plan.table(Ledger(command.workdir, settings), list(stages()), checks))
        return
    for check in _checks(settings, preview=command.preview):
        check()
    compilation_cache.use(settings.compilation_cache)
    start = time.monotonic()
    with Ledger.opened(command.workdir, settings, _again(argv)) as ledger:
        team.tell(ledger.flat)
        for stage in stages(preview=command.preview):
            run_stage(stage, ledger, stop=stop, team=team)
    if command.preview:
        _log.info("look at %s", ledger.root / "views" / "*" / "warp.mp4")
    _log.info("done in %s: %s", human_seconds(time.monotonic() - start), ledger.root)


def _again(argv: Sequence[str]) -> str:
    """The command that goes on with a run."""
    words = [word for word in argv[1:] if word.lstrip("-") != "preview"]
    return shlex.join(["python", "-m", "reangle_jax.main", *words])


def _explain(error: Exception) -> str | None:
    full = faults.disk_full(error)
    if full is None:
        return None
    return f"no space left on the disk{full}: free some, or choose another --workdir, and run it again"


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
    console()
