"""How times are taken: in turns, in one process."""

import statistics
import time


def interleaved(functions, repeats, *, warm_up=2):
    """Milliseconds of each function, by name: medians over rounds in which each runs once, after some to warm up."""
    times = {name: [] for name in functions}
    for turn in range(repeats + warm_up):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn >= warm_up:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}
