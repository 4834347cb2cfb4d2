"""Correlation over a window of shifts by FFT, 1-D to 3-D.

Only shifts of up to `max_shift` are wanted, so the moving side is cut or padded to `size + 2 * max_shift` and the
transform needs no more than that: the circular wrap falls outside the window.
"""

import numpy as np
import tensorflow as tf

_FORWARD = {1: tf.signal.rfft, 2: tf.signal.rfft2d, 3: tf.signal.rfft3d}
_INVERSE = {1: tf.signal.irfft, 2: tf.signal.irfft2d, 3: tf.signal.irfft3d}


def _even_fast_sizes(largest):
    """Even products of 2, 3 and 5 up to `largest`: sizes whose FFT is fast."""
    sizes = [2**a * 3**b * 5**c for a in range(1, 25) for b in range(16) for c in range(11)]
    return np.array(sorted(size for size in sizes if size <= largest), dtype=np.int32)


_FAST_SIZES = _even_fast_sizes(1 << 24)


def fast_size(size):
    """The smallest even 5-smooth number >= `size`; an int for an int, else a scalar tensor."""
    if isinstance(size, int):
        return int(_FAST_SIZES[np.searchsorted(_FAST_SIZES, size)])
    table = tf.constant(_FAST_SIZES)
    return tf.gather(table, tf.reduce_sum(tf.cast(table < size, tf.int32)))


def spectrum(values, fft_sizes):
    """Real FFT `(batch, channels, *frequencies)` of `(batch, channels, *spatial)`, zero-padded to `fft_sizes`."""
    # Padded here: `fft_length` does not pad an empty batch.
    sizes = [size or tf.shape(values)[axis] for axis, size in enumerate(values.shape[2:], start=2)]
    spare = [[0, wanted - size] for wanted, size in zip(fft_sizes, sizes)]
    padded = tf.pad(values, [[0, 0], [0, 0], *spare])
    return _FORWARD[len(fft_sizes)](padded, fft_length=tf.stack(fft_sizes))


def channels_first(values):
    """`(batch, channels, *spatial)` of `(batch, *spatial, channels)`.

    What mixes grids of one channel and of several is some ten times faster so: rows of numbers, not runs of three.
    """
    rank = values.shape.rank - 2
    return tf.transpose(values, [0, rank + 1, *range(1, rank + 1)])


def inverse_window(products, fft_sizes, max_shift):
    """Correlations at the shifts of the window, from products of spectra.

    Args:
        products: `conj(fixed) * moving`, `(batch, channels, *frequencies)`, of two `spectrum`s; the moving values start
            `max_shift` pixels before the fixed ones.
        fft_sizes: the sizes given to `spectrum`.
        max_shift: one int per axis.

    Returns:
        `sum_u fixed(u) moving(u + k - max_shift)`, `(batch, channels, *(2 * max_shift + 1))`, real.
    """
    window = [2 * bound + 1 for bound in max_shift]
    return _first_values(products, fft_sizes, window)


def inverse(products, fft_sizes, shape):
    """The first values `(batch, *shape, channels)` of the correlations whose spectra are `products`, real."""
    first = _first_values(products, fft_sizes, shape)
    rank = len(fft_sizes)
    return tf.transpose(first, [0, *range(2, rank + 2), 1])


def _first_values(products, fft_sizes, shape):
    rank = len(fft_sizes)
    full = _INVERSE[rank](products, fft_length=tf.stack(fft_sizes))
    cut = tf.slice(full, [0] * (rank + 2), tf.stack([-1, -1, *shape]))
    cut.set_shape([*products.shape[:2], *(size if isinstance(size, int) else None for size in shape)])
    return cut
