"""Files of a run folder, each written beside and renamed."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path

from tfalign._files import write_text
from tfalign._version import __version__


def write_json(path, content):
    """Writes `content` as indented JSON in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path):
    """The content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def save_model(model, path):
    """Saves a Keras model in one step; the name must end in `.keras`."""
    beside = Path(path).with_name(f"part-{Path(path).name}")
    model.save(beside)
    os.replace(beside, path)


def versions():
    """The versions and the machine behind a result."""
    return {
        "tfalign": __version__,
        **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy", "scikit-image")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
