"""Slow truths: NumPy loops, no FFT, no TensorFlow. The shift convention is the one of `tfalign.ops.geometry`."""

import itertools

import numpy as np
import scipy.optimize


def overlap_values(fixed, moving, fixed_mask, moving_mask, shift):
    """Pairs of values `(pixels, channels)` where both sides count, and their weights; one sample."""
    pairs, weights = [], []
    for index in np.ndindex(*fixed.shape[:-1]):
        at = tuple(i + m // 2 - n // 2 + s for i, m, n, s in zip(index, moving.shape[:-1], fixed.shape[:-1], shift))
        if any(i < 0 or i >= m for i, m in zip(at, moving.shape[:-1])):
            continue
        weight = float(fixed_mask[index]) * float(moving_mask[at])
        if weight > 0:
            pairs.append((fixed[index], moving[at]))
            weights.append(weight)
    if not pairs:
        return np.zeros((0, fixed.shape[-1])), np.zeros((0, fixed.shape[-1])), np.zeros(0)
    left, right = zip(*pairs)
    return np.array(left, dtype=np.float64), np.array(right, dtype=np.float64), np.array(weights)


def entropy(counts):
    """Entropy of a histogram, nats."""
    share = counts[counts > 0] / counts.sum()
    return -np.sum(share * np.log(share))


def information(fixed, moving, weights, similarity):
    """A measure of the joint histograms of two lists of levels `(pixels, channels)`, over channels their mean."""
    found = []
    for f, m in zip(fixed.T.astype(int), moving.T.astype(int)):
        joint = np.zeros((f.max() + 1, m.max() + 1))
        for left, right, weight in zip(f, m, weights):
            joint[left, right] += weight
        found.append([entropy(joint), entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))])
    both, left, right = np.mean(found, axis=0)
    if similarity == "mi":
        return left + right - both
    if similarity == "nmi":
        return (left + right) / both if both > 1e-6 else 1.0
    return -both


def score(fixed, moving, weights, similarity):
    """One similarity of paired values `(pixels, channels)`."""
    if similarity in ("mi", "nmi", "joint_entropy"):
        return information(fixed, moving, weights, similarity)
    weights = weights[:, np.newaxis] / weights.sum()
    channels = fixed.shape[-1]
    if similarity == "mse":
        return -np.sum(weights * (fixed - moving) ** 2) / channels
    if similarity == "mae":
        return -np.sum(weights * np.abs(fixed - moving)) / channels
    if similarity == "overlap":
        return 2 * np.sum(weights * fixed * moving) / np.sum(weights * (fixed + moving))
    if similarity in ("cross_entropy", "binary_cross_entropy"):
        p = np.clip(fixed, 1e-7, 1 - 1e-7)
        if channels == 1 or similarity == "binary_cross_entropy":
            return np.sum(weights * (moving * np.log(p) + (1 - moving) * np.log(1 - p)))
        return np.sum(weights * moving * np.log(p))
    fixed, moving = fixed - np.sum(weights * fixed, axis=0), moving - np.sum(weights * moving, axis=0)
    if similarity == "cc":
        return np.sum(weights * fixed * moving) / channels
    power = np.sum(weights * fixed**2) * np.sum(weights * moving**2)
    return np.sum(weights * fixed * moving) / np.sqrt(power) if power > 0 else 0.0


def levels_of(values, mask, levels):
    """Numbers of equal steps between the ends of the valid values of each channel, or 3 s.d. from their mean."""
    numbers = np.zeros(values.shape, int)
    for channel in range(values.shape[-1]):
        one = values[..., channel].astype(np.float64)
        valid = one[mask > 0]
        low = max(valid.min(), valid.mean() - 3 * valid.std())
        high = min(valid.max(), valid.mean() + 3 * valid.std())
        step = (high - low) / levels if high > low else 1.0
        numbers[..., channel] = np.clip(np.floor((one - low) / step), 0, levels - 1)
    return numbers


def phase_map(fixed, moving, max_shift, fft_sizes):
    """Phase correlation of one sample over the window, by whole transforms of grids faded over a quarter."""
    spectra = []
    for side, starts in ((fixed, [0] * len(max_shift)), (moving, max_shift)):
        begin = [m // 2 - n // 2 - b for m, n, b in zip(side.shape[:-1], fixed.shape[:-1], starts)]
        placed = np.zeros((*fft_sizes, side.shape[-1]))
        read = [range(max(b, 0), min(b + n + 2 * s, m)) for b, n, s, m in zip(begin, fixed.shape, starts, side.shape)]
        # The mean is that of what any shift of the window reads.
        centered = side - side[np.ix_(*read)].mean(axis=tuple(range(side.ndim - 1)))
        for at in itertools.product(*read):
            ramp = 1.0
            for i, axis in zip(at, read):
                depth = (min(i - axis[0], axis[-1] - i) + 0.5) / (0.25 * len(axis))
                ramp *= np.sin(0.5 * np.pi * min(depth, 1.0)) ** 2
            placed[tuple(i - b for i, b in zip(at, begin))] = ramp * centered[at]
        spectra.append(np.fft.fftn(placed, axes=range(len(max_shift))))
    power = np.sum(np.conj(spectra[0]) * spectra[1], axis=-1)
    magnitude = np.abs(power)
    full = np.fft.ifftn(power / (magnitude + 0.01 * magnitude.max())).real
    return full[tuple(slice(2 * bound + 1) for bound in max_shift)]


def score_map(fixed, moving, max_shift, similarity, fixed_mask=None, moving_mask=None, min_overlap=0.0, levels=8):
    """Scores of one sample at every shift, `(*(2 * max_shift + 1))`; -inf where the overlap is too small."""
    fixed_mask = np.ones(fixed.shape[:-1]) if fixed_mask is None else fixed_mask
    moving_mask = np.ones(moving.shape[:-1]) if moving_mask is None else moving_mask
    if similarity in ("mi", "nmi", "joint_entropy"):
        read = np.zeros(moving.shape[:-1])  # what any shift of the window reads
        starts = [m // 2 - n // 2 - b for m, n, b in zip(read.shape, fixed.shape[:-1], max_shift)]
        ends = [start + n + 2 * b for start, n, b in zip(starts, fixed.shape[:-1], max_shift)]
        read[tuple(slice(max(start, 0), end) for start, end in zip(starts, ends))] = 1
        fixed, moving = levels_of(fixed, fixed_mask, levels), levels_of(moving, moving_mask * read, levels)
    window = [2 * bound + 1 for bound in max_shift]
    scores, counts = np.full(window, -np.inf), np.zeros(window)
    for index in itertools.product(*(range(length) for length in window)):
        shift = [i - bound for i, bound in zip(index, max_shift)]
        left, right, weights = overlap_values(fixed, moving, fixed_mask, moving_mask, shift)
        counts[index] = weights.sum()
        if len(left):
            scores[index] = score(left, right, weights, similarity)
    scores[counts < max(min_overlap * counts.max(), 0.5)] = -np.inf
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
    shift = [i - bound - offset for i, bound, offset in zip(best, max_shift, np.broadcast_to(drift, len(best)))]
    ones = np.ones(prediction.shape[:-1]), np.ones(label.shape[:-1])
    left, right, _ = overlap_values(prediction, label, *ones, shift)
    return np.mean(pixel_loss(right, left))


def parzen_information(fixed, moving, weights, levels):
    """Mutual information of two lists of values, each shared by levels through a cubic B-spline; within 3 s.d."""

    def spline(x):
        x = abs(x)
        return 2 / 3 - x**2 + x**3 / 2 if x < 1 else max(2 - x, 0) ** 3 / 6

    def level(values):
        counted = values[weights > 0]
        low = max(counted.min(), counted.mean() - 3 * counted.std())
        high = min(counted.max(), counted.mean() + 3 * counted.std())
        return 1 + np.clip((values - low) / (high - low), 0, 1) * (levels - 3)

    joint = np.zeros((levels, levels))
    for left, right, weight in zip(level(fixed), level(moving), weights):
        for i, j in itertools.product(range(levels), repeat=2):
            joint[i, j] += weight * spline(left - i) * spline(right - j)
    return entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint)


def believed(belief, origin, *, mean, variance, fraction, telling, push, wander, rates, shares, change, outliers):
    """One step of the drift's histogram filter on one axis: `belief[rate][cell]`, 16 cells a pixel; the new belief.

    A batch's mean shift and its fraction, trusted by `telling`, weigh each drift; then the network moves by `-rate *
    push` and wanders.
    """
    cells = len(belief[0])
    drifts = [origin + (cell - cells // 2) / 16 for cell in range(cells)]
    best = min((mean - drift) ** 2 for drift in drifts)
    weighed = np.zeros_like(belief)
    for cell, drift in enumerate(drifts):
        by_mean = np.exp(-((mean - drift) ** 2 - best) / (2 * variance))
        by_fraction = telling * np.exp(8 * (np.cos(2 * np.pi * (drift - fraction)) - 1)) + 1 - telling
        weighed[:, cell] = belief[:, cell] * ((1 - outliers) * by_mean * by_fraction + outliers)
    moved = np.zeros_like(belief)
    for row, rate in enumerate(rates):
        for cell in range(cells):
            target = cell - 16 * rate * push
            left = int(np.floor(target))
            for to, share in ((left, left + 1 - target), (left + 1, target - left)):
                if 0 <= to < cells:
                    moved[row, to] += share * weighed[row, cell]
    wandered = np.zeros_like(belief)
    for cell in range(cells):
        kernel = {cell: 1 - wander * 256}
        for beside in (cell - 1, cell + 1):
            if 0 <= beside < cells:
                kernel[beside] = wander * 128
        for to, share in kernel.items():
            wandered[:, to] += moved[:, cell] * share / sum(kernel.values())
    mixed = (1 - change) * wandered + change * np.outer(shares, wandered.sum(axis=0))
    return mixed / mixed.sum()


def fraction(values, best, reach):
    """Where the polynomial through up to `reach` values on either side of `best` has its maximum, from there."""
    rank, window = values.ndim, values.shape
    for near in (reach, 1):
        starts, counts = [], []
        for at, length in zip(best, window):
            # As far to one side as to the other; at the border the outermost three.
            side = min(near, at, length - 1 - at)
            counts.append(min(max(2 * side + 1, 3), length))
            starts.append(min(max(at - counts[-1] // 2, 0), length - counts[-1]))
        part = values[tuple(slice(start, start + count) for start, count in zip(starts, counts))]
        if np.all(np.isfinite(part)):
            break
    else:
        return np.zeros(rank)
    nodes = [np.arange(start, start + count) - at for start, count, at in zip(starts, counts, best)]

    def at(place):
        total = part
        for axis in range(rank):
            weights = [
                np.prod([(place[axis] - other) / (node - other) for other in nodes[axis] if other != node])
                for node in nodes[axis]
            ]
            total = np.tensordot(weights, total, (0, 0))
        return total

    low = np.array([-0.499 if one > 0 else 0.0 for one in best])
    high = np.array([0.499 if one < length - 1 else 0.0 for one, length in zip(best, window)])
    found = scipy.optimize.minimize(lambda place: -at(place), np.zeros(rank), bounds=[(-1, 1)] * rank).x
    return np.clip(found, low, high)


def linear_drift(batches, *, bounds, memory=0.95, first=4e-4, floor=4e-6, wander=4e-6):
    """A parameter's mean and its variance after batches of numbers, by the filter of `tfalign.linear_drift`."""
    mean, variance, push, previous, scatter, weights = 0.0, first, 0.0, 0.0, 2 * bounds**2 / 3, 2.0
    for values in batches:
        now = np.mean(values)
        scatter, weights = memory * scatter + (now - previous) ** 2 / 2, memory * weights + 1
        noise = max(np.var(values) / len(values), scatter / weights) + floor
        push = 0.9 * push + 0.1 * mean
        mean, variance = mean - 0.1 * push, variance + wander
        gain = variance / (variance + noise)
        mean, variance, previous = mean + gain * (now - mean), (1 - gain) * variance, now
    return mean, variance


def fill_value(kept, cut_off, fill):
    """What fills a grid, from lists of values `(pixels, channels)`: of the pixels kept, or of those cut off."""
    if not isinstance(fill, str):
        return np.full(kept.shape[-1], fill)
    values = cut_off if fill.startswith("excluded") else kept
    return {"mean": np.mean, "median": np.median, "min": np.min}[fill.removeprefix("excluded_")](values, axis=0)


def filled_up(values, mask, sizes, value):
    """One sample and its mask on a larger grid of the same centre; filled pixels count."""
    larger, larger_mask = np.zeros((*sizes, values.shape[-1])) + value, np.ones(sizes)
    for index in np.ndindex(*values.shape[:-1]):
        at = tuple(i + n // 2 - m // 2 for i, n, m in zip(index, sizes, values.shape[:-1]))
        larger[at], larger_mask[at] = values[index], mask[index]
    return larger, larger_mask


def whole_pixel_losses(labels, predictions, base, *, max_shift, similarity, weights, crop, fill, pool, groups, still):
    """The losses `(batch,)` of labels that are moved by whole pixels, in loops over samples, groups and shifts.

    Args:
        labels, predictions: `(batch, *spatial, channels)`.
        base: `(label, prediction, weights)`, lists of values of paired pixels -> the loss of one sample.
        max_shift, similarity, crop (one number), fill, pool, groups: as of the loss.
        weights: `(batch, *spatial)`, of the labels' pixels.
        still: `(batch,)`, labels that are not moved.
    """
    inner = (slice(crop, -crop or None),) * (labels.ndim - 2)
    total = np.zeros(len(labels))
    for group in groups or [tuple(range(labels.shape[-1]))]:
        maps = []
        for label, whole, weight in zip(labels[..., group], predictions[..., group], weights):
            prediction, ones = whole[inner], np.ones(whole[inner].shape[:-1])
            if fill is not None:
                sizes = np.maximum(prediction.shape[:-1], label.shape[:-1])
                is_inner = np.zeros(whole.shape[:-1], bool)
                is_inner[inner] = True
                values = fill_value(prediction.reshape(-1, len(group)), whole[~is_inner], fill)
                # A label of which nothing was cut off is filled by its own.
                own = fill_value(label[weight > 0], label[weight > 0], fill)
                prediction, ones = filled_up(prediction, ones, sizes, values)
                label, weight = filled_up(label, weight, sizes, own)
            maps.append(score_map(prediction, label, max_shift, similarity, ones, weight, min_overlap=0.5))
        if pool == "batch":
            maps = [np.mean(maps, axis=0)] * len(maps)
        for sample, scores in enumerate(maps):
            best = np.unravel_index(np.argmax(scores), scores.shape)
            shift = [0 if still[sample] else i - bound for i, bound in zip(best, max_shift)]
            prediction, label = predictions[sample][inner][..., group], labels[sample][..., group]
            ones = np.ones(prediction.shape[:-1])
            left, right, paired = overlap_values(prediction, label, ones, weights[sample], shift)
            total[sample] += base(right, left, paired) * len(group) / labels.shape[-1]
    return total


def unlikeness(fixed, moving, weight, reach):
    """Mean differences `(*spatial, shifts)` around each pixel, less their weighted mean over the shifts."""
    shape = fixed.shape[:-1]
    shifts = list(itertools.product(range(-reach, reach + 1), repeat=len(shape)))
    each = np.zeros((*shape, len(shifts)))
    for at in np.ndindex(shape):
        values = {}
        for number, shift in enumerate(shifts):
            there = tuple(np.add(at, shift))
            if all(0 <= index < size for index, size in zip(there, shape)) and weight[there] > 0:
                values[number] = np.abs(fixed[at] - moving[there]).mean()
        for number, value in values.items():
            each[(*at, number)] = value - np.mean(list(values.values()))
    result = np.zeros_like(each)
    for at in np.ndindex(shape):
        near = [
            each[there]
            for there in (tuple(np.add(at, step)) for step in itertools.product((-1, 0, 1), repeat=len(shape)))
            if all(0 <= index < size for index, size in zip(there, shape))
        ]
        result[at] = np.mean(near, axis=0)
    return result


def newton_step(fixed, moving, weight, spacing, damping):
    """Least-squares steps `(*coarse, d)` around each control point, and 1 less what damping makes of a determinant.

    A point counts the means over its block of pixels, averaged twice over its neighbours.
    """
    shape, rank = fixed.shape[:-1], fixed.ndim - 1
    slopes = np.stack([np.gradient(0.5 * (fixed + moving), axis=axis) for axis in range(rank)], axis=-1)
    equations = np.einsum("...ci,...cj->...ij", slopes, slopes) * weight[..., None, None]
    wanted = np.einsum("...ci,...c->...i", slopes, fixed - moving) * weight[..., None]
    coarse = tuple(size // spacing for size in shape)
    sums = np.concatenate([equations, wanted[..., None]], axis=-1)
    blocks = np.zeros((*coarse, rank, rank + 1))
    for at in np.ndindex(coarse):
        blocks[at] = sums[tuple(slice(spacing * one, spacing * one + spacing) for one in at)].mean(
            axis=tuple(range(rank))
        )
    for _ in range(2):
        around = np.zeros_like(blocks)
        for at in np.ndindex(coarse):
            near = (tuple(np.add(at, step)) for step in itertools.product((-1, 0, 1), repeat=rank))
            inside = [one for one in near if all(0 <= index < size for index, size in zip(one, coarse))]
            around[at] = np.mean([blocks[one] for one in inside], axis=0)
        blocks = around
    matrix = blocks[..., :rank] + damping * np.eye(rank)
    return np.linalg.solve(matrix, blocks[..., rank:])[..., 0], 1.0 - damping**rank / np.linalg.det(matrix)
