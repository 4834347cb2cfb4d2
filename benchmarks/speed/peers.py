"""Registration of whole-pixel shifts beside other libraries, and mutual information beside its direct form."""

from typing import NamedTuple

import cv2
import numpy as np
import scipy.ndimage
import SimpleITK
import skimage.feature
import skimage.registration
import tensorflow as tf

import tfalign
from benchmarks.speed.timing import interleaved
from tfalign.ops.similarity import information
from tfalign.ops.similarity.sums import Grids

HISTOGRAMS = ("np.histogram2d", "np.bincount")


class Pairs(NamedTuple):
    """Smooth noise, band-limited to structures of some six pixels, and the same moved by whole pixels."""

    fixed: np.ndarray  # (count, *spatial)
    moving: np.ndarray
    shifts: np.ndarray  # (count, d)
    bound: int

    @classmethod
    def made(cls, count, shape, bound):
        """`count` pairs whose shifts are within `bound`; nothing wraps around."""
        rng, rank = np.random.default_rng(0), len(shape)
        shifts = rng.integers(-bound, bound + 1, (count, rank))
        fixed, moving = [], []
        for shift in shifts:
            scene = scipy.ndimage.gaussian_filter(rng.standard_normal([size + 2 * bound for size in shape]), 2)
            for sides, corner in ((fixed, [bound] * rank), (moving, bound - shift)):
                sides.append(scene[tuple(slice(begin, begin + size) for begin, size in zip(corner, shape))])
        return cls(np.stack(fixed).astype(np.float32), np.stack(moving).astype(np.float32), shifts, bound)

    @property
    def rank(self):
        """Spatial axes."""
        return self.fixed.ndim - 1

    @property
    def inner(self):
        """The fixed sides without `bound` pixels at each border: every shift within it then has a counterpart."""
        return np.ascontiguousarray(self.fixed[(slice(None), *(slice(self.bound, -self.bound),) * self.rank)])


def _tfalign(fixed, moving, bound):
    sides = [tf.constant(side[..., np.newaxis]) for side in (fixed, moving)]

    def timed(jit_compile):
        function = tf.function(
            lambda a, b: tfalign.register(a, b, max_shift=bound, subpixel=False).translation, jit_compile=jit_compile
        )
        return lambda: function(*sides).numpy()

    return {"tfalign": timed(False), "tfalign, XLA": timed(True)}


def _each(function, fixed, moving):
    """One pair after the other, as libraries for one image do."""
    return lambda: np.stack([function(*pair) for pair in zip(fixed, moving)])


def _at_peak(scores):
    return np.array(np.unravel_index(np.argmax(scores), scores.shape))


def whole_sides(pairs):
    """Ways to register sides of one size, by name; and those among them that take seconds."""
    size, ones = pairs.fixed.shape[1:], np.ones(pairs.fixed.shape[1:], bool)

    def itk(fixed, moving):
        images = [SimpleITK.GetImageFromArray(side) for side in (fixed, moving)]
        scores = SimpleITK.FFTNormalizedCorrelation(*images, requiredFractionOfOverlappingPixels=0.5)
        return np.array(size) - 1 - _at_peak(SimpleITK.GetArrayViewFromImage(scores))

    def masked(fixed, moving):
        found = skimage.registration.phase_cross_correlation(fixed, moving, reference_mask=ones, moving_mask=ones)
        return -found[0]

    functions = {
        **_tfalign(pairs.fixed, pairs.moving, pairs.bound),
        "skimage phase": _each(
            lambda a, b: -skimage.registration.phase_cross_correlation(a, b)[0], pairs.fixed, pairs.moving
        ),
    }
    if pairs.rank == 2:
        # It needs writable arrays, and gives x first.
        functions["cv2.phaseCorrelate"] = _each(
            lambda a, b: cv2.phaseCorrelate(a.copy(), b.copy())[0][::-1], pairs.fixed, pairs.moving
        )
    slow = {"skimage masked NCC": _each(masked, pairs.fixed, pairs.moving)}
    if pairs.rank > 1:
        slow["SimpleITK NCC"] = _each(itk, pairs.fixed, pairs.moving)
    return functions, slow


def inner_parts(pairs):
    """Ways to find the inner part of the one side in the other, by name; and those that take seconds."""
    inner = pairs.inner

    def by_cv2(template, image):
        image, template = np.atleast_2d(image, template)
        return (_at_peak(cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED)) - pairs.bound)[-pairs.rank :]

    functions, slow = _tfalign(inner, pairs.moving, pairs.bound), {}
    if pairs.rank < 3:
        functions["cv2.matchTemplate"] = _each(by_cv2, inner, pairs.moving)
    if pairs.rank > 1:
        slow["skimage match_template"] = _each(
            lambda template, image: _at_peak(skimage.feature.match_template(image, template)) - pairs.bound,
            inner,
            pairs.moving,
        )
    return functions, slow


def compared(functions, slow, pairs, repeats):
    """`(milliseconds, share of pairs whose shift is exact)`, by name."""
    every = {**functions, **slow}
    exact = {
        name: float(np.mean(np.all(np.round(function()) == pairs.shifts, axis=-1))) for name, function in every.items()
    }
    return {**interleaved(functions, repeats), **interleaved(slow, 1, warm_up=0)}, exact


def mutual_information(*, count, size, bound, repeats):
    """Milliseconds of the map of mutual information, and of histograms shift by shift; the largest difference."""
    pairs = Pairs.made(count, (size, size), bound)
    sides = [tf.constant(side[..., np.newaxis]) for side in (pairs.fixed, pairs.moving)]
    ones = tf.ones_like(sides[0])
    grids = Grids.windowed(*sides, ones, ones, (bound, bound))
    levels = information.level_count(grids)
    numbers = []
    for side in sides:
        ends = information.value_range(side, ones)
        steps = np.floor((side - ends[0]) / (ends[1] - ends[0]) * levels)
        numbers.append(np.clip(steps, 0, levels - 1).astype(int)[..., 0])

    @tf.function
    def by_tfalign(a, b):
        return tfalign.register(a, b, max_shift=bound, similarity="mi", return_map=True, subpixel=False).score_map

    def by_shift(joint_counts):
        maps = np.zeros((count, 2 * bound + 1, 2 * bound + 1))
        for place in np.ndindex(*maps.shape):
            low = [max(bound - at, 0) for at in place[1:]]
            high = [min(size, size + bound - at) for at in place[1:]]
            part = tuple(slice(*ends) for ends in zip(low, high))
            moved = tuple(slice(a + at - bound, b + at - bound) for a, b, at in zip(low, high, place[1:]))
            maps[place] = _information(joint_counts(numbers[0][place[0]][part], numbers[1][place[0]][moved]))
        return maps

    def counted(one, other):
        return np.bincount((one * levels + other).ravel(), minlength=levels**2).reshape(levels, levels)

    def histogram(one, other):
        return np.histogram2d(one.ravel(), other.ravel(), bins=levels, range=[(0, levels), (0, levels)])[0]

    found, truth = by_tfalign(*sides).numpy(), by_shift(counted)
    within = np.isfinite(found)
    times = interleaved({"tfalign": lambda: by_tfalign(*sides).numpy()}, repeats)
    direct = {name: lambda way=way: by_shift(way) for name, way in zip(HISTOGRAMS, (histogram, counted))}
    times |= interleaved(direct, 1, warm_up=0)
    return times, float(np.max(np.abs(found - truth)[within]))


def _information(counts):
    share = counts / counts.sum()
    entropies = [-np.sum(one[one > 0] * np.log(one[one > 0])) for one in (share, share.sum(axis=0), share.sum(axis=1))]
    return entropies[1] + entropies[2] - entropies[0]
