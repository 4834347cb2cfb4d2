"""A journal of the files that are done, so that work on many goes on where it was stopped."""

import json
from pathlib import Path

from tfalign import _checks, _files


class Journal:
    """Entries by name, one line of JSON each, under the settings that made them.

    Args:
        path: of the journal; its folder is made if missing.
        settings: a dict that JSON can hold.

    Raises:
        ValueError: the journal was begun with other settings.
    """

    def __init__(self, path, settings):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        # A kill may leave half a line.
        known = [json.loads(line) for line in lines if line.endswith("\n")]
        settings = json.loads(json.dumps(settings))
        if known and known[0] != settings:
            differ = sorted(name for name in {*known[0], *settings} if known[0].get(name) != settings.get(name))
            received = {"folder": str(self._path.parent), "that differ": differ, "its settings": known[0]}
            remedy = "Go on with those, or choose another folder."
            raise ValueError(_checks.message("`folder` was begun with other settings.", received, remedy))
        self._lines = {line["name"]: line for line in known[1:]}
        _files.write_text(self._path, "".join(json.dumps(one) + "\n" for one in [settings, *self._lines.values()]))

    def entry(self, name, state):
        """What was noted of `name` in this state, or None."""
        line = self._lines.get(name)
        return line["entry"] if line is not None and line["state"] == state else None

    def add(self, name, state, entry):
        """Notes what is done."""
        self._lines[name] = {"name": name, "state": state, "entry": entry}
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(self._lines[name]) + "\n")
