"""Slow truths for displacement fields: loops over pixels in NumPy, of one field `(*spatial, d)` at a time."""

import itertools

import numpy as np


def read(field, point):
    """The field at a centred point, linear between pixels, the border outside."""
    sizes = np.array(field.shape[:-1])
    index = np.clip(np.asarray(point) + sizes // 2, 0, sizes - 1)
    lower = np.floor(index).astype(int)
    total = np.zeros(field.shape[-1])
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        part = index - lower
        weight = np.prod(np.where(corner, part, 1 - part))
        total += weight * field[tuple(np.minimum(lower + corner, sizes - 1))]
    return total


def points(shape):
    """Every index of a grid, and its centred coordinate."""
    for index in np.ndindex(*shape):
        yield index, np.array(index) - np.array(shape) // 2


def compose(outer, inner):
    result = np.empty_like(inner)
    for index, point in points(inner.shape[:-1]):
        result[index] = inner[index] + read(outer, point + inner[index])
    return result


def integrate(velocity, steps=2000):
    """Every pixel carried along by the velocity in many small steps."""
    result = np.empty_like(velocity)
    for index, start in points(velocity.shape[:-1]):
        at = start.astype(float)
        for _ in range(steps):
            at = at + read(velocity, at) / steps
        result[index] = at - start
    return result


def smoothness_energy(field):
    """Squared differences of neighbours, the mean along each axis, summed over the axes."""
    total = 0.0
    for axis in range(field.ndim - 1):
        moved = np.moveaxis(field, axis, 0)
        pairs = [np.sum((moved[place + 1] - moved[place]) ** 2, axis=-1) for place in range(len(moved) - 1)]
        total += np.mean(pairs) if pairs else 0.0
    return total


def spline(distance):
    """The cubic B-spline of a distance in control points."""
    distance = abs(distance)
    if distance < 1:
        return 2 / 3 - distance**2 + distance**3 / 2
    return (2 - distance) ** 3 / 6 if distance < 2 else 0.0


def from_control_points(values, shape, spacing):
    coarse = np.array(values.shape[:-1])
    result = np.zeros((*shape, values.shape[-1]))
    for index in np.ndindex(*shape):
        at = (np.array(index) + 0.5) / spacing - 0.5
        for control in itertools.product(*(range(-3, size + 3) for size in coarse)):
            weight = np.prod([spline(one - other) for one, other in zip(at, control)])
            result[index] += weight * values[tuple(np.clip(control, 0, coarse - 1))]
    return result
