"""Labels computed from the input itself, by a recipe that a configuration can name.

A recipe is a function `input (*spatial, channels) -> label (*spatial, channels)` with keyword options; `RECIPES` holds
those with a name. In Python, any such function will do.
"""

import functools
import inspect
from collections.abc import Callable, Mapping

import numpy as np
import skimage.color
import skimage.filters
import skimage.measure

from tfalign import _checks

STAINS = ("hematoxylin", "eosin", "dab")


def threshold(image, *, value="otsu", above=True, channel=None, sigma=0.0, min_size=0):
    """A binary label: where an image is brighter, or darker, than a threshold.

    Args:
        image: `(*spatial, channels)`, any range.
        value: the threshold, in the image's own units, or "otsu", "li", "triangle" or "yen" to find it.
        above: False takes what is darker.
        channel: number of the channel; None takes their mean.
        sigma: pixels, of a Gaussian that smooths the image first.
        min_size: pixels; connected parts with fewer are taken away.

    Returns:
        `(*spatial, 1)` uint8, 0 or 1. An image of one value only gives zeros.
    """
    gray = image.astype(np.float32).mean(axis=-1) if channel is None else image[..., channel].astype(np.float32)
    if sigma:
        gray = skimage.filters.gaussian(gray, sigma, preserve_range=True)
    if isinstance(value, str):
        _checks.choice("value", value, ("otsu", "li", "triangle", "yen"))
        if gray.min() == gray.max():
            return np.zeros((*gray.shape, 1), np.uint8)
        value = getattr(skimage.filters, f"threshold_{value}")(gray)
    mask = gray > value if above else gray < value
    if min_size > 1:
        parts = skimage.measure.label(mask)
        mask &= (np.bincount(parts.ravel()) >= min_size)[parts]
    return mask[..., np.newaxis].astype(np.uint8)


def stain(image, *, stain="hematoxylin", value="otsu", sigma=0.0, min_size=0):
    """How much of one dye of a stained section each pixel holds, or where it holds more than a threshold.

    The colours are separated into hematoxylin, eosin and DAB by scikit-image's `rgb2hed`.

    Args:
        image: `(rows, cols, 3)`: integers over their whole range, or floats in [0, 1].
        stain: "hematoxylin", "eosin" or "dab".
        value, sigma, min_size: as in `threshold`, of the amount; `value=None` gives the amount itself.

    Returns:
        `(rows, cols, 1)`: uint8, 0 or 1, or the amount as float32 (optical density).

    Raises:
        ValueError: the image has not three channels.

    Source: Ruifrok & Johnston (2001), Quantification of histochemical staining by color deconvolution.
    """
    _checks.choice("stain", stain, STAINS)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(_checks.message("`image` must be a colour picture.", {"image.shape": image.shape}))
    amount = skimage.color.rgb2hed(image)[..., STAINS.index(stain), np.newaxis].astype(np.float32)
    return amount if value is None else threshold(amount, value=value, sigma=sigma, min_size=min_size)


RECIPES: dict[str, Callable] = {"stain": stain, "threshold": threshold}


def resolve(recipe):
    """The function of one argument that a recipe stands for.

    Args:
        recipe: a name of `RECIPES`, a mapping of "name" and options (as a configuration holds it), or a function.

    Raises:
        ValueError, TypeError: an unknown name or option.
    """
    if callable(recipe):
        return recipe
    options = dict(recipe) if isinstance(recipe, Mapping) else {"name": recipe}
    name = _checks.choice("recipe", options.pop("name", None), tuple(RECIPES))
    known = [
        item.name for item in inspect.signature(RECIPES[name]).parameters.values() if item.kind == item.KEYWORD_ONLY
    ]
    for option in options:
        _checks.choice(f"options of recipe {name!r}", option, known)
    return functools.partial(RECIPES[name], **options)
