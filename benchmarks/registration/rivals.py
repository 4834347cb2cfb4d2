"""Rigid and affine registration of the same pairs by tfalign, OpenCV's ECC and SimpleITK."""

import time

import cv2
import numpy as np
import SimpleITK
import tensorflow as tf

import tfalign
from benchmarks.registration import scenes

_SHIFT = 4.0  # px
# What is drawn, and searched with a little room.
_DRAWN = {
    "rigid 5": {"rotation": 5.0},
    "rigid 15": {"rotation": 15.0},
    "affine": {"rotation": 5.0, "scale": 0.1, "shear": 5.0},
}
_ROOM = 1.2
_SNR_DB = 10.0


def rivals(count):
    """Share of pairs with every corner within 1 px, the median error of these, and seconds a pair."""
    rows = []
    for search, drawn in _DRAWN.items():
        pairs = scenes.turned(count, shift=_SHIFT, **drawn)
        noise = np.random.default_rng(3).standard_normal(pairs.moving.shape)
        pairs = pairs._replace(moving=(pairs.moving + 10 ** (-_SNR_DB / 20) * noise).astype(np.float32))
        for program, register in _PROGRAMS.items():
            found, seconds = register(pairs, drawn)
            error = corner_error(found, pairs.transforms, pairs.fixed.shape[1:-1])
            within = error < 1.0
            rows.append(
                {
                    "search": search,
                    "program": program,
                    "success": float(within.mean()),
                    "median": float(np.median(error[within])) if within.any() else None,
                    "seconds": seconds / count,
                }
            )
    return rows


def corner_error(found, truth, shape):
    """The largest distance in pixels between where two transforms send the corners, `(pairs,)`; inf where none."""
    corners = np.array(np.meshgrid(*[(-n / 2, n / 2) for n in shape])).reshape(len(shape), -1)
    corners = np.concatenate([corners, np.ones_like(corners[:1])])
    error = np.max(np.linalg.norm((found - truth)[:, :-1] @ corners, axis=1), axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def _by_tfalign(similarity):
    def register(pairs, drawn):
        bounds = {f"max_{name}": _ROOM * bound for name, bound in drawn.items()}
        options = {"max_shift": round(_ROOM * _SHIFT), "similarity": similarity, **bounds}
        compiled = tf.function(lambda fixed, moving: tfalign.register(fixed, moving, **options).transform)
        compiled(pairs.fixed, pairs.moving)
        start = time.perf_counter()
        found = compiled(pairs.fixed, pairs.moving).numpy()
        return found, time.perf_counter() - start

    return register


def _one_by_one(register):
    """Of a function of one pair, `(fixed, moving, is_affine)`, which gives a transform of pixel indices (row, col)."""

    def all_of_them(pairs, drawn):
        found, start = [], time.perf_counter()
        for fixed, moving in zip(pairs.fixed[..., 0], pairs.moving[..., 0]):
            found.append(_centered(register(fixed, moving, "scale" in drawn), fixed.shape, moving.shape))
        return np.stack(found), time.perf_counter() - start

    return all_of_them


def _centered(indices, shape, moving_shape):
    """A transform of pixel indices as one of coordinates from the grids' centres."""
    here, there = np.eye(3), np.eye(3)
    here[:2, 2], there[:2, 2] = np.array(shape) // 2, -(np.array(moving_shape) // 2)
    return there @ indices @ here


def _by_ecc(fixed, moving, is_affine):
    """From the identity, as OpenCV's documentation does; it counts (col, row)."""
    start = np.eye(3)[:2].astype(np.float32)
    start[:, 2] = (np.array(moving.shape) // 2 - np.array(fixed.shape) // 2)[::-1]
    motion = cv2.MOTION_AFFINE if is_affine else cv2.MOTION_EUCLIDEAN
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
    try:
        _, found = cv2.findTransformECC(fixed, moving, start, motion, stop, None, 5)
    except cv2.error:  # it does not converge
        return np.full((3, 3), np.nan)
    swap = [1, 0]
    return np.concatenate([np.column_stack([found[swap][:, swap], found[swap, 2]]), np.eye(3)[2:]])


def _by_simpleitk(fixed, moving, is_affine, metric):
    """Gradient descent over a pyramid, from the grids' common centre; SimpleITK counts (col, row) too."""
    images = [SimpleITK.GetImageFromArray(values) for values in (fixed, moving)]
    for image, values in zip(images, (fixed, moving)):
        image.SetOrigin([-float(size // 2) for size in reversed(values.shape)])
    method = SimpleITK.ImageRegistrationMethod()
    if metric == "mutual information":
        method.SetMetricAsMattesMutualInformation(32)
    else:
        method.SetMetricAsCorrelation()
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetInitialTransform(SimpleITK.AffineTransform(2) if is_affine else SimpleITK.Euler2DTransform())
    try:
        found = method.Execute(*images)
    except RuntimeError:  # all samples outside
        return np.full((3, 3), np.nan)
    origin, *ends = (np.array(found.TransformPoint(point))[::-1] for point in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)))
    matrix = np.eye(3)
    matrix[:2] = np.column_stack([*(end - origin for end in ends), origin])
    # From coordinates to indices, which is what `_one_by_one` takes.
    here, there = np.eye(3), np.eye(3)
    here[:2, 2], there[:2, 2] = -(np.array(fixed.shape) // 2), np.array(moving.shape) // 2
    return there @ matrix @ here


_PROGRAMS = {
    "tfalign, ncc": _by_tfalign("ncc"),
    "tfalign, mi": _by_tfalign("mi"),
    "cv2.findTransformECC": _one_by_one(_by_ecc),
    "SimpleITK, correlation": _one_by_one(lambda *pair: _by_simpleitk(*pair, "correlation")),
    "SimpleITK, Mattes MI": _one_by_one(lambda *pair: _by_simpleitk(*pair, "mutual information")),
}
