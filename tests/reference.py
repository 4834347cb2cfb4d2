"""Slow truths: NumPy loops, no FFT, no TensorFlow. The shift convention is the one of `tfalign.ops.geometry`."""

import itertools

import numpy as np


def overlap_values(fixed, moving, fixed_mask, moving_mask, shift):
    """Pairs of values `(pixels, channels)` where both sides are valid; one sample, `(*spatial, channels)`."""
    pairs = []
    for index in np.ndindex(*fixed.shape[:-1]):
        at = tuple(i + m // 2 - n // 2 + s for i, m, n, s in zip(index, moving.shape[:-1], fixed.shape[:-1], shift))
        if any(i < 0 or i >= m for i, m in zip(at, moving.shape[:-1])):
            continue
        if fixed_mask[index] and moving_mask[at]:
            pairs.append((fixed[index], moving[at]))
    if not pairs:
        return np.zeros((0, fixed.shape[-1])), np.zeros((0, fixed.shape[-1]))
    left, right = zip(*pairs)
    return np.array(left, dtype=np.float64), np.array(right, dtype=np.float64)


def score(fixed, moving, similarity):
    """One similarity of paired values `(pixels, channels)`."""
    if similarity == "mse":
        return -np.mean((fixed - moving) ** 2)
    fixed, moving = fixed - fixed.mean(axis=0), moving - moving.mean(axis=0)
    if similarity == "cc":
        return np.mean(fixed * moving)
    power = np.sum(fixed**2) * np.sum(moving**2)
    return np.sum(fixed * moving) / np.sqrt(power) if power > 0 else 0.0


def score_map(fixed, moving, max_shift, similarity, fixed_mask=None, moving_mask=None, min_overlap=0.0):
    """Scores of one sample at every shift, `(*(2 * max_shift + 1))`; -inf where the overlap is too small."""
    fixed_mask = np.ones(fixed.shape[:-1]) if fixed_mask is None else fixed_mask
    moving_mask = np.ones(moving.shape[:-1]) if moving_mask is None else moving_mask
    window = [2 * bound + 1 for bound in max_shift]
    scores, counts = np.full(window, -np.inf), np.zeros(window)
    for index in itertools.product(*(range(length) for length in window)):
        shift = [i - bound for i, bound in zip(index, max_shift)]
        left, right = overlap_values(fixed, moving, fixed_mask, moving_mask, shift)
        counts[index] = len(left)
        if len(left):
            scores[index] = score(left, right, similarity)
    scores[counts < max(min_overlap * counts.max(), 1)] = -np.inf
    return scores


def linear_sample(values, at):
    """Value of one sample `(*spatial, channels)` at a fractional index, or None outside."""
    if any(a < 0 or a > size - 1 for a, size in zip(at, values.shape[:-1])):
        return None
    total = np.zeros(values.shape[-1])
    for corner in itertools.product((0, 1), repeat=len(at)):
        weight, index = 1.0, []
        for a, bit in zip(at, corner):
            low = int(np.floor(a))
            weight *= (a - low) if bit else 1 - (a - low)
            index.append(low + bit)
        if weight > 0:
            total += weight * values[tuple(index)]
    return total


def warp(moving, transform, output_shape, fill_value=0.0):
    """`aligned(u) = moving(T u)` of one sample by order-1 interpolation, and the overlap mask."""
    values = np.full((*output_shape, moving.shape[-1]), fill_value, dtype=np.float64)
    mask = np.zeros(output_shape)
    for index in np.ndindex(*output_shape):
        centered = [i - n // 2 for i, n in zip(index, output_shape)] + [1.0]
        at = (transform @ np.array(centered))[:-1] + [m // 2 for m in moving.shape[:-1]]
        sampled = linear_sample(moving, at)
        if sampled is not None:
            values[index], mask[index] = sampled, 1.0
    return values, mask


def aligned_loss(label, prediction, max_shift, similarity, pixel_loss, drift=0):
    """The loss of one sample: best whole-pixel shift, label moved back, mean over the overlap."""
    scores = score_map(prediction, label, max_shift, similarity, min_overlap=0.5)
    best = np.unravel_index(np.argmax(scores), scores.shape)
    shift = [i - bound - drift for i, bound in zip(best, max_shift)]
    ones = np.ones(prediction.shape[:-1]), np.ones(label.shape[:-1])
    left, right = overlap_values(prediction, label, *ones, shift)
    return np.mean(pixel_loss(right, left))
