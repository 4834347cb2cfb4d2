"""The one way a file is written: beside, then renamed, so that a kill leaves the old one or the new one."""

import os
from pathlib import Path


def write_text(path, text):
    """Writes `text` to `path` in one step."""
    beside = Path(f"{path}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
