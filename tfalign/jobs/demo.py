"""The main job on real tissue: one network trained with the plain loss, with tfalign, and on perfect labels."""

import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.data import stain
from tfalign.export import ModelCard, export_serving
from tfalign.jobs import evaluate, files, report
from tfalign.losses import ShiftInvariantLoss
from tfalign.models.unet import unet

ARMS = ("plain", "tfalign", "oracle")
_NOTES = 25  # points of a training curve


class Settings(NamedTuple):
    """What a run is made of; the same settings give the same run."""

    steps: int = 1000
    max_shift: int = 8
    seed: int = 0
    patches: int = 600
    patch_size: int = 64
    batch_size: int = 16
    filters: int = 16
    depth: int = 3
    learning_rate: float = 1e-3
    base: str = "mae"


def run(out, settings, *, track=lambda description, total: lambda steps: None):
    """Trains the three networks and writes the run folder; what an interrupted run has finished is kept.

    Args:
        out: the run folder.
        settings: `Settings`.
        track: `(description, total steps) -> function called with the steps just done`, for a progress bar.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: a setting out of range, or the folder holds a run with other settings.
    """
    _check(settings)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    gray, truth = stain.held_out()
    moved = _patches(settings, moved=True)
    models, predictions, arms = {}, {}, {}
    for arm in ARMS:
        path = out / f"{arm}.keras"
        record_path = out / f"{arm}.json"
        if not (path.exists() and record_path.exists()):
            model, record = _train(arm, settings, gray, truth, track)
            files.save_model(model, path)
            files.write_json(record_path, record)
        models[arm] = keras.models.load_model(path)
        predictions[arm] = np.asarray(models[arm](gray))[0]
        arms[arm] = {**files.read_json(record_path), **evaluate.image_metrics(predictions[arm], truth[0])}

    transforms, _, confidence = evaluate.registered_labels(
        models["tfalign"], moved.inputs, moved.labels, max_shift=settings.max_shift, subpixel=False
    )
    shifts = transforms[:, :-1, -1]
    metrics = _summary(settings, arms, shifts - moved.translations)
    files.write_json(out / "metrics.json", metrics)
    served = out / "saved_model" / "tissue_stain"
    if not (served / "1").exists():
        options = {"max_shift": settings.max_shift}
        export_serving(models["tfalign"], served, version=1, register=options, card=_card(metrics))
    report.write_demo(
        out,
        metrics=metrics,
        gray=gray[0],
        truth=truth[0],
        predictions=predictions,
        patches=moved,
        shifts=shifts,
        confidence=confidence,
        model=models["tfalign"],
    )
    return metrics


def _check(settings):
    for name, least in {"steps": 1, "max_shift": 1, "seed": 0}.items():
        _checks.whole_number(name, getattr(settings, name), at_least=least)


def _claim(out, settings):
    """Takes the folder for these settings, or refuses one that holds another run."""
    path = out / "settings.json"
    if path.exists() and files.read_json(path) != settings._asdict():
        raise ValueError(
            _checks.message(
                "`out` holds a run with other settings.",
                {"out": str(out), "its settings": files.read_json(path)},
                "Give another folder, or delete this one.",
            )
        )
    files.write_json(path, settings._asdict())


def _patches(settings, *, moved):
    return stain.training_patches(
        count=settings.patches, size=settings.patch_size, max_shift=settings.max_shift, seed=settings.seed, moved=moved
    )


def _train(arm, settings, gray, truth, track):
    """One arm from scratch: the model, and its curves."""
    patches = _patches(settings, moved=arm != "oracle")
    labels, loss, margin = patches.labels, settings.base, settings.max_shift
    if arm == "tfalign":
        loss = ShiftInvariantLoss(settings.base, max_shift=settings.max_shift)
    else:
        labels = labels[:, margin:-margin, margin:-margin]
    keras.utils.set_random_seed(settings.seed)
    model = unet(input_channels=1, output_channels=3, filters=settings.filters, depth=settings.depth)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    dataset = tf.data.Dataset.from_tensor_slices((patches.inputs, labels))
    dataset = dataset.shuffle(settings.patches, seed=settings.seed).repeat()
    dataset = dataset.batch(settings.batch_size, drop_remainder=True).prefetch(2)

    watch = _Watch(settings.steps, gray, truth[0], track(arm, settings.steps))
    model.fit(dataset, steps_per_epoch=settings.steps, callbacks=[watch], shuffle=False, verbose=0)
    return model, {"curve": watch.curve, "milliseconds_per_step": 1000.0 * watch.training_seconds / settings.steps}


class _Watch(keras.callbacks.Callback):
    """Advances the progress bar; now and then notes the loss, the held-out PSNR and the drift."""

    def __init__(self, steps, gray, truth, advance):
        super().__init__()
        self.noted_steps = {max(1, steps * part // _NOTES) for part in range(1, _NOTES + 1)}
        self.gray, self.truth, self.advance = gray, truth, advance
        self.curve: dict[str, list] = {"step": [], "loss": [], "held_out_psnr": [], "drift": []}
        self.loss_sum = 0.0
        self.training_seconds = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock of a step."""
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Stops it; the evaluation here is not counted."""
        self.training_seconds += time.perf_counter() - self.began
        self.advance(1)
        step = batch + 1
        if step not in self.noted_steps:
            return
        # Keras reports the mean since the epoch began: take the part since the last note.
        total, last = logs["loss"] * step, self.curve["step"][-1] if self.curve["step"] else 0
        prediction = np.clip(np.asarray(self.model(self.gray))[0], 0.0, 1.0)
        self.curve["step"].append(step)
        self.curve["loss"].append(float((total - self.loss_sum) / (step - last)))
        self.curve["held_out_psnr"].append(evaluate.psnr(prediction, self.truth))
        drift = self.model.loss.drift[:2].tolist() if isinstance(self.model.loss, ShiftInvariantLoss) else None
        self.curve["drift"].append(drift)
        self.loss_sum = total


def _card(metrics):
    arm = metrics["arms"]["tfalign"]
    return ModelCard(
        what="Colour stain from gray tissue: a small U-Net, trained on labels that did not lie on their inputs. An "
        "example of the format.",
        data="`skimage.data.immunohistochemistry()`, rows 0-351, cut into patches whose labels were moved by up to "
        f"{metrics['settings']['max_shift']} pixels; rows 352-511 are held out. The input is the mean of the colours.",
        metrics=f"On the held-out rows, in place: PSNR {arm['psnr']:.2f} dB, SSIM {arm['ssim']:.3f}.",
        command=metrics["command"],
        input_range="[0, 1], 0 is black",
        output_range="about [0, 1], not clipped",
        input_channels="gray",
        output_channels="red, green, blue",
        licence="Apache-2.0",
        limits="One picture of one tissue, one stain, one microscope: not for any other use.",
    )


def _summary(settings, arms, shift_errors):
    """The content of `metrics.json`."""
    plain, oracle = arms["plain"], arms["oracle"]

    def recovered(name):
        return evaluate.gap_recovered(arms["tfalign"][name], plain[name], oracle[name])

    common = np.median(shift_errors, axis=0)
    return {
        "gap_recovered_in_place": recovered("psnr"),
        "gap_recovered_moved_back": recovered("psnr_moved_back"),
        "shifts": {
            "exact_in_place": float(np.mean(np.all(shift_errors == 0, axis=-1))),
            "exact_up_to_a_common_offset": float(np.mean(np.all(shift_errors == common, axis=-1))),
            "rms_error": float(np.sqrt(np.mean(np.square(shift_errors)))),
        },
        "arms": arms,
        "settings": settings._asdict(),
        "command": f"tfalign demo --seed {settings.seed} --max-shift {settings.max_shift} --steps {settings.steps}",
        "versions": files.versions(),
    }
