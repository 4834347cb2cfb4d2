"""A model that was trained in one environment predicts the same in the other, from its files."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.addons import exchange

pytest.importorskip("tensorflow_addons")

ROOT = Path(__file__).parent.parent.parent
# `make test-addons` makes both environments.
OTHER = ROOT / ".venv/bin/python"
COMMON = ["weights.npz", "served"]
TO_OTHER, FROM_OTHER = [*COMMON, "model.weights.h5"], [*COMMON, "model.h5"]


def written(folder):
    return dict(np.load(folder / "truth.npz"))


@pytest.mark.skipif(not OTHER.exists(), reason=f"{OTHER} is missing: `make test-addons` makes it")
def test_what_was_trained_in_one_environment_predicts_the_same_in_the_other(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    exchange.write(here)
    command = [str(OTHER), "-m", "tests.addons.exchange", str(here), str(there), *TO_OTHER]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    both = [(written(here), dict(np.load(there / "found.npz")), TO_OTHER)]
    both += [(written(there), exchange.read(there, FROM_OTHER), FROM_OTHER)]
    for truth, found, names in both:
        assert np.std(truth["prediction"]) > 1e-3
        for name in names:
            np.testing.assert_allclose(found[name], truth["prediction"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found["drift"], truth["drift"], atol=1e-6)
        assert np.any(truth["drift"] != 0.0)
    (one, _, _), (other, _, _) = both
    assert np.abs(one["prediction"] - other["prediction"]).max() > 1e-3
    assert one["tensorflow"] != other["tensorflow"]
