"""Two processes that talk and compute nothing: ``talk.py HOW FOLDER``; process 0 prints what it found, as JSON."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

from reangle_jax import commands, distributed, mesh, stopping
from reangle_jax.errors import InputError

distributed.HEARTBEAT, distributed.LOST, distributed.GRACE = 15, 3.0, 2.0
HOW, FOLDER = sys.argv[1], Path(sys.argv[2])


def work(team):
    own = FOLDER / str(team.index)
    own.mkdir(exist_ok=True)
    if team.owns:
        (own / "file").write_bytes(bytes(range(256)) * 20_000)  # more than a block
    found = {"told": team.tell({"from": team.index})}
    team.share(own, ["file"])
    found["sees"] = [team.sees(FOLDER), team.unanimous(team.owns)]
    if team.owns:  # what it does alone, on its own devices
        with mesh.use(mesh.make_own_mesh("u:2")):
            assert mesh.on_host(jax.jit(lambda x: 2 * x)(jax.numpy.arange(3))).tolist() == [0, 2, 4]
    asked = [team.agree(0)]
    for _ in range(100):
        asked.append(team.agree(0 if team.owns else int(signal.SIGTERM)))
        if asked[-1]:
            break
        time.sleep(0.05)
    found["asked"] = asked
    (own / "found").write_text(json.dumps(found))
    if HOW == "die" and not team.owns:
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "error" and not team.owns:
        raise InputError("no good")
    if HOW == "break":
        if not team.owns:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1234")  # as one of its collectives says it
    time.sleep(300)


def main():
    team = distributed.join()
    return team.run(lambda: commands.answer(lambda stop: work(team), explain=team.blame, claim=team.claim))


stopping.run(main)
