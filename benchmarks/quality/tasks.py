"""The tasks: aligned scenes, the network, the base loss and the metric of each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from tfalign.data import stain
from tfalign.jobs import evaluate


class Scene(NamedTuple):
    """One aligned pair: `(*spatial, channels)` float32 each."""

    input: np.ndarray
    truth: np.ndarray


class Task(NamedTuple):
    """What is learned, and how it is scored."""

    name: str
    title: str
    scenes: Callable[[int], tuple[list[Scene], list[Scene]]]  # seed -> training scenes, held-out scenes
    score: Callable[[list[np.ndarray], list[np.ndarray]], float]  # predictions, truths -> metric
    unit: str
    base: str
    activation: str | None
    steps: int
    no_harm: float  # the loss on aligned labels that still counts as none, in `unit`
    patch: int = 48
    patches: int = 600
    batch: int = 16
    filters: int = 8
    depth: int = 3
    learning_rate: float = 2e-3
    data_version: int = 1  # counts up when the scenes or patches change


def psnr(predictions, truths):
    """Mean PSNR of values clipped to [0, 1], dB."""
    return float(np.mean([evaluate.psnr(np.clip(one, 0, 1), truth) for one, truth in zip(predictions, truths)]))


def dice(predictions, truths):
    """Mean Dice of masks cut at one half, points."""
    scores = []
    for one, truth in zip(predictions, truths):
        left, right = one > 0.5, truth > 0.5
        scores.append(2 * np.sum(left & right) / max(np.sum(left) + np.sum(right), 1))
    return float(100 * np.mean(scores))


def _smooth_noise(rng, shape, sigma):
    noise = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return noise / noise.std()


def synthetic_stain(seed, *, count=6, size=256):
    """Round nuclei and fibrous brown regions as optical densities; the input is their gray image with camera noise."""
    rng = np.random.default_rng([20, seed])
    rows, columns = np.mgrid[:size, :size]
    scenes = []
    for _ in range(count):
        nuclei = np.zeros((size, size))
        for y, x in rng.uniform(0, size, (110, 2)):
            a, b, angle = rng.uniform(2.5, 5.5), rng.uniform(2.0, 4.0), rng.uniform(0, np.pi)
            u = (rows - y) * np.cos(angle) + (columns - x) * np.sin(angle)
            v = (columns - x) * np.cos(angle) - (rows - y) * np.sin(angle)
            nuclei = np.maximum(nuclei, 1 / (1 + np.exp(4 * (np.hypot(u / a, v / b) - 1))) * rng.uniform(0.6, 1.0))
        region = 1 / (1 + np.exp(-4 * _smooth_noise(rng, (size, size), 18)))
        fibres = 0.5 + 0.5 * np.tanh(1.5 * _smooth_noise(rng, (size, size), (0.8, 3.0)))
        brown = region * (0.35 + 0.65 * fibres)
        density = (
            1.1 * nuclei[..., None] * [0.65, 0.70, 0.29]
            + 1.0 * brown[..., None] * [0.27, 0.57, 0.78]
            + 0.03 * np.abs(_smooth_noise(rng, (size, size), 1.0))[..., None]
        )
        truth = np.exp(-density)
        gray = truth.mean(axis=-1, keepdims=True) + 0.01 * rng.standard_normal((size, size, 1))
        scenes.append(Scene(gray.astype(np.float32), truth.astype(np.float32)))
    return scenes[:-2], scenes[-2:]


def tissue(seed):
    """The picture of the demo: rows 0-351 for training, 352-511 held out; the same for every seed."""
    gray, truth = stain.tissue()
    cut = stain.TRAIN_ROWS
    return [Scene(gray[:cut], truth[:cut])], [Scene(gray[cut:], truth[cut:])]


def synthetic_curves(seed, *, count=8, size=256):
    """Thin bright curves, about 2 px wide, on an uneven noisy ground; the truth is their mask."""
    rng = np.random.default_rng([30, seed])
    scenes = []
    for _ in range(count):
        mask = np.zeros((size, size), bool)
        for _ in range(26):
            position, heading = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
            for _ in range(int(rng.uniform(60, 260))):
                heading += 0.12 * rng.standard_normal()
                position = position + [np.sin(heading), np.cos(heading)]
                row, column = np.round(position).astype(int)
                if 0 <= row < size and 0 <= column < size:
                    mask[row, column] = True
        mask = scipy.ndimage.binary_dilation(mask)
        strength = 0.35 + 0.12 * _smooth_noise(rng, (size, size), 12)
        image = (
            0.3
            + 0.05 * _smooth_noise(rng, (size, size), 20)
            + strength * scipy.ndimage.gaussian_filter(mask * 1.0, 0.7)
        )
        image += 0.08 * rng.standard_normal((size, size))
        scenes.append(Scene(image[..., None].astype(np.float32), mask[..., None].astype(np.float32)))
    return scenes[:-2], scenes[-2:]


TASKS = {
    task.name: task
    for task in (
        Task("T0", "synthetic stain", synthetic_stain, psnr, "dB", "mae", None, 2000, 0.1),
        Task("T1", "tissue stain", tissue, psnr, "dB", "mae", None, 2000, 0.1),
        Task("T3", "thin curves", synthetic_curves, dice, "points", "binary_crossentropy", "sigmoid", 2000, 0.3),
    )
}
