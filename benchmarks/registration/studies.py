"""What is measured: exactness without noise, the bound with noise, remapped intensities, the honesty of confidence,
rotation, scale and shear, what interpolation keeps."""

import numpy as np
import tensorflow as tf

import tfalign
from benchmarks.registration import scenes
from tfalign.data import misalign
from tfalign.ops import geometry as transforms

MEASURES = ("ncc", "mse", "mae", "cc", "phase", "mi", "nmi", "joint_entropy")
EXACTNESS = {"ncc": 0.02, "mse": 0.02, "phase": 0.02, "mae": 0.1, "mi": 0.1, "nmi": 0.1, "joint_entropy": 0.1}
_MASKED_EXACTNESS = 0.1
_BATCH = 50
CUTS = (0.05, 0.1, 0.2)  # cycles a pixel: coarse, middling, fine pictures


def registered(pairs, *, max_shift=10, **options):
    """`tfalign.register` in batches: translation, confidence and, with `return_map`, the posterior maps."""
    found = []
    for start in range(0, len(pairs.fixed), _BATCH):
        part = slice(start, start + _BATCH)
        masks = {name: options[name][part] for name in ("fixed_mask", "moving_mask") if name in options}
        found.append(
            tfalign.register(pairs.fixed[part], pairs.moving[part], max_shift=max_shift, **{**options, **masks})
        )
    names = ("translation", "confidence", "posterior_map")
    return [
        np.concatenate([getattr(one, name) for one in found]) if options.get("return_map") or name != names[2] else None
        for name in names
    ]


# What is searched, and how the truth is drawn where that is less.
SEARCHES = {
    "rotation 7": {"max_rotation": 7.0},
    "rotation 20": {"max_rotation": 20.0},
    "rotation 180": {"max_rotation": 180.0},
    "scale 0.15": {"max_scale": 0.15},
    "scale 1.0": {"max_scale": 1.0},
    "rotation 7, scale 0.15, shear 7": {"max_rotation": 7.0, "max_scale": 0.15, "max_shear": 7.0},
    "rotation 180, scale 1.0 of both axes": {"max_rotation": 180.0, "max_scale": 1.0},
}
GEOMETRY_MEASURES = ("ncc", "mse", "mae", "mi", "mi, remapped")
ROTATION_TARGETS, SCALE_TARGET = {"mi, remapped": 0.5}, 0.5  # degrees, 0.3 of all others; percent
WAVES = (0.05, 0.1, 0.2, 0.3, 0.4)


def geometry(count):
    """Largest and median errors of rotation (degrees), scale (percent) and shift (pixels) without noise."""
    rows = []
    for search, bounds in SEARCHES.items():
        drawn = {name.removeprefix("max_"): bound for name, bound in bounds.items()}
        is_large = bounds.get("max_scale", 0.0) > 0.5
        pairs = scenes.turned(count, margin=64 if is_large else 24, even="both" in search, **drawn)
        for measure in GEOMETRY_MEASURES:
            name, _, is_remapped = measure.partition(", ")
            moving = np.cos(1.5 * pairs.moving) if is_remapped else pairs.moving
            found = tf.function(tfalign.register)(pairs.fixed, moving, max_shift=6, similarity=name, **bounds)
            mine, true = transforms.decompose(found.transform), transforms.decompose(pairs.transforms)
            turn = np.abs((mine.rotation - np.float32(true.rotation) + 180.0) % 360.0 - 180.0)
            errors = {
                "rotation": np.max(turn, axis=1),
                "scale": 100.0 * np.max(np.abs(mine.scale / np.float32(true.scale) - 1.0), axis=1),
                "shift": np.max(np.abs(mine.translation - np.float32(true.translation)), axis=1),
            }
            each = {f"{what}_{how}": float(of(error)) for what, error in errors.items() for how, of in _SUMMARIES}
            rows.append({"search": search, "measure": measure, "confidence": float(np.mean(found.confidence)), **each})
    return rows


_SUMMARIES = (("median", np.median), ("largest", np.max))


def kept():
    """The share of a wave's amplitude that is left when it is read half a pixel further, by its frequency."""
    rows = []
    for interpolation in ("linear", "cubic"):
        for wave in WAVES:
            values = np.cos(2.0 * np.pi * wave * np.arange(240)).astype(np.float32)[np.newaxis, :, np.newaxis]
            half = transforms.from_translation(tf.constant([[0.5]]))
            moved, _ = tfalign.warp(values, half, interpolation=interpolation)
            share = np.std(moved[0, 20:220]) / np.std(values[0, 20:220])
            rows.append({"interpolation": interpolation, "wave": wave, "kept": float(share)})
    return rows


def exactness(count):
    """Root mean square error per axis without noise, pixels, by rank, picture and measure; masked ones too."""
    rows = []
    for rank, size, bound, margin in ((1, 256, 8, 10), (2, 64, 8, 10), (3, 24, 3, 5)):
        for cut in CUTS:
            pairs = scenes.pairs(count, rank=rank, size=size, bound=bound, margin=margin, cut=cut)
            masks = (np.random.default_rng(1).random(pairs.moving.shape[:-1]) > 0.3).astype(np.float32)
            for name in (*MEASURES, "ncc, masked", "mse, masked", "mi, masked"):
                measure, _, masked = name.partition(", ")
                options = {"moving_mask": masks} if masked else {}
                translation, _, _ = registered(pairs, max_shift=bound + 2, similarity=measure, **options)
                error = translation - pairs.shifts
                target = _MASKED_EXACTNESS if masked else EXACTNESS.get(measure)
                rows.append(
                    {
                        "rank": rank,
                        "cut": cut,
                        "measure": name,
                        "rms": float(np.sqrt(np.mean(error**2))),
                        "largest": float(np.max(np.abs(error))),
                        "target": target,
                    }
                )
    return rows


def noise(count):
    """Spread against the Cramer-Rao bound, and failures (over 2 px off), by signal-to-noise ratio and measure."""
    rows = []
    for snr_db in (0, 10, 20, 30):
        pairs = scenes.pairs(count, snr_db=snr_db)
        for measure in MEASURES:
            translation, _, _ = registered(pairs, similarity=measure)
            error = translation - pairs.shifts
            fine = np.max(np.abs(error), axis=1) <= 2
            bound = 10 ** (-snr_db / 20) * pairs.crb
            rows.append(
                {
                    "snr_db": snr_db,
                    "measure": measure,
                    "sd": float(np.sqrt(np.mean(error[fine] ** 2))) if fine.any() else None,
                    "times_bound": float(np.sqrt(np.mean((error / bound)[fine] ** 2))) if fine.any() else None,
                    "failures": float(np.mean(~fine)),
                }
            )
    return rows


def remapped(count):
    """M9: labels whose intensities mean something else; the share of shifts within 1 px."""
    pairs, rows = scenes.pairs(count, whole=True, cut=0.1), []
    low, high = pairs.moving.min(), pairs.moving.max()
    for kind in ("invert", "nonmonotone", "random"):
        labels = misalign.remap_intensity((pairs.moving - low) / (high - low), kind=kind, seed=1).astype(np.float32)
        for measure in ("ncc", "mi", "nmi", "joint_entropy"):
            translation, _, _ = registered(pairs._replace(moving=labels), similarity=measure)
            within = np.max(np.abs(translation - pairs.shifts), axis=1) <= 1
            rows.append({"remap": kind, "measure": measure, "within_one_pixel": float(within.mean())})
    return rows


def honesty(count):
    """Confidence against how often a shift is within 1 px, over all noise levels, blank and periodic patches."""
    kinds = {f"{snr_db} dB": scenes.pairs(count, snr_db=snr_db, whole=True) for snr_db in range(-30, 31, 5)}
    judged = [f"{snr_db} dB" for snr_db in range(-10, 31, 5)] + ["blank", "periodic"]
    kinds["blank"] = scenes.blank(kinds["0 dB"])
    kinds["periodic"] = scenes.periodic(count)
    kinds["unrelated"] = scenes.unrelated(kinds["0 dB"])
    rows = []
    for measure in ("ncc", "mse", "mae", "mi", "nmi", "joint_entropy"):
        confidence, hit, covered, flatness = {}, {}, {}, {}
        for kind, pairs in kinds.items():
            translation, confidence[kind], posterior = registered(
                pairs, similarity=measure, subpixel=False, return_map=True
            )
            hit[kind] = np.max(np.abs(translation - pairs.shifts), axis=1) <= 1
            covered[kind], flatness[kind] = _covered(posterior, pairs.shifts), _flatness(posterior)
        each = {
            kind: {
                "confidence": float(confidence[kind].mean()),
                "right": float(hit[kind].mean()),
                "covered": float(covered[kind].mean()),
                "flatness": float(flatness[kind].mean()),
            }
            for kind in kinds
        }
        told, right = (np.concatenate([some[kind] for kind in judged]) for some in (confidence, hit))
        # A blank patch has no true shift: its flat sets hold whatever is asked for.
        sets = np.concatenate([covered[kind] for kind in judged if kind != "blank"])
        rows.append(
            {
                "measure": measure,
                "error": calibration_error(told, right),
                "curve": _curve(told, right),
                "covered": float(sets.mean()),
                "kinds": each,
            }
        )
    return rows


def calibration_error(confidence, hit, bins=10):
    """Expected calibration error: mean distance of confidence and share of hits over equal bins of confidence."""
    return sum(abs(told - right) * number for told, right, number in _curve(confidence, hit, bins)) / len(hit)


def _curve(confidence, hit, bins=10):
    number = np.clip((confidence * bins).astype(int), 0, bins - 1)
    return [
        [float(confidence[number == one].mean()), float(hit[number == one].mean()), int(np.sum(number == one))]
        for one in np.unique(number)
    ]


def _covered(posterior, shifts, level=0.9):
    """Whether the smallest set of shifts with `level` of the posterior holds the true one.

    The last shift of the set is in it by a share, so that the set has the level exactly.
    """
    flat = posterior.reshape(len(posterior), -1)
    middle = np.array(posterior.shape[1:]) // 2
    true = np.ravel_multi_index(tuple((shifts.astype(int) + middle).T), posterior.shape[1:])
    own = flat[np.arange(len(flat)), true]
    before = np.sum(np.where(flat > own[:, np.newaxis], flat, 0.0), axis=1)
    return np.clip((level - before) / np.maximum(own, 1e-12), 0.0, 1.0)


def _flatness(posterior):
    """Entropy over that of a flat posterior: 1 when nothing is known."""
    flat = posterior.reshape(len(posterior), -1).astype(float)
    return -np.sum(flat * np.log(np.maximum(flat, 1e-30)), axis=1) / np.log(flat.shape[1])
