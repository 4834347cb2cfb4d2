"""From a stain or a class map to numbers: areas, optical densities, nuclei and the share of them that is labelled.

A stain is `(*spatial, channels)` float, in [0, 1] for colours. Two maps are made of it: the amount of the marker, and
what shows the nuclei. Of colours the amount is the optical density of DAB beside haematoxylin, by colour deconvolution;
of a single dark channel its optical density; of a bright one (fluorescence) its value.

Source: Ruifrok & Johnston (2001), Anal. Quant. Cytol. Histol. 23(4), 291-299, in scikit-image's `rgb2hed`; the index as
in Tuominen et al. (2010), doi:10.1186/bcr2615, but by nuclei, not by area.
"""

from typing import NamedTuple

import numpy as np
import skimage.color
import skimage.feature
import skimage.filters
import skimage.measure
import skimage.morphology
import skimage.segmentation
from scipy import ndimage

from tfalign import _checks

SIGNALS = ("auto", "dab", "dark", "bright")
LOCATIONS = ("nuclei", "cells")
_DARKEST = 1e-6  # scikit-image's stand-in for black: its unit of a stain is 6 of optical density
_DENSITY = 6.0
_BINS = 512
_SAMPLE = 2**16  # pixels of a file, for thresholds


class Amounts(NamedTuple):
    """What one image shows.

    Attributes:
        marker: `(*spatial)`, optical density, or the value of a bright signal.
        nuclei: likewise, what shows all nuclei; None where nothing does.
    """

    marker: np.ndarray
    nuclei: np.ndarray | None


class Thresholds(NamedTuple):
    """Where a pixel is positive, and where it is of a nucleus."""

    marker: float
    nuclei: float | None


class Nuclei(NamedTuple):
    """The nuclei of an image.

    Attributes:
        labels: `(rows, cols)` int, 0 is none.
        centres: `(count, 2)` of the numbers 1, 2, ...
        is_positive: `(count,)` bool.
    """

    labels: np.ndarray
    centres: np.ndarray
    is_positive: np.ndarray


def as_floats(array):
    """An image as it is read: integers become 0 to 1 by the range of their type."""
    if array.dtype.kind in "iu":
        return np.float32(array) / np.iinfo(array.dtype).max
    return array.astype(np.float32)


def amounts(image, *, signal="auto", marker=None, nuclei=None, location="nuclei"):
    """The `Amounts` of an image `(*spatial, channels)` float.

    Args:
        image: see the top of this module.
        signal: "dab" for colours, "dark" or "bright" for single channels; "auto": "dab" for three channels of a
            picture where no channel is named, else "bright".
        marker, nuclei: channel numbers, for "dark" and "bright"; by default the first one, and none.
        location: where the marker is, for "dab": in "nuclei", which then may be brown, or around them in "cells", so
            that haematoxylin alone shows nuclei.

    Raises:
        ValueError: channels that are not there.
    """
    channels = image.shape[-1]
    if signal == "auto":
        signal = "dab" if channels == 3 and image.ndim == 3 and marker is nuclei is None else "bright"
    if signal == "dab":
        if channels != 3 or not (marker is nuclei is None):
            received = {"channels": channels, "marker": marker, "nuclei": nuclei}
            raise ValueError(_checks.message('signal="dab" needs colours, and no channel numbers.', received))
        stains = _DENSITY * skimage.color.rgb2hed(np.clip(np.nan_to_num(image, nan=1.0), _DARKEST, 1.0))
        return Amounts(stains[..., 2], stains[..., 0] + (stains[..., 2] if location == "nuclei" else 0.0))
    chosen = {"marker": 0 if marker is None else marker, "nuclei": nuclei}
    for name, channel in chosen.items():
        if channel is not None and not 0 <= channel < channels:
            received = {name: channel, "channels": channels}
            raise ValueError(_checks.message(f"`{name}` must be the number of a channel, from 0.", received))

    def amount(channel):
        values = np.nan_to_num(image[..., channel])
        return -np.log10(np.clip(values, _DARKEST, 1.0)) if signal == "dark" else values

    return Amounts(amount(chosen["marker"]), None if nuclei is None else amount(nuclei))


def sample(values, *, seed=0):
    """Pixels that stand for an image when a threshold is taken."""
    flat = np.ravel(values)
    if flat.size <= _SAMPLE:
        return flat
    return flat[np.random.default_rng(seed).integers(0, flat.size, _SAMPLE)]


def otsu(values):
    """The threshold between two classes of values; of equal ones, above all of them."""
    if not values.size or np.ptp(values) == 0:
        return float(np.max(values, initial=0.0)) + 1e-6
    first = skimage.filters.threshold_otsu(values, nbins=_BINS)
    # Between well separated classes every threshold is as good; the middle is the safe one.
    return float(0.5 * (values[values <= first].mean() + values[values > first].mean()))


def find_nuclei(found, thresholds, *, min_area, location="nuclei"):
    """The `Nuclei` of a picture: smoothed, cut at a threshold, touching ones parted by a watershed of the distance.

    Args:
        found: `Amounts` of a picture, with nuclei.
        thresholds: `Thresholds`.
        min_area: pixels; what is smaller is no nucleus.
        location: where the mean amount of marker is taken: in "nuclei", or in a ring about each, of its "cells".
    """
    radius = max(1.0, np.sqrt(min_area / np.pi))
    mask = ndimage.gaussian_filter(found.nuclei, 0.25 * radius) > thresholds.nuclei
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(mask, skimage.morphology.disk(1)))
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 0.25 * radius)
    peaks = skimage.feature.peak_local_max(distance, min_distance=max(1, round(radius)), labels=_numbered(mask))
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = skimage.segmentation.watershed(-distance, seeds, mask=mask)
    areas = np.bincount(labels.ravel())
    labels[(areas < min_area)[labels]] = 0
    labels = skimage.segmentation.relabel_sequential(labels)[0]
    numbers = np.arange(1, labels.max() + 1)
    if not len(numbers):
        return Nuclei(labels, np.zeros((0, 2)), np.zeros(0, bool))
    measured = labels
    if location == "cells":
        wider = skimage.segmentation.expand_labels(labels, distance=0.75 * radius)
        measured = np.where(labels > 0, 0, wider)
    means = np.nan_to_num(ndimage.mean(found.marker, measured, numbers))
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, numbers))
    return Nuclei(labels, centres, np.asarray(means) > thresholds.marker)


def stain_row(found, nuclei, thresholds, window, *, pixel_area=1.0):
    """Numbers of a part of an image.

    Args:
        found: `Amounts` of the image.
        nuclei: its `Nuclei`, or None.
        thresholds: `Thresholds`.
        window: a slice for each spatial axis; a nucleus belongs to the window that holds its centre.
        pixel_area: of a pixel (voxel), in the unit of areas.

    Returns:
        A dict: area, positive_area, positive_share, density (mean), positive_density (mean where positive), nuclei,
        positive_nuclei and labelling_index (their share); None where a number has no meaning.
    """
    marker = found.marker[window]
    is_positive = marker > thresholds.marker
    row = {
        "area": marker.size * pixel_area,
        "positive_area": int(is_positive.sum()) * pixel_area,
        "positive_share": float(is_positive.mean()),
        "density": float(marker.mean()),
        "positive_density": float(marker[is_positive].mean()) if is_positive.any() else None,
        "nuclei": None,
        "positive_nuclei": None,
        "labelling_index": None,
    }
    if nuclei is not None:
        inside = np.ones(len(nuclei.centres), bool)
        for axis, part in enumerate(window):
            first, last, _ = part.indices(found.marker.shape[axis])
            inside &= (nuclei.centres[:, axis] >= first - 0.5) & (nuclei.centres[:, axis] < last - 0.5)
        count, positive = int(inside.sum()), int(nuclei.is_positive[inside].sum())
        row |= {"nuclei": count, "positive_nuclei": positive, "labelling_index": positive / count if count else None}
    return row


def class_rows(numbers, classes, *, min_area=1, pixel_area=1.0):
    """Area and count of each class of a map.

    Args:
        numbers: `(*spatial)` integers.
        classes: the classes to count, in order.
        min_area: pixels; smaller parts are not counted (their area is).
        pixel_area: of a pixel (voxel), in the unit of areas.

    Returns:
        A dict for each class: class, area, share, count of connected parts (diagonals connect), mean_area of these.
    """
    rows = []
    for one in classes:
        is_class = numbers == one
        parts = np.bincount(_numbered(is_class).ravel())[1:]
        parts = parts[parts >= min_area]
        rows.append(
            {
                "class": int(one),
                "area": int(is_class.sum()) * pixel_area,
                "share": float(is_class.mean()),
                "count": len(parts),
                "mean_area": float(parts.mean()) * pixel_area if len(parts) else None,
            }
        )
    return rows


def fields(shape, size):
    """The fields of an image, row by row, `[(place, slices)]`: squares of `size` pixels, cut off at the end."""
    counts = [max(1, round(length / size)) for length in shape]
    found = []
    for place in np.ndindex(*counts):
        found.append(
            (place, tuple(slice(at * size, length if at + 1 == count else (at + 1) * size)
                          for at, length, count in zip(place, shape, counts)))
        )  # fmt: skip
    return found


def _numbered(mask):
    """Connected parts, numbered from 1."""
    return skimage.measure.label(mask, connectivity=mask.ndim)
