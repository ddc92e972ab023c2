"""One process of a run that something happens to: ``worker.py WHAT main's flags``.

WHAT is nothing; or ACTION:PROCESS:STEP, where a process gets a signal or dies after a step of fine-tuning. Words may
follow: ``short``, the run ends after fine-tuning; ``blind``, the others do not see process 0's folder; ``tell``, each
process says which videos it reads to be encoded.
"""

import os
import signal
import sys

from reangle_jax import distributed, main, progress, stopping

WHAT, *WORDS = sys.argv[1].split(" ")
ACTIONS = {"stop": signal.SIGTERM, "kill": signal.SIGKILL}
update = progress.progress.update


def act(self, *arguments, **values):
    update(self, *arguments, **values)
    if self._description == "finetune" and WHAT:
        action, process, step = WHAT.split(":")
        if (os.environ.get("REANGLE_PROCESS", "0"), self._done) == (process, int(step)):
            os.kill(os.getpid(), ACTIONS[action])


progress.progress.update = act
if "blind" in WORDS:
    sees = distributed.Several.sees
    distributed.Several.sees = lambda self, folder: sees(self, folder) and False
if "tell" in WORDS:
    from reangle_jax.stages import finetune

    encode = finetune.encode_videos

    def encode_and_tell(backbone, coder, read, *rest):
        def told(number):
            print(f"read video {number}", file=sys.stderr)
            return read(number)

        return encode(backbone, coder, told, *rest)

    finetune.encode_videos = encode_and_tell
if "short" in WORDS:
    everything = main.stages
    main.stages = lambda **options: [
        stage for stage in everything(**options) if stage.name in ("ingest", "depth", "warp_views", "finetune")
    ]
stopping.run(lambda: main.main(["main", *sys.argv[2:]]))
