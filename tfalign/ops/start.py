"""Where a refinement of rotation and scale starts: the best of a grid of candidates, each with all its shifts."""

import itertools
import math

import numpy as np
import tensorflow as tf

from tfalign.ops import geometry, resample, spline
from tfalign.ops.similarity.measures import MEASURES
from tfalign.ops.similarity.sums import Grids, overlap_sums

_SIZES = {1: 4096, 2: 64, 3: 64}  # px, to which larger grids are shrunk
_STEP = 3.0  # px that the border moves from one candidate to the next
_MOST = 2000  # candidates
_FEW = 3  # scales, of which the refinement finds those that differ between axes


def candidates(bounds, shape):
    """Parameters `(count, number)` of the candidates, the identity first: all rotations with all scales.

    Where these are more than 2000, axes are scaled alike, and a volume is turned about one axis at a time; a few scales
    are the same for all axes too. Shear is left to the refinement. Sizes that are not known count as the largest that
    are not shrunk.
    """
    rank = len(bounds.max_shift)
    largest = _SIZES[rank]
    reach = max(min(size, largest) if isinstance(size, int) else largest for size in shape) / 2.0
    limits = bounds.limits()
    angles = _spread(limits["rotation"][0], _STEP / reach) if "rotation" in limits else [0.0]
    scales = _spread(limits["scale"][0], _STEP / reach) if "scale" in limits else [0.0]
    planes = len(geometry.PLANES[rank])
    turns = list(itertools.product(angles, repeat=planes))
    stretches = [(scale,) * rank for scale in scales]
    if len(turns) * len(stretches) > _MOST:
        single = ([angle * (one == plane) for one in range(planes)] for plane in range(planes) for angle in angles)
        turns = sorted({tuple(turn) for turn in single})
    if len(scales) > _FEW and len(turns) * len(scales) ** rank <= _MOST:
        stretches = list(itertools.product(scales, repeat=rank))
    found = []
    for turn, stretch in itertools.product(turns, stretches):
        parts = {"rotation": turn, "scale": stretch, "shear": [0.0] * planes}
        found.append(np.concatenate([np.zeros(rank), *(parts[name] for name in limits)]))
    return np.stack(sorted(found, key=lambda one: float(np.sum(np.square(one)))))


def _spread(limit, step):
    """Middles of equal parts of `-limit .. limit`, at most `step` long; an odd number, so that 0 is one."""
    count = 2 * math.ceil((2.0 * limit / step - 1.0) / 2.0 - 1e-9) + 1
    count = max(count, 1)
    return [(number - count // 2) * 2.0 * limit / count for number in range(count)]


def best_linear(fixed, moving, masks, *, bounds, similarity, min_overlap, textured, pool):
    """Parameters `(batch, number)`, without translation, of the candidate whose best shift scores highest.

    Scores every shift of every candidate, one candidate after the other, so the memory is that of one. Large grids are
    shrunk. "ncc" stands for the measures of values, mutual information for those of histograms.

    Args: as of `tfalign.ops.refine.refined`; `min_overlap` is a share of the smaller side's valid pixels.

    Gradient: none.
    """
    shape = [*geometry.spatial_shape(fixed), *geometry.spatial_shape(moving)]
    known = [size for size in shape if isinstance(size, int)]
    factor = -(-max(known) // _SIZES[len(bounds.max_shift)]) if len(known) == len(shape) else 1
    fixed, fixed_mask = _shrunk(tf.stop_gradient(fixed), tf.stop_gradient(masks[0]), factor)
    moving, moving_mask = _shrunk(tf.stop_gradient(moving), tf.stop_gradient(masks[1]), factor)
    # Shrunk grids need not share a centre to the pixel.
    max_shift = [-(-bound // factor) + (factor > 1) for bound in bounds.max_shift]
    window = [size + 2 * bound for size, bound in zip(geometry.spatial_shape(fixed), max_shift)]
    both = tf.concat([spline.fill_holes(moving, moving_mask), moving_mask], axis=-1)
    least = (
        0.9999
        * min_overlap
        * tf.minimum(*(tf.reduce_sum(one, axis=list(range(1, one.shape.rank))) for one in (fixed_mask, moving_mask)))
    )
    table = tf.constant(candidates(bounds, geometry.spatial_shape(fixed)), fixed.dtype)
    measure = MEASURES[similarity]

    def body(number, best, top):
        transform = bounds.transform(tf.gather(table, [number]))
        values, inside = resample.sample(
            both, geometry.transformed_grid(transform, window), interpolation="linear", finite=True
        )
        mask = values[..., -1:] * inside[..., tf.newaxis]
        grids = Grids.windowed(fixed, values[..., :-1], fixed_mask, mask, max_shift)
        sums = overlap_sums(grids)
        scores = measure.telling_map(grids, sums)
        enough = (sums.count >= tf.reshape(least, [-1] + [1] * (sums.count.shape.rank - 1))) & (sums.count > 0.5)
        score = tf.reduce_max(tf.where(enough, scores, -np.inf), axis=list(range(1, scores.shape.rank)))
        if pool == "batch":
            score = tf.zeros_like(score) + tf.reduce_sum(tf.where(textured, score, 0.0))
        is_better = score > top
        return number + 1, tf.where(is_better, number, best), tf.where(is_better, score, top)

    batch = tf.shape(fixed)[:1]
    first = (tf.constant(0), tf.zeros(batch, tf.int32), tf.fill(batch, tf.constant(-np.inf, fixed.dtype)))
    count = table.shape[0]
    _, best, _ = tf.while_loop(lambda *_: True, body, first, maximum_iterations=count)
    return tf.gather(table, best)


def _shrunk(values, mask, factor):
    """Means over cubes of `factor` pixels, and the share of each that counts."""
    if factor == 1:
        return values, mask
    both = tf.concat([values * mask, mask], axis=-1)
    for axis, size in enumerate(geometry.spatial_shape(values), start=1):
        spare = [[0, -size % factor if one == axis else 0] for one in range(both.shape.rank)]
        padded = tf.pad(both, spare)
        shape = tf.shape(padded)
        split = tf.concat([shape[:axis], [-(-size // factor), factor], shape[axis + 1 :]], axis=0)
        both = tf.reduce_mean(tf.reshape(padded, split), axis=axis + 1)
    sums, share = both[..., :-1], both[..., -1:]
    shrunk = tf.math.divide_no_nan(sums, share)
    static = [values.shape[0], *(-(-size // factor) for size in geometry.spatial_shape(values))]
    return tf.ensure_shape(shrunk, [*static, values.shape[-1]]), tf.ensure_shape(share, [*static, 1])
