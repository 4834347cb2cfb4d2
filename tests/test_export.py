import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.export import export_serving


def test_versions_count_up_and_nothing_else_is_left(tmp_path, rng):
    model = tfalign.models.unet(filters=2, depth=2)
    first, second = export_serving(model, tmp_path / "served"), export_serving(model, tmp_path / "served")
    assert (first.name, second.name) == ("1", "2")
    assert sorted(entry.name for entry in (tmp_path / "served").iterdir()) == ["1", "2"]
    assert export_serving(model, tmp_path / "served", version=7).name == "7"
    signature = tf.saved_model.load(str(first)).signatures["serving_default"]
    for size in ((16, 16), (9, 13)):
        inputs = rng.random((1, *size, 1)).astype(np.float32)
        (output,) = signature(tf.constant(inputs)).values()
        np.testing.assert_allclose(output, model(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("version", "error", "text"),
    [(1, ValueError, "version=1"), (0, ValueError, "version=0"), ("1", TypeError, "version='1'")],
)
def test_bad_versions(tmp_path, version, error, text):
    (tmp_path / "1").mkdir()
    with pytest.raises(error, match=text):
        export_serving(tfalign.models.unet(filters=2, depth=1), tmp_path, version=version)
