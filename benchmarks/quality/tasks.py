"""The tasks: aligned scenes, the network, the base loss and the metric of each."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.optimize
import scipy.signal

from tfalign.data import stain
from tfalign.jobs import evaluate

DATA_VARIABLE = "TFALIGN_BENCH_DATA"  # the folder with the real recordings of T2, T3b, T4e and T5b


class Scene(NamedTuple):
    """One aligned pair: `(*spatial, channels)` each; boolean truths are masks."""

    input: np.ndarray
    truth: np.ndarray


class Task(NamedTuple):
    """What is learned, and how it is scored."""

    name: str
    title: str
    scenes: Callable[[int], tuple[list[Scene], list[Scene]]]  # seed -> training scenes, held-out scenes
    score: Callable[[list[np.ndarray], list[np.ndarray]], float]  # predictions, truths -> metric
    unit: str
    base: str = "mae"
    activation: str | None = None
    no_harm: float = 0.3  # the loss on aligned labels that still counts as none, in `unit`
    steps: int = 2000
    patch: int = 48
    patches: int = 600
    batch: int = 16
    filters: int = 8
    depth: int = 3
    learning_rate: float = 2e-3
    rank: int = 2
    needs_data: bool = False
    new_scenes: bool = False  # each seed draws its own scenes, so the spread over seeds is not that of training
    data_version: int = 2  # counts up when the scenes or patches change


def psnr(predictions, truths):
    """Mean PSNR of values clipped to [0, 1], dB."""
    return float(np.mean([evaluate.psnr(np.clip(one, 0, 1), truth) for one, truth in zip(predictions, truths)]))


def dice(predictions, truths):
    """Dice of a mask cut at one half, or the mean over all classes but the first, in points; mean over scenes."""
    scores = []
    for one, truth in zip(predictions, truths):
        if truth.shape[-1] == 1:
            one = one > 0.5
        else:
            one, truth = (np.eye(truth.shape[-1], dtype=bool)[a.argmax(axis=-1)][..., 1:] for a in (one, truth))
        both, either = ((one & (truth > 0)).reshape(-1, one.shape[-1]), (one * 1 + truth).reshape(-1, one.shape[-1]))
        scores.append(np.mean(2 * both.sum(axis=0) / np.maximum(either.sum(axis=0), 1)))
    return float(100 * np.mean(scores))


def event_f1(predictions, truths, *, tolerance):
    """F1 of the peaks of a heat-map over one half, each matched to at most one true peak, in points."""
    hits = found = real = 0
    for one, truth in zip(predictions, truths):
        here, there = (scipy.signal.find_peaks(a[:, 0], height=0.5, distance=4)[0] for a in (one, truth))
        if len(here) and len(there):
            near = np.abs(here[:, np.newaxis] - there) <= tolerance
            hits += int(near[scipy.optimize.linear_sum_assignment(~near)].sum())
        found, real = found + len(here), real + len(there)
    return 200 * hits / max(found + real, 1)


def _heat_map(size, positions, sigma=1.5):
    """`(size, 1)`: a Gaussian of height 1 at each position, the largest where they meet."""
    away = np.arange(size)[:, np.newaxis] - np.asarray(positions)
    return np.exp(-0.5 * np.square(away / sigma)).max(axis=1, keepdims=True).astype(np.float32)


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
        scenes.append(Scene(image[..., None].astype(np.float32), mask[..., None]))
    return scenes[:-2], scenes[-2:]


def _recording(name):
    """One file of the data folder."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise SystemExit(f"{name} is needed: give its folder with --data.")
    return np.load(Path(folder) / name)


def human_cells(seed):
    """Fluorescence of U2OS cells, square roots of intensities: actin -> nuclei; much of the picture is blank."""
    image = np.sqrt(_recording("u2os_channels.npz")["image"] / 255).astype(np.float32)
    pair = Scene(image[..., 2:], image[..., :1])
    return [Scene(*(one[:352] for one in pair))], [Scene(*(one[352:] for one in pair))]


def endothelial_cells(seed):
    """Fluorescence of BPAE cells: the mean of three channels -> actin, mitochondria and nuclei, each in its range."""
    image = _recording("bpae_channels.npz")["image"].astype(np.float32)
    low, high = np.percentile(image, [0.5, 99.5], axis=(0, 1)).astype(np.float32)
    truth = np.clip((image - low) / (high - low), 0, 1)
    gray = truth.mean(axis=-1, keepdims=True)
    return [Scene(gray[:480], truth[:480])], [Scene(gray[480:], truth[480:])]


def brain_slices(seed):
    """MRI slices -> other, white matter, cortex, ventricles; neighbouring slices are kept apart."""
    scenes = [_brain(np.s_[:, :, plane]) for plane in (*range(60, 116, 7), 140, 150)]
    return scenes[:-2], scenes[-2:]


def brain_volume(seed):
    """The same in a volume: one half of the head for training, a block of the other held out."""
    return [_brain(np.s_[:100])], [_brain(np.s_[104:136, 48:144, 64:160])]


def _brain(part):
    recording = _recording("brain_scan.npz")
    labels = recording["labels"][part]
    classes = [np.isin(labels, ids) for ids in ((2, 41), (3, 42), (4, 43))]
    truth = np.stack([~np.any(classes, axis=0), *classes], axis=-1)
    return Scene((recording["volume"][part] / np.float32(128))[..., np.newaxis], truth)


def heartbeats(seed):
    """One lead of an ECG at 54 Hz, so that 8 samples are 148 ms -> a heat-map of its beats, 28 ms wide (s.d.)."""
    recording = _recording("ecg_mitdb100.npz")
    signal = scipy.signal.resample_poly(recording["signal"][:, 0].astype(np.float64), 3, 20)
    beats = recording["beats"] * 3 / 20
    signal = (signal - signal.mean()) / signal.std()

    def scene(start, stop):
        inside = beats[(beats > start - 20) & (beats < stop + 20)]
        return Scene(signal[start:stop, np.newaxis].astype(np.float32), _heat_map(stop - start, inside - start))

    return [scene(start, start + 6000) for start in range(0, 60000, 6000)], [scene(70000, 80000)]


def synthetic_spectra(seed, *, count=12, size=2048):
    """Narrow lines among broad humps on a sloping, noisy ground -> a heat-map of the narrow ones."""
    rng = np.random.default_rng([50, seed])
    at = np.arange(size)
    scenes = []
    for _ in range(count):
        lines = np.cumsum(rng.uniform(8, 40, size // 16))
        lines = lines[lines < size - 4]
        spectrum = 0.2 * rng.standard_normal(size) * 0.3 + 0.5 * _smooth_noise(rng, size, 60)
        for position in lines:
            spectrum += rng.uniform(0.3, 1.0) / (1 + np.square((at - position) / rng.uniform(1.0, 1.8)))
        for position in rng.uniform(0, size, size // 30):
            spectrum += rng.uniform(0.3, 1.0) * np.exp(-0.5 * np.square((at - position) / rng.uniform(5, 9)))
        scenes.append(Scene(spectrum[:, np.newaxis].astype(np.float32), _heat_map(size, lines)))
    return scenes[:-2], scenes[-2:]


def synthetic_blobs(seed, *, count=4, size=112):
    """Solid balls among hollow ones in an uneven, noisy volume -> the mask of the solid ones."""
    rng = np.random.default_rng([60, seed])
    scenes = []
    for _ in range(count):
        image = 0.2 * _smooth_noise(rng, (size,) * 3, 16)
        mask = np.zeros((size,) * 3, bool)
        for center in rng.uniform(6, size - 6, (520, 3)):
            radius = rng.uniform(2.5, 5.0)
            low = np.maximum(np.floor(center - radius - 1).astype(int), 0)
            box = tuple(slice(a, a + 2 * int(radius) + 4) for a in low)
            grid = np.stack(np.meshgrid(*[np.arange(size)[part] for part in box], indexing="ij"), axis=-1)
            away = np.linalg.norm(grid - center, axis=-1)
            if mask[box].any() or (image[box] > 0.9).any():
                continue
            if rng.uniform() < 0.5:
                mask[box] |= away <= radius
                image[box] += 1.0 * (away <= radius)
            else:
                image[box] += 1.0 * ((away <= radius) & (away > radius - 1.5))
        image = scipy.ndimage.gaussian_filter(image, 0.6) + 0.15 * rng.standard_normal(image.shape)
        scenes.append(Scene(image[..., np.newaxis].astype(np.float32), mask[..., np.newaxis]))
    inner = np.s_[24:-24, 24:-24, 24:-24]
    return scenes[:-1], [Scene(*(one[inner] for one in scenes[-1]))]


def _spectra_f1(predictions, truths):
    """F1 of lines within 2 samples, points."""
    return event_f1(predictions, truths, tolerance=2)


def _beats_f1(predictions, truths):
    """F1 of beats within 1 sample of 54 Hz, 18.5 ms, points."""
    return event_f1(predictions, truths, tolerance=1)


_CURVES = {"base": "binary_crossentropy", "activation": "sigmoid"}
_CLASSES = {"base": "categorical_crossentropy", "activation": "softmax"}
_SIGNAL = {"base": "binary_crossentropy", "activation": "sigmoid", "patch": 128, "rank": 1, "steps": 1200}
_VOLUME = {"patch": 24, "patches": 200, "batch": 4, "depth": 2, "steps": 1000, "rank": 3}
_REAL = {"needs_data": True}
TASKS = {
    task.name: task
    for task in (
        Task("T0", "synthetic stain", synthetic_stain, psnr, "dB", no_harm=0.1, new_scenes=True),
        Task("T1", "tissue stain", tissue, psnr, "dB", no_harm=0.1, filters=16, patches=1200, steps=1000),
        Task("T2", "human cells", human_cells, psnr, "dB", no_harm=0.1, steps=1200, **_REAL),
        Task("T2b", "endothelial cells", endothelial_cells, psnr, "dB", no_harm=0.1, steps=1200, **_REAL),
        Task("T3", "thin curves", synthetic_curves, dice, "points", **_CURVES, steps=1200, new_scenes=True),
        Task("T3b", "brain slices", brain_slices, dice, "points", **_CLASSES, steps=1200, **_REAL),
        Task("T4", "spectral lines", synthetic_spectra, _spectra_f1, "points", **_SIGNAL, new_scenes=True),
        Task("T4b", "heartbeats", heartbeats, _beats_f1, "points", **_SIGNAL, **_REAL),
        Task("T5", "balls in volumes", synthetic_blobs, dice, "points", **_CURVES, **_VOLUME, new_scenes=True),
        Task("T5b", "brain volume", brain_volume, dice, "points", **_CLASSES, **_VOLUME, **_REAL),
    )
}
