"""Batches made ahead of the step that takes them: in a thread, or by several processes where one cannot keep up.

What processes are given is pickled once for each of them. An image pool that was read from its folder, and examples on
disk, travel as their place alone and are opened again there.

Grain's ``mp_prefetch`` (0.2.18) could share the work too, in as many lines: a thread is still wanted where there are no
workers, and theirs take a GPU unless a function of ours keeps them from it (google/grain issues 820 and 1199). It hands
batches over in /dev/shm, of which a container has 64 MiB, and a batch of clips is larger; slower besides (issue 851).
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None  # of a worker process


def _begin(function: bytes) -> None:
    """A worker's start: on the CPU, in one thread, deaf to the terminal, and gone when its parent is.

    The devices are its parent's. So the function is pickled by itself: what it holds may want one at once.
    """
    import cv2  # late: who asks for no processes needs it not

    global _function
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    _function = pickle.loads(function)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _apply(item: Any) -> Any:
    assert _function is not None, "_begin comes first"
    return _function(item)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0) -> Iterator[Result]:
    """What a function gives for each item, in the items' order, some of them made ahead.

    Args:
        function: with ``workers``, one that can be pickled, as its results can.
        items: any number; taken as they are needed.
        workers: processes that share the work; 0: a thread of this one. JAX in them has the CPU alone.
    """
    if workers:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads half
        pool: concurrent.futures.Executor = concurrent.futures.ProcessPoolExecutor(
            workers, spawn, initializer=_begin, initargs=(pickle.dumps(function),)
        )
    else:
        pool = concurrent.futures.ThreadPoolExecutor(1)

    def submit(item: Item) -> concurrent.futures.Future[Result]:
        return pool.submit(_apply if workers else function, item)

    rest = iter(items)
    try:
        waiting = collections.deque(map(submit, itertools.islice(rest, max(2, 2 * workers))))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(map(submit, itertools.islice(rest, 1)))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Maker:
    """A step's number to that number and its batch, from a generator of its own."""

    def __init__(self, make_batch: Callable[[np.random.Generator, int], Any], seed: int):
        self.make_batch, self.seed = make_batch, seed

    def __call__(self, step: int) -> tuple[int, Any]:
        return step, self.make_batch(np.random.default_rng([self.seed, step]), step)


def batches(
    make_batch: Callable[[np.random.Generator, int], Any], seed: int, first: int = 0, workers: int = 0
) -> Iterator[tuple[int, Any]]:
    """Batches by step number, each from its own generator: resuming repeats none, and ``workers`` change none."""
    return in_order(_Maker(make_batch, seed), itertools.count(first), workers)
