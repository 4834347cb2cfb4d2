import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.export import networks
from tfalign.export import grid
from tfalign.models.unet import CropLike


@pytest.mark.parametrize(
    ("make", "strides", "losses"),
    [
        (networks.unet, (1, 1), (0, 0)),
        (lambda: networks.unet(rank=1), (1,), (0,)),
        (networks.pooled, (4, 4), (0, 0)),
        (lambda: networks.pooled(3, skip_first=False), (3, 3), (0, 0)),
        (lambda: networks.unet(padding="valid"), (2, 2), (16, 16)),
        (lambda: networks.unet(padding="valid", depth=3), (4, 4), (40, 40)),
        (lambda: networks.unet(rank=1, padding="valid", depth=1), (1,), (4,)),
        (networks.odd, (2, 2), (1, 1)),
        (networks.pooled_planes, (2, 2, 2), (0, 0, 0)),
    ],
)
def test_strides_and_losses_are_found(make, strides, losses):
    axes = grid.axes_of(make())
    assert tuple(axis.stride for axis in axes) == strides
    assert tuple(axis.loss for axis in axes) == losses


@pytest.mark.parametrize(
    "make", [lambda: networks.unet(depth=3), lambda: networks.unet(padding="valid", depth=3), networks.odd]
)
def test_a_run_gives_what_the_trace_says(make):
    model = make()
    axis, _ = grid.axes_of(model)
    for size in range(axis.loss + 1, axis.loss + 2 * axis.stride + 1):
        taken = axis.taken_size(size)
        assert size <= taken < size + axis.stride
        assert model(np.zeros((1, taken, taken, 1), np.float32)).shape[1:3] == (taken - axis.loss,) * 2


def test_the_sizes_of_an_unpadded_network_leave_no_pixel_over():
    # 4 convolutions lose 2 pixels each, at the full grid, before the pooling: an even number is left for it.
    axis, _ = grid.axes_of(networks.unet(padding="valid", depth=3))
    after_first = axis.taken_size(100) - 4
    assert after_first % 2 == 0
    assert (after_first // 2 - 4) % 2 == 0


def test_a_stride_of_its_own_for_each_axis():
    axes = grid.axes_of(networks.pooled_planes(), stride=(1, 2, 2))
    assert [axis.stride for axis in axes] == [1, 2, 2]
    axes = grid.axes_of(networks.unet(padding="valid", depth=3), stride=8)
    assert [(axis.stride, axis.loss) for axis in axes] == [(8, 40)] * 2


def test_a_fixed_size():
    axes = grid.axes_of(networks.fixed(32))
    assert axes == (grid.Axis(fixed=32),) * 2
    assert [int(axes[0].taken_size(tf.constant(size))) for size in (5, 32, 40)] == [32, 32, 40]
    # Tiles of one size start at multiples of the period and end with the grid.
    axis = axes[0]._replace(period=8)
    assert [int(axis.taken_size(tf.constant(size))) for size in (5, 32, 33, 40, 41)] == [32, 32, 40, 40, 48]


def squeezing():
    """A network that pools by 4 and weighs channels by their mean over the whole image."""
    inputs = keras.Input((None, None, 1))
    fine = networks.LAYERS.Conv2D(4, 3, padding="same")(inputs)
    low = networks.LAYERS.MaxPooling2D(4, padding="same")(fine)
    low = networks.LAYERS.Multiply()([low, networks.LAYERS.GlobalAveragePooling2D(keepdims=True)(low)])
    high = CropLike(anchor="start")([networks.LAYERS.UpSampling2D(4)(low), fine])
    return networks.randomized(keras.Model(inputs, networks.LAYERS.Concatenate()([fine, high])))


@pytest.mark.parametrize(
    ("make", "stride", "periods", "reaches"),
    [
        # Four convolutions, 2 of them before the pooling: 1 pixel each.
        (lambda: networks.unet(depth=1), "auto", (1, 1), (2, 2)),
        # 2 + 2 convolutions of 1 pixel and 2 of 2 pixels, from the begin of the pooled pair in which the image ends.
        (networks.unet, "auto", (2, 2), (9, 9)),
        (lambda: networks.unet(depth=4), "auto", (8, 8), (53, 53)),
        (lambda: networks.unet(rank=1), 8, (8,), (15,)),
        (lambda: networks.unet(padding="valid", depth=3), "auto", (4, 4), (0, 0)),
        (networks.odd, "auto", (2, 2), (0, 0)),
        (lambda: networks.pooled(3, skip_first=False), "auto", (3, 3), (9, 9)),
        (networks.pooled_planes, (1, 2, 2), (1, 2, 2), (1, 3, 3)),
        (networks.fixed, "auto", (1, 1), (2, 2)),
    ],
)
def test_periods_and_reaches_are_measured(make, stride, periods, reaches):
    model = make()
    axes = grid.measured(model, grid.axes_of(model, stride))
    assert tuple(axis.period for axis in axes) == periods
    assert tuple(axis.reach for axis in axes) == reaches


def test_a_network_that_sees_the_whole_image_has_a_period_and_no_reach():
    model = squeezing()
    axes = grid.measured(model, grid.axes_of(model))
    assert [(axis.period % 4, axis.reach) for axis in axes] == [(0, None)] * 2


def test_a_network_that_is_dead_in_one_range_of_values_is_measured_in_another():
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, networks.LAYERS.Conv2D(1, 3, padding="same", activation="relu")(inputs))
    model.set_weights([np.full((3, 3, 1, 1), 1.0), np.array([-100.0])])
    axes = grid.axes_of(model)
    assert [axis.reach for axis in grid.measured(model, axes)] == [0, 0]
    assert [axis.reach for axis in grid.measured(model, axes, value_range=(0.0, 255.0))] == [1, 1]


def test_a_stride_beyond_those_that_are_tried_is_a_period():
    model = networks.pooled(70)
    assert [axis.period for axis in grid.measured(model, grid.axes_of(model, 70))] == [70, 70]


@pytest.mark.parametrize(
    ("make", "stride", "error", "text"),
    [
        (networks.enlarging, "auto", ValueError, "one output pixel for every input pixel.*stride='auto'.*more than 64"),
        (networks.pooled, 2, ValueError, "one output pixel for every input pixel.*stride=.2, 2"),
        (networks.pooled, 0, ValueError, "stride=0"),
        (networks.pooled, (4, 4, 4), ValueError, r"stride=\(4, 4, 4\)"),
        (networks.pooled, 4.0, TypeError, "stride=4.0"),
    ],
)
def test_what_does_not_fit(make, stride, error, text):
    with pytest.raises(error, match=text):
        grid.axes_of(make(), stride)
