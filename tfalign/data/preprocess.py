"""What is done to an input before it is cut: the same in training, in prediction and in the exported model.

A `Preprocessing` is a row of steps (`tfalign.data.steps`), called with `(batch, *spatial, channels)`, 1 to 3 spatial
axes, any size; it returns float32. It is pure TensorFlow, compiles under XLA, and its config is plain JSON:

    prepare = Preprocessing((Median(size=3), Percentiles(over="data"))).fit(images)
    prepare(batch)
    Preprocessing.from_config(json.loads(json.dumps(prepare.get_config())))

Give it whole inputs, not patches: filters then see no seams, and a statistic of an image is that of the whole.
`Resample` and `CropOrPad` move pixels: `place` does the same to a label.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.data.steps import (
    STEPS,
    BandPass,
    CropOrPad,
    Gaussian,
    Median,
    Percentiles,
    Resample,
    Scale,
    SeparateStains,
    ZScore,
    as_tuples,
)

__all__ = [
    "BandPass",
    "CropOrPad",
    "Gaussian",
    "Median",
    "Percentiles",
    "Preprocessing",
    "PreprocessingLayer",
    "Resample",
    "Scale",
    "SeparateStains",
    "ZScore",
    "with_preprocessing",
]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Steps, one after the other; without any it only casts to float32."""

    steps: tuple = ()

    def __post_init__(self):
        for step in self.steps:
            if not isinstance(step, tuple(STEPS.values())):
                raise TypeError(_checks.message(f"`steps` must be of {', '.join(STEPS)}.", {"step": step}))

    @property
    def unfitted(self):
        """The first step that needs `fit`, or None."""
        return next((step for step in self.steps if not step.is_fitted), None)

    @property
    def moves_pixels(self):
        """Whether the grid changes, so that a label must be placed anew."""
        return any(step.moves_pixels for step in self.steps)

    def __call__(self, values):
        """Prepares `(batch, *spatial, channels)` of any real type; float32.

        Raises:
            ValueError: a step over "data" is not fitted, or does not suit the rank or the channels.
        """
        if self.unfitted is not None:
            requirement = "A step over the data must be fitted before it is called."
            raise ValueError(_checks.message(requirement, {"step": self.unfitted}, "Call `fit(images)`."))
        values = tf.cast(values, tf.float32)
        for step in self.steps:
            values = step(values)
        return values

    def place(self, label, *, interpolation="linear", fill_value=math.nan):
        """Moves the pixels of a label `(batch, *spatial, channels)` as those of its input; its values stay.

        Args:
            label: any real type.
            interpolation: "linear" makes it floating; "nearest" keeps the type, for class maps.
            fill_value: of pixels that no label pixel belongs to; for class maps a class to be ignored.
        """
        label = tf.convert_to_tensor(label)
        for step in self.steps:
            label = step.place(label, interpolation=interpolation, fill_value=fill_value)
        return label

    def magnification(self, shape):
        """Pixels after for each pixel before, about the centre, one number per axis, of inputs of sizes `shape`."""
        total = np.ones(len(shape))
        for step in self.steps:
            shape, factors = step.grid(shape)
            total *= factors
        return total

    def fit(self, images):
        """This preprocessing with every statistic over the data taken from `images`: the training set, nothing else.

        Args:
            images: arrays `(*spatial, channels)` of any size, in something that can be gone through again, once for
                each step to fit; one image is in memory at a time.
        """
        if iter(images) is images:
            remedy = "Give a list, or an object whose `__iter__` starts anew."
            raise TypeError(_checks.message("`images` must be iterable more than once.", {"images": images}, remedy))
        prepared = self
        while prepared.unfitted is not None:
            prepared = prepared.fitted(map(prepared.measure, images))
        return prepared

    def measure(self, image):
        """What the first unfitted step takes from one image `(*spatial, channels)`; small, may come from elsewhere."""
        before = self.steps[: self.steps.index(self.unfitted)]
        return self.unfitted.measure(Preprocessing(before)(image[np.newaxis]).numpy()[0])

    def fitted(self, measures):
        """This preprocessing with its first unfitted step fitted to the measures of all images."""
        at = self.steps.index(self.unfitted)
        return Preprocessing((*self.steps[:at], self.unfitted.fitted(measures), *self.steps[at + 1 :]))

    def get_config(self):
        """Every step with its parameters, as JSON can hold it."""
        return {"steps": [{"step": type(step).__name__, **dataclasses.asdict(step)} for step in self.steps]}

    @classmethod
    def from_config(cls, config):
        """The preprocessing of `get_config`."""
        steps = []
        for entry in config["steps"]:
            arguments = {name: as_tuples(value) for name, value in entry.items() if name != "step"}
            steps.append(STEPS[_checks.choice("step", entry.get("step"), tuple(STEPS))](**arguments))
        return cls(tuple(steps))


@keras.saving.register_keras_serializable(package="tfalign")
class PreprocessingLayer(keras.layers.Layer):
    """A `Preprocessing` as the first layer of a model, so that it is saved and exported with it."""

    def __init__(self, preprocessing, **kwargs):
        super().__init__(**{"trainable": False, "dtype": "float32", **kwargs})
        if isinstance(preprocessing, dict):
            preprocessing = Preprocessing.from_config(preprocessing)
        self.preprocessing = preprocessing

    def call(self, inputs):
        """`(batch, *spatial, channels)`."""
        return self.preprocessing(inputs)

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "preprocessing": self.preprocessing.get_config()}


def with_preprocessing(model, preprocessing):
    """A model that takes inputs as they are in the files: `model(preprocessing(inputs))`.

    Args:
        model: a Keras model of `(batch, *spatial, channels)`.
        preprocessing: a fitted `Preprocessing`.

    Returns:
        A `keras.Model` of inputs of any size that shares its weights with `model`.
    """
    rank = len(model.input_shape) - 2
    unmixes = any(isinstance(step, SeparateStains) for step in preprocessing.steps)
    inputs = keras.Input((None,) * rank + (3 if unmixes else model.input_shape[-1],))
    return keras.Model(inputs, model(PreprocessingLayer(preprocessing)(inputs)), name=f"{model.name}_of_files")
