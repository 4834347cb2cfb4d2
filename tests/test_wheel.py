"""What a user installs: the wheel, in an environment of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tfalign import _keras

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(
    not _keras.IS_KERAS_3, reason="a fresh environment gets the newest TensorFlow: the main lane's test"
)
@pytest.mark.timeout(900)
def test_the_wheel_runs_the_demo(tmp_path):
    def call(*command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    call(sys.executable, "-m", "venv", tmp_path / "venv")
    call(tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel)
    output = call(tmp_path / "venv/bin/tfalign", "demo", "--steps", "3", "--out", tmp_path / "run")
    assert "gap recovered" in output
    assert json.loads((tmp_path / "run/metrics.json").read_text())["settings"]["steps"] == 3
    assert (tmp_path / "run/report.html").exists()
    typed = call(
        tmp_path / "venv/bin/python", "-c", "import tfalign, pathlib; print(pathlib.Path(tfalign.__file__).parent)"
    )
    assert (Path(typed.strip()) / "py.typed").exists()
    assert str(tmp_path) in typed
