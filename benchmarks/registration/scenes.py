"""Pairs of band-limited pictures whose shift is exact: a periodic field, moved by the phases of its spectrum."""

from typing import NamedTuple

import numpy as np
import scipy.ndimage

from tfalign.ops import geometry

_AROUND = 24  # px of field around a fixed patch: the margin and the largest shift


class Pairs(NamedTuple):
    """Fixed and moving patches `(pairs, *spatial, 1)` float32, the moving ones with a margin; truth `(pairs, d)` px."""

    fixed: np.ndarray
    moving: np.ndarray
    shifts: np.ndarray
    crb: np.ndarray  # `(pairs, d)` px: standard deviation that no unbiased estimate goes below, per unit of noise


def _frequencies(shape):
    return np.meshgrid(*[np.fft.fftfreq(size) for size in shape], indexing="ij", sparse=True)


def field(rng, shape, cut):
    """The spectrum of a real periodic field of unit variance: Gaussian, `cut` cycles/px wide, nothing above 0.4."""
    axes = _frequencies(shape)
    spectrum = np.fft.fftn(rng.standard_normal(shape)) * np.exp(-0.5 * sum(axis**2 for axis in axes) / cut**2)
    for axis in axes:
        spectrum = spectrum * (np.abs(axis) < 0.4)
    spectrum.flat[0] = 0
    return spectrum / np.fft.ifftn(spectrum).real.std()


def moved(spectrum, shift):
    """The field, its content moved down/right by `shift` pixels."""
    axes = _frequencies(spectrum.shape)
    return np.fft.ifftn(spectrum * np.exp(-2j * np.pi * sum(axis * s for axis, s in zip(axes, shift)))).real


def _slopes(spectrum):
    axes = _frequencies(spectrum.shape)
    return [np.fft.ifftn(2j * np.pi * axis * spectrum).real for axis in axes]


def pairs(count, *, rank=2, size=64, bound=8, margin=10, cut=0.1, snr_db=np.inf, whole=False, seed=0):
    """Pairs with shifts up to `bound`, even to each axis, white noise on the moving side.

    `snr_db` is the variance of the signal over that of the noise.
    """
    rng = np.random.default_rng([7, rank, size, seed])
    inner = (slice(_AROUND, _AROUND + size),) * rank
    outer = (slice(_AROUND - margin, _AROUND + size + margin),) * rank
    fixed, moving, shifts, bounds = [], [], [], []
    for _ in range(count):
        spectrum = field(rng, (size + 2 * _AROUND,) * rank, cut)
        shift = rng.integers(-bound, bound + 1, rank) if whole else rng.uniform(-bound, bound, rank)
        label = moved(spectrum, shift)[outer]
        slopes = np.array([slope[inner].ravel() for slope in _slopes(spectrum)])
        bounds.append(np.sqrt(np.diag(np.linalg.inv(slopes @ slopes.T))))
        fixed.append(moved(spectrum, np.zeros(rank))[inner])
        moving.append(label + 10 ** (-snr_db / 20) * rng.standard_normal(label.shape))
        shifts.append(shift)
    stacked = (np.stack(some).astype(np.float32)[..., np.newaxis] for some in (fixed, moving))
    return Pairs(*stacked, np.array(shifts, float), np.array(bounds))


def blank(like):
    """The same pairs with nothing on the moving side."""
    return like._replace(moving=np.full_like(like.moving, 0.3))


def unrelated(like, seed=0):
    """The same pairs with white noise in place of the moving side."""
    return like._replace(moving=np.random.default_rng(seed).standard_normal(like.moving.shape).astype(np.float32))


def periodic(count, *, size=64, bound=8, margin=10, period=6, snr_db=10, seed=0):
    """A grating across both axes: every shift by its period is as good, so nobody can know which it was."""
    rng = np.random.default_rng([8, seed])
    shifts = rng.integers(-bound, bound + 1, (count, 2))
    at = np.arange(-margin, size + margin)
    noise = 10 ** (-snr_db / 20)
    fixed = [np.add.outer(np.sin(2 * np.pi * at / period), np.sin(2 * np.pi * at / period))] * count
    moving = [
        np.add.outer(np.sin(2 * np.pi * (at - y) / period), np.sin(2 * np.pi * (at - x) / period))
        + noise * rng.standard_normal((len(at), len(at)))
        for y, x in shifts
    ]
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    both = (np.stack(some).astype(np.float32)[..., np.newaxis] for some in (np.stack(fixed)[inner], moving))
    return Pairs(*both, shifts.astype(float), np.full((count, 2), np.nan))


class Turned(NamedTuple):
    """Fixed and moving patches as of `Pairs`, and the true transforms `(pairs, d+1, d+1)`."""

    fixed: np.ndarray
    moving: np.ndarray
    transforms: np.ndarray


def turned(count, *, size=64, margin=24, cut=0.1, shift=4.0, rotation=0.0, scale=0.0, shear=0.0, even=False, seed=0):
    """Pairs of pictures turned, scaled and sheared up to the bounds, read from a field sampled twice as finely.

    `even` scales both axes alike.
    """
    rng = np.random.default_rng([9, size, seed])
    axes = rng.uniform(-1, 1, (count, 1 if even else 2)) * np.ones(2)
    transforms = geometry.make(
        rng.uniform(-shift, shift, (count, 2)),
        rotation=rng.uniform(-rotation, rotation, (count, 1)),
        scale=np.exp(axes * np.log1p(scale)),
        shear=rng.uniform(-shear, shear, (count, 1)),
    ).numpy()
    fixed, moving = [], []
    for transform in transforms:
        spectrum = field(rng, (2 * (size + 2 * margin),) * 2, cut / 2)
        values = np.fft.ifftn(spectrum).real
        fixed.append(_read(values, np.eye(3), size))
        moving.append(_read(values, np.linalg.inv(transform), size + 2 * margin))
    stacked = (np.stack(some).astype(np.float32)[..., np.newaxis] for some in (fixed, moving))
    return Turned(*stacked, transforms)


def _read(values, transform, size):
    """A periodic field of half pixels at the pixels of a grid moved by `transform`."""
    grid = np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 2, indexing="ij"))
    at = np.einsum("ij,jrc->irc", transform[:2, :2], grid) + transform[:2, 2, np.newaxis, np.newaxis]
    return scipy.ndimage.map_coordinates(values, 2 * at + values.shape[0] // 2, order=5, mode="grid-wrap")
