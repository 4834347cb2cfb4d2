"""Calling functions in the workers of an Apache Beam pipeline, and getting back what they return."""

import base64
import functools
import os
import pickle
import shlex
import tempfile
from pathlib import Path

from tfalign import _checks

_FEW = 3  # calls that are not worth a pipeline: a cache looks at so many files before it is planned


def parsed(options):
    """The options of a pipeline and its runner, a text as on a command line, as Beam's `PipelineOptions`.

    Raises:
        ImportError: the extra `beam` is missing.
    """
    _checks.extra("apache_beam", "beam")
    return _checks.extra("apache_beam.options.pipeline_options", "beam").PipelineOptions(shlex.split(options))


class Pool:
    """Calls functions of pairs on a runner, as `tfalign.data.workers.Workers` does in processes of one machine."""

    def __init__(self, pairs, work, options):
        self.pairs, self._work, self._options = pairs, work, options

    def map(self, function, arguments):
        """Yields results in the order of the arguments."""
        arguments = list(arguments)
        if len(arguments) <= _FEW:
            yield from (function(self.pairs, *argument) for argument in arguments)
            return
        self._work.mkdir(parents=True, exist_ok=True)
        path = self._work / "pairs.pickle"
        path.write_bytes(pickle.dumps(self.pairs))
        yield from results(self._options, self._work, functools.partial(_Function, function, path), arguments)


class _Function:
    """In a worker: calls a function of the pairs."""

    def __init__(self, function, path):
        self._function, self._pairs = function, pickle.loads(path.read_bytes())

    def __call__(self, argument):
        """What it returns."""
        return self._function(self._pairs, *argument)


def results(options, work, make, elements):
    """What the callable that `make()` gives in each worker returns for every element, in order.

    Args:
        options: what `parsed` gives.
        work: a folder that all workers see.
        make: without arguments; called once in each process of a worker.
        elements: any that can be pickled. They go through a file: the graph of a pipeline must be small.
    """
    beam = _checks.extra("apache_beam", "beam")
    shared = _checks.extra("apache_beam.utils.shared", "beam")

    class Call(beam.DoFn):  # type: ignore[name-defined]
        def __init__(self):
            self._shared = shared.Shared()

        def setup(self):
            self._call = self._shared.acquire(make)

        def process(self, numbered):
            number, element = numbered
            yield base64.b64encode(pickle.dumps((number, self._call(element)))).decode()

    with tempfile.TemporaryDirectory(dir=work) as place:
        listing, prefix = Path(place) / "elements.pickle", Path(place) / "result"
        with open(listing, "wb") as stream:
            for numbered in enumerate(elements):
                pickle.dump(numbered, stream)
        try:
            with beam.Pipeline(options=options) as pipeline:
                _ = (
                    pipeline
                    | "listing" >> beam.Create([str(listing)])
                    | "files" >> beam.FlatMap(_unpickled)
                    | "spread" >> beam.Reshuffle()
                    | "work" >> beam.ParDo(Call())
                    | "results" >> beam.io.WriteToText(str(prefix))
                )
        except RuntimeError as error:  # what a runner makes of every exception
            received = {"error": str(error).strip().splitlines()[-1]}
            remedy = "What is done is kept: the same call goes on."
            raise OSError(_checks.message("The pipeline must come to its end.", received, remedy)) from error
        found = [base64.b64decode(line) for path in Path(place).glob("result-*") for line in path.open("rb")]
    return [result for _, result in sorted(map(pickle.loads, found), key=lambda one: one[0])]


def _unpickled(path):
    """Yields what was pickled into a file."""
    with open(path, "rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        while stream.tell() < end:
            yield pickle.load(stream)
