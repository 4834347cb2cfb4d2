"""How times are taken: in turns, in one process; and on what."""

import statistics
import time

import cpuinfo


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


def processor():
    """Its name, and the widest vectors that it takes: convolutions are two to four times as fast by AVX-512."""
    about = cpuinfo.get_cpu_info()
    known = [title for flag, title in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in about.get("flags", ())]
    return " ".join([about.get("brand_raw", "unknown"), *known[:1]])
