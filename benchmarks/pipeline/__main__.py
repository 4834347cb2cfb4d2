"""`python -m benchmarks.pipeline`: memory and speed of the data pipeline on a million patches, made as it runs."""

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pipeline.made import FILE, Made
from tfalign.data import pipeline


def measure(folder, *, patches, size, batch_size, workers):
    """Makes a cache of so many patches in a folder and reads it once: a dict of MB, seconds and patches."""
    files = -(-patches // (FILE // size) ** 2)
    cutting = pipeline.Cutting(patch_size=size, fractions=(1.0, 0.0, 0.0))
    idle = peak_megabytes()
    began = time.perf_counter()
    cache = pipeline.prepare(Made(files), Path(folder) / "cache", cutting, workers=workers, announce=print)
    written = time.perf_counter()
    after_writing = peak_megabytes()
    batches = pipeline.dataset(cache, "train", batch_size=batch_size, flips=True, max_blank=1.0, drop_remainder=False)
    count = sum(len(inputs) for inputs, _ in batches)
    return {
        "patches": count,
        "patch": [size, size, 1],
        "cache_megabytes": round(sum(Path(path).stat().st_size for path, _ in cache.shards["train"]) / 1e6),
        "peak_megabytes": {
            "after the imports": idle,
            "after writing": after_writing,
            "after reading": peak_megabytes(),
        },
        "peak_megabytes_of_a_worker": peak_megabytes(resource.RUSAGE_CHILDREN),
        "shuffle_megabytes": round(pipeline.SHUFFLE_BYTES / 1e6),
        "seconds": {"writing": round(written - began, 1), "reading": round(time.perf_counter() - written, 1)},
    }


def peak_megabytes(of=resource.RUSAGE_SELF):
    """The most memory that this process, or one of its children, has taken so far."""
    return round(resource.getrusage(of).ru_maxrss / 1024)


def main(
    patches: Annotated[int, typer.Option(help="How many.")] = 1_000_000,
    size: Annotated[int, typer.Option(help="Pixels a side of a patch.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Patches in a batch.")] = 64,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the cache is made; deleted at the end.")] = None,
):
    """Prints what a cache of many patches takes to write and to read."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        found = measure(beside, patches=patches, size=size, batch_size=batch_size, workers=workers)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    typer.run(main)
