import numpy as np

from benchmarks.pipeline import __main__ as command


def test_it_counts_patches_and_what_they_take(tmp_path):
    found = command.measure(tmp_path, patches=3000, size=64, batch_size=32, workers=0)
    assert found["patches"] == 12 * 256
    floats = 2 * 64 * 64 * 4
    assert found["cache_megabytes"] * 1e6 == np.clip(found["cache_megabytes"] * 1e6, 3072 * floats, 3072 * floats * 1.1)
    peaks = list(found["peak_megabytes"].values())
    assert peaks == sorted(peaks)
