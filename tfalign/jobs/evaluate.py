"""How good a dense prediction is, in place and after moving it back."""

import numpy as np
import tensorflow as tf
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tfalign.ops.registration import register

_DRIFT_BOUND = 6  # px


def image_metrics(prediction, truth):
    """Compares one prediction with its aligned truth.

    Args:
        prediction, truth: `(rows, columns, channels)`, values in [0, 1]; the prediction is clipped to that.

    Returns:
        A dict: "psnr" (dB) and "ssim" in place; "sharpness", the high-frequency power of the prediction as a share of
        the truth's; "drift", pixels (row, column) by which the prediction lies off; "psnr_moved_back" (dB) on the inner
        pixels after the best whole-pixel move of the whole prediction.
    """
    prediction = np.clip(prediction, 0.0, 1.0)
    found = register(truth[np.newaxis], prediction[np.newaxis], max_shift=_DRIFT_BOUND, similarity="mse")
    drift = found.translation.numpy()[0]
    whole = np.round(drift).astype(int)
    inner = (slice(_DRIFT_BOUND, -_DRIFT_BOUND),) * 2
    moved_back = np.roll(prediction, -whole, axis=(0, 1))
    return {
        "psnr": psnr(prediction, truth),
        "ssim": float(structural_similarity(truth, prediction, channel_axis=-1, data_range=1.0)),
        "sharpness": sharpness(prediction, truth),
        "drift": [float(value) for value in drift],
        "psnr_moved_back": psnr(moved_back[inner], truth[inner]),
    }


def psnr(prediction, truth):
    """Peak signal-to-noise ratio of values in [0, 1], dB."""
    return float(peak_signal_noise_ratio(truth, prediction, data_range=1.0))


def sharpness(prediction, truth, *, above=0.125):
    """Power of `prediction` at frequencies over `above` cycles per pixel, as a share of that of `truth`."""
    axes = tuple(range(truth.ndim - 1))
    high = np.linalg.norm(np.meshgrid(*[np.fft.fftfreq(truth.shape[a]) for a in axes], indexing="ij"), axis=0) > above

    def power(image):
        return np.square(np.abs(np.fft.fftn(image, axes=axes)))[high].sum()

    return float(power(prediction) / power(truth))


def gap_recovered(value, plain, oracle):
    """Share of what misalignment cost that is won back: 0 is the plain loss, 1 is perfect labels."""
    return float((value - plain) / (oracle - plain))


def registered_labels(model, inputs, labels, *, batch=64, **options):
    """Registers every label to the model's prediction: transforms `(count, d+1, d+1)`, scores, confidences `(count,)`.

    `options` are those of `tfalign.register`.
    """
    found = []
    for start in range(0, len(inputs), batch):
        prediction = model(tf.convert_to_tensor(inputs[start : start + batch]), training=False)
        one = register(prediction, labels[start : start + batch], **options)
        found.append((one.transform.numpy(), one.score.numpy(), one.confidence.numpy()))
    return tuple(np.concatenate(parts) for parts in zip(*found))
