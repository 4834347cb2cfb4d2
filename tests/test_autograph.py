"""A user's `tf.function` traces the package as it is: to convert its sources took most of the time of a first call."""

import sys

import pytest
import tensorflow as tf

import tfalign
from tfalign import losses
from tfalign.ops import registration, resample

SIDE = tf.zeros((1, 8, 8, 1))
CALLS = {
    "register": (lambda: tfalign.register(SIDE, SIDE, max_shift=2).transform, registration, "valid_pixels"),
    "warp": (lambda: tfalign.warp(SIDE, tf.eye(3)[tf.newaxis])[0], resample, "sample"),
    "loss": (lambda: tfalign.shift_invariant_loss(SIDE, SIDE, "mae", max_shift=2), losses, "parts"),
}


@pytest.mark.parametrize("name", CALLS)
def test_sources_are_not_converted(name, monkeypatch):
    function, module, inner = CALLS[name]
    original, callers = getattr(module, inner), []

    def watched(*arguments, **options):
        callers.append(sys._getframe(1).f_code.co_filename)
        return original(*arguments, **options)

    monkeypatch.setattr(module, inner, watched)
    tf.function(function).get_concrete_function()
    assert set(callers) == {module.__file__}
