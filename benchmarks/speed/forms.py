"""`python -m benchmarks.speed.forms`: ways to score every shift of a window, beside the ones that are used.

The others are here to be compared, not to be used.
"""

import os
from typing import Annotated

import keras
import numpy as np
import scipy.ndimage
import tensorflow as tf
import typer

from benchmarks.quality.tasks import TASKS
from benchmarks.speed import results
from benchmarks.speed.peers import Pairs
from benchmarks.speed.timing import interleaved
from tfalign.ops import spectral
from tfalign.ops.similarity import moments
from tfalign.ops.similarity.sums import Grids, overlap_sums

_CASES = ((64, 64, 1), (64, 64, 2), (64, 64, 8), (32, 128, 4), (32, 128, 16), (8, 512, 32))  # pairs, pixels, bound
_FACTORS = (2, 4)


def by_ffts(fixed, moving, bound):
    """As `tfalign.ops.similarity.sums` does: two real FFTs, and the inverse of their product, of which a part is kept.

    Of `fixed` `(batch, size, size)` and `moving` `(batch, size + 2 * bound, …)`: `(batch, 2 * bound + 1, …)`.
    """
    sizes = [spectral.fast_size(moving.shape[1])] * 2
    return spectral.inverse_window(_product(fixed, moving, sizes)[:, tf.newaxis], sizes, (bound, bound))[:, 0]


def _product(fixed, moving, sizes):
    spectra = [spectral.spectrum(side[:, tf.newaxis], sizes)[:, 0] for side in (fixed, moving)]
    return tf.math.conj(spectra[0]) * spectra[1]


def by_window_inverse(fixed, moving, bound, dtype=tf.float64):
    """The same with an inverse transform of the window alone, by matrix products."""
    size, window = spectral.fast_size(moving.shape[1]), np.arange(2 * bound + 1)
    half = np.arange(size // 2 + 1)
    twice = np.where((half == 0) | (half == size // 2), 1.0, 2.0)  # a real FFT keeps half of the frequencies
    down = np.exp(2j * np.pi * np.outer(window, np.arange(size)) / size) / size
    right = np.exp(2j * np.pi * np.outer(half, window) / size) * twice[:, np.newaxis] / size
    product = _product(fixed, moving, [size, size])
    real, imaginary = (tf.cast(part(product), dtype) for part in (tf.math.real, tf.math.imag))
    cosine, sine = (tf.constant(part, dtype) for part in (down.real, down.imag))
    real, imaginary = cosine @ real - sine @ imaginary, cosine @ imaginary + sine @ real
    found = real @ tf.constant(right.real, dtype) - imaginary @ tf.constant(right.imag, dtype)
    return tf.cast(found, fixed.dtype)


def by_passes(fixed, moving, bound):
    """Multiplied and summed shift by shift."""
    size, window = fixed.shape[1], range(2 * bound + 1)
    sums = [
        tf.reduce_sum(fixed * moving[:, down : down + size, right : right + size], axis=[1, 2])
        for down in window
        for right in window
    ]
    return tf.reshape(tf.stack(sums, axis=-1), [-1, len(window), len(window)])


def by_products_of_columns(fixed, moving, bound):
    """For each shift of the rows a matrix product of all columns with all columns, of which diagonals are summed."""
    size, window = fixed.shape[1], np.arange(2 * bound + 1)
    diagonals = np.arange(size)[:, np.newaxis] * (moving.shape[1] + 1) + window
    maps = []
    for down in window:
        columns = tf.matmul(fixed, moving[:, down : down + size], transpose_a=True)
        picked = tf.gather(tf.reshape(columns, [-1, size * moving.shape[1]]), diagonals.ravel(), axis=1)
        maps.append(tf.reduce_sum(tf.reshape(picked, [-1, size, len(window)]), axis=1))
    return tf.stack(maps, axis=1)


FORMS = {
    "FFTs (used)": by_ffts,
    "inverse of the window by matrix products, float64": by_window_inverse,
    "the same in float32": lambda *args: by_window_inverse(*args, dtype=tf.float32),
    "a pass for each shift": by_passes,
    "products of columns": by_products_of_columns,
}


def _best_by_ncc(fixed, moving, bound):
    """The best shift `(batch, 2)` of all, int32."""
    sides = fixed[..., tf.newaxis], moving[..., tf.newaxis]
    grids = Grids.windowed(*sides, *map(tf.ones_like, sides), (bound, bound))
    scores = moments.ncc(grids, overlap_sums(grids))
    window = 2 * bound + 1
    best = tf.argmax(tf.reshape(scores, [-1, window**2]), axis=-1, output_type=tf.int32)
    return tf.stack([best // window, best % window], axis=-1) - bound


def _coarse_to_fine(fixed, moving, bound, factor):
    """The best shift among those around the best of pooled sides; `bound` is a multiple of `factor`."""
    pooled = [tf.nn.avg_pool2d(side[..., tf.newaxis], factor, factor, "VALID")[..., 0] for side in (fixed, moving)]
    coarse = factor * _best_by_ncc(*pooled, bound // factor)
    spare = tf.pad(moving, [[0, 0], [factor, factor], [factor, factor]], "SYMMETRIC")
    at = bound + coarse[:, :, tf.newaxis] + tf.range(fixed.shape[1] + 2 * factor)
    near = tf.gather(tf.gather(spare, at[:, 0], batch_dims=1), at[:, 1], axis=2, batch_dims=1)
    near = tf.ensure_shape(near, [None, *[fixed.shape[1] + 2 * factor] * 2])
    return coarse + _best_by_ncc(fixed, near, factor)


def times_of_forms(count, size, bound, repeats):
    """Milliseconds of the correlations by each form, by name; forms that a case is far too large for are left out."""
    pairs = Pairs.made(count, (size, size), bound)
    sides = [tf.constant(side) for side in (pairs.inner, pairs.moving)]
    direct = (by_passes, by_products_of_columns)
    chosen = {name: form for name, form in FORMS.items() if bound <= 8 or form not in direct}
    compiled = {name: tf.function(lambda a, b, form=form: form(a, b, bound)) for name, form in chosen.items()}
    return interleaved({name: lambda form=form: form(*sides).numpy() for name, form in compiled.items()}, repeats)


def times_of_pyramids(count, size, bound, repeats):
    """Milliseconds of the best of all shifts, and of the best around that of pooled sides."""
    pairs = Pairs.made(count, (size, size), bound)
    sides = [tf.constant(side) for side in (pairs.inner, pairs.moving)]
    functions = {"all shifts (used)": tf.function(lambda a, b: _best_by_ncc(a, b, bound))}
    for factor in _FACTORS:
        functions[f"coarse to fine, factor {factor}"] = tf.function(
            lambda a, b, factor=factor: _coarse_to_fine(a, b, bound, factor)
        )
    return interleaved({name: lambda form=form: form(*sides).numpy() for name, form in functions.items()}, repeats)


def _pairs(scene, noise, is_paired, count, size, bound):
    """Patches of a scene and their moved labels, with noise of so many s.d.; or labels of any other place."""
    rng, wide, fixed, moving = np.random.default_rng(1), size + 4 * bound, [], []
    for _ in range(count):
        parts = []
        for _ in range(2):
            corner = [rng.integers(0, length - wide + 1) for length in scene.shape]
            parts.append(scene[tuple(slice(begin, begin + wide) for begin in corner)])
        inner = [slice(bound - one, bound - one + size + 2 * bound) for one in rng.integers(-bound, bound + 1, 2)]
        label = parts[0 if is_paired else 1][tuple(inner)]
        fixed.append(parts[0][2 * bound : -2 * bound, 2 * bound : -2 * bound])
        moving.append(label + noise * label.std() * rng.standard_normal(label.shape))
    return np.stack(fixed), np.stack(moving)


def agreement(count=2000, size=48, bound=8):
    """Share of the pairs for which coarse to fine gives the best of all shifts: `{content: {factor: share}}`."""
    white = np.random.default_rng(0).standard_normal((400, 400))
    smooth, tissue = scipy.ndimage.gaussian_filter(white, 2), TASKS["T1"].scenes(0)[0][0].truth.mean(axis=-1)
    contents = {
        "smooth noise": (smooth, 0.0, True),
        "white noise": (white, 0.0, True),
        "tissue": (tissue, 0.0, True),
        "tissue, label noise of 0 dB": (tissue, 1.0, True),
        "tissue, label noise of -10 dB": (tissue, 10**0.5, True),
        "tissue, label of another place": (tissue, 0.0, False),
    }
    found = {}
    for name, (scene, noise, is_paired) in contents.items():
        sides = [tf.constant(side, tf.float32) for side in _pairs(scene, noise, is_paired, count, size, bound)]
        truth = _best_by_ncc(*sides, bound).numpy()
        found[name] = {
            factor: float(np.mean(np.all(_coarse_to_fine(*sides, bound, factor).numpy() == truth, axis=-1)))
            for factor in _FACTORS
        }
    return found


def markdown(timed, shares):
    """The tables."""
    lines = []
    for title, times in timed.items():
        used = next(value for name, value in times.items() if name.endswith("(used)"))
        lines += [f"**{title}**", "", "| | ms | of the one used |", "|---|---|---|"]
        lines += [f"| {name} | {value:.2f} | {value / used:.2f} |" for name, value in times.items()]
        lines.append("")
    lines += ["**Pairs for which coarse to fine gives the best of all shifts (it counts from 99.9 %)**", ""]
    lines += [f"| | {' | '.join(f'factor {factor}' for factor in _FACTORS)} |", "|---" * (len(_FACTORS) + 1) + "|"]
    for name, of_factor in shares.items():
        lines.append(f"| {name} | {' | '.join(f'{100 * share:.2f} %' for share in of_factor.values())} |")
    return [*lines, ""]


def main(repeats: Annotated[int, typer.Option(help="Rounds of each comparison.")] = 15):
    """Times the forms and writes benchmarks/results/speed/forms.*."""
    timed = {}
    for count, size, bound in _CASES:
        title = f"{count} pairs of {size}x{size}, +-{bound}"
        timed[f"correlations of {title}"] = times_of_forms(count, size, bound, repeats)
        if bound >= 2 * max(_FACTORS):
            timed[f"best NCC of {title}"] = times_of_pyramids(count, size, bound, repeats)
    shares = agreement()
    found = {"milliseconds": timed, "agreement": shares}
    command = "python -m benchmarks.speed.forms"
    results.write("forms", command, found, markdown(timed, shares), threads="all", repeats=repeats)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keras.utils.set_random_seed(0)
    typer.run(main)
