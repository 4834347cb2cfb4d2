import itertools

import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.data.augment import flips

SHAPES = {1: (12,), 2: (8, 11), 3: (4, 6, 5)}


def with_margin(image, margin):
    return np.pad(image, [(margin, margin)] * (image.ndim - 1) + [(0, 0)], constant_values=-1.0)


def flipped_by(run, image, label, seeds, **options):
    """Pairs for all seeds, traced once."""
    kinds = (tf.TensorSpec(image.shape, image.dtype), tf.TensorSpec(label.shape, label.dtype))

    def all_of_them(seeds):
        return tf.map_fn(lambda seed: flips(image, label, seed, **options), seeds, fn_output_signature=kinds)

    return zip(*(pair.numpy() for pair in run(all_of_them, np.array(seeds))))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_flip_comes_and_the_label_goes_along(run, rng, rank):
    image = rng.normal(size=(*SHAPES[rank], 2)).astype(np.float32)
    label = with_margin(image, 3)
    expected = {
        tuple(np.flatnonzero(axes)): np.flip(image, np.flatnonzero(axes))
        for axes in itertools.product((0, 1), repeat=rank)
    }
    seen = []
    for flipped, moved in flipped_by(run, image, label, [(5, number) for number in range(60)]):
        (axes,) = [axes for axes, one in expected.items() if np.array_equal(one, flipped)]
        np.testing.assert_array_equal(moved, np.flip(label, axes))
        seen.append(axes)
    assert set(seen) == set(expected)
    assert max(seen.count(axes) for axes in expected) < 0.8 * len(seen)


def test_quarter_turns_give_the_eight_squares(run, rng):
    image = rng.normal(size=(6, 6, 1)).astype(np.float32)
    label = with_margin(image, 2)
    turned = [np.rot90(square, k) for square in (image, image[:, ::-1]) for k in range(4)]
    counts = np.zeros(8)
    for found, moved in flipped_by(run, image, label, [(number, 1) for number in range(400)], quarter_turns=True):
        (index,) = [index for index, one in enumerate(turned) if np.array_equal(one, found)]
        np.testing.assert_array_equal(moved[2:-2, 2:-2], found)
        counts[index] += 1
    assert counts.min() >= 36


def test_shifts_flip_with_their_sample(rng):
    scene = rng.normal(size=(40, 40, 1)).astype(np.float32)
    image, label = scene[10:30, 10:30], scene[10 - 4 - 2 : 30 + 4 - 2, 10 - 4 + 1 : 30 + 4 + 1]  # t = (+2, -1)
    signs = set()
    for number in range(12):
        pair = flips(image, label, [0, number])
        found = tfalign.register(pair[0][tf.newaxis], pair[1][tf.newaxis], max_shift=4, subpixel=False)
        signs.add(tuple(found.translation.numpy()[0].tolist()))
    assert signs == {(2, -1), (-2, -1), (2, 1), (-2, 1)}


def test_only_the_axes_that_are_asked_for(rng):
    image = rng.normal(size=(5, 5, 1)).astype(np.float32)
    found = {flips(image, image, [number, 0], axes=(1,))[0].numpy().tobytes() for number in range(12)}
    assert found == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}
    unchanged, _ = flips(image, image, [1, 0], axes=())
    np.testing.assert_array_equal(unchanged, image)


def test_class_maps_and_unknown_sizes_in_a_data_set(rng):
    image = rng.normal(size=(9, 7, 1)).astype(np.float32)
    label = (image > 0).astype(np.uint8)
    spec = (tf.TensorSpec((None, None, 1), tf.float32), tf.TensorSpec((None, None, 1), tf.uint8))
    samples = tf.data.Dataset.from_generator(lambda: ((image, label) for _ in range(16)), output_signature=spec)
    seeds = tf.data.Dataset.random(seed=7).batch(2)
    flipped = tf.data.Dataset.zip((samples, seeds)).map(lambda sample, seed: flips(*sample, seed))
    assert flipped.element_spec == spec
    pairs = [(one.numpy(), other.numpy()) for one, other in flipped]
    assert len({one.tobytes() for one, _ in pairs}) == 4
    for one, other in pairs:
        np.testing.assert_array_equal(one > 0, other)


@pytest.mark.parametrize(
    ("inputs", "label", "options", "text"),
    [
        ((4, 4, 1), (4, 4, 1), {"seed": 3}, r"`seed` must be two whole numbers.*seed.shape=\(\)"),
        ((4, 4, 1), (4, 4, 1), {"axes": 2}, r"0 to 1. Received: axes=\(2,\)"),
        ((4, 4, 1), (4, 1), {}, r"one known rank.*label.shape=\(4, 1\)"),
        ((4, 4, 1), (7, 6, 1), {}, r"even number of pixels.*label.shape=\(7, 6, 1\).*margin"),
        ((4, 4, 1), (4, 4, 1), {"axes": (2,)}, r"0 to 1. Received: axes=\(2,\)"),
        ((4, 6, 1), (4, 6, 1), {"quarter_turns": True}, r"square.*inputs.shape=\(4, 6, 1\)"),
        ((4, 4, 1), (6, 8, 1), {"quarter_turns": True}, r"square.*label.shape=\(6, 8, 1\)"),
        ((4, 1), (4, 1), {"quarter_turns": True}, r"square.*inputs.shape=\(4, 1\)"),
    ],
)
def test_mistakes_are_named(inputs, label, options, text):
    with pytest.raises(ValueError, match=text):
        flips(np.zeros(inputs), np.zeros(label), **{"seed": [0, 0], **options})


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [(None, {}, "one known rank.*set_shape"), ((None, None, 1), {"quarter_turns": True}, "square")],
)
def test_what_must_be_known_is_named(shape, options, text):
    with pytest.raises(ValueError, match=text):
        tf.function(lambda one: flips(one, one, [0, 0], **options)).get_concrete_function(tf.TensorSpec(shape))
