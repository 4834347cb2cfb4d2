"""Small networks whose geometry is known."""

import keras
import numpy as np

import tfalign
from tfalign.data.preprocess import Preprocessing, ZScore, with_preprocessing

LAYERS = keras.layers


def randomized(model, seed=8):
    """The same weights in every lane, of a seed at which no network is dead; biases too: a border shows."""
    rng = np.random.default_rng(seed)
    shapes = [weight.shape for weight in model.get_weights()]
    scales = [(2.0 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.1 for shape in shapes]
    model.set_weights([rng.normal(0.0, scale, shape) for scale, shape in zip(scales, shapes)])
    return model


def unet(rank=2, inputs=1, outputs=2, padding="same", depth=2):
    return randomized(
        tfalign.models.unet(
            rank=rank, input_channels=inputs, output_channels=outputs, filters=2, depth=depth, padding=padding
        )
    )


def pooled(stride=4, *, skip_first=True):
    """A textbook U-Net: pooled without padding and joined without a crop, so it takes multiples of `stride` alone."""
    inputs = keras.Input((None, None, 1))
    skip = LAYERS.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    low = LAYERS.Conv2D(3, 3, padding="same", activation="relu")(LAYERS.MaxPooling2D(stride)(skip))
    high = LAYERS.Conv2DTranspose(3, stride, strides=stride)(low)
    joined = LAYERS.Concatenate()([skip, high] if skip_first else [high, skip])
    return randomized(keras.Model(inputs, LAYERS.Conv2D(2, 3, padding="same")(joined)))


def pooled_planes(stride=(1, 2, 2)):
    """A volume's network that pools rows and columns, not planes."""
    inputs = keras.Input((None, None, None, 1))
    low = LAYERS.Conv3D(2, 3, padding="same")(LAYERS.MaxPooling3D(stride)(inputs))
    high = LAYERS.Conv3DTranspose(2, stride, strides=stride)(low)
    return randomized(keras.Model(inputs, LAYERS.Concatenate()([inputs, high])))


def odd():
    """A network that loses a pixel and then pools, so that it takes odd sizes without dropping another."""
    inputs = keras.Input((None, None, 1))
    low = LAYERS.MaxPooling2D(2)(LAYERS.Conv2D(2, 2)(inputs))
    return randomized(keras.Model(inputs, LAYERS.Conv2DTranspose(1, 2, strides=2)(low)))


def prepared():
    """A network with a preprocessing of the whole image at its front."""
    return with_preprocessing(pooled(), Preprocessing((ZScore(),)))


def half():
    """A network of half precision."""
    inputs = keras.Input((None, None, 1))
    return randomized(keras.Model(inputs, LAYERS.Conv2D(2, 3, padding="same", dtype="mixed_float16")(inputs)))


def fixed(size=32):
    """A network that was built for one size."""
    inputs = keras.Input((size, size, 3))
    return randomized(keras.Model(inputs, LAYERS.Conv2D(1, 5, padding="same")(inputs)))


def enlarging():
    inputs = keras.Input((None, None, 1))
    return keras.Model(inputs, LAYERS.Conv2DTranspose(1, 2, strides=2)(inputs))


def shifting(offset, channels=1):
    """A network whose prediction is its input, moved down/right by `offset` pixels, at most 2 a side."""
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, LAYERS.Conv2D(channels, 5, padding="same", use_bias=False)(inputs))
    kernel = np.zeros((5, 5, channels, channels), np.float32)
    kernel[2 - offset[0], 2 - offset[1]] = np.eye(channels)
    model.set_weights([kernel])
    return model
