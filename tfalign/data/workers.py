"""Processes that read files, started anew ("spawn"): a copy of a process that runs TensorFlow may hang."""

import collections
import itertools
import multiprocessing
import os
import pickle
import textwrap
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import tensorflow as tf

from tfalign import _checks

_pairs = None  # of a worker process


class Workers:
    """Calls `function(pairs, *arguments)` in worker processes, results in the order of the arguments.

    Args:
        pairs: what each worker gets a copy of, once; must be picklable (a recipe too: no lambda).
        count: processes, of 0.7 GB each besides the files that they hold; by default one per processor, 8 at most. They
            start with the first task. 0 works in this process; a script that asks for more needs
            `if __name__ == "__main__":` around what it does.
    """

    def __init__(self, pairs, *, count=None):
        self.pairs = pairs
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = min(8, available) if count is None else _checks.whole_number("workers", count, at_least=0)
        self._pool = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function, arguments):
        """Yields results in order; only two tasks per worker are under way, so that memory stays flat.

        Raises:
            TypeError: `pairs` cannot be pickled.
            OSError: a worker ended abruptly.
        """
        arguments = iter(arguments)
        if self.count == 0:
            yield from (function(self.pairs, *argument) for argument in arguments)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, _start, (_pickled(self.pairs),))
        waiting: collections.deque = collections.deque()
        try:
            for argument in arguments:
                waiting.append((argument, self._pool.submit(_call, function, argument)))
                if len(waiting) >= 2 * self.count:
                    yield waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][1].result()
                waiting.popleft()
        except BrokenProcessPool as error:
            self._pool = None
            near = [textwrap.shorten(repr(argument), 200) for argument, _ in itertools.islice(waiting, self.count)]
            remedy = "A file is too large for the memory or crashes its library, or see what the process printed."
            raise OSError(_checks.message("A worker process ended abruptly.", {"near": near}, remedy)) from error
        finally:
            for _, future in waiting:
                future.cancel()


def _pickled(pairs):
    """What is sent to every worker."""
    try:
        return pickle.dumps(pairs)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        remedy = "Define a recipe with `def` in a module of its own, or take workers=0."
        text = _checks.message("`pairs` must be picklable for workers.", {"error": str(error)}, remedy)
        raise TypeError(text) from error


def _start(pairs):
    """Prepares a worker: no accelerator, one thread."""
    global _pairs
    _pairs = pickle.loads(pairs)
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _call(function, argument):
    return function(_pairs, *argument)
