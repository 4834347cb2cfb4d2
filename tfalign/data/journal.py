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
        known = [json.loads(line) for line in _whole_lines(self._path)] if self._path.exists() else []
        settings = json.loads(json.dumps(settings))
        if known and known[0] != settings:
            differ = sorted(name for name in {*known[0], *settings} if known[0].get(name) != settings.get(name))
            received = {"folder": str(self._path.parent), "that differ": differ, "its settings": known[0]}
            remedy = "Go on with those, or choose another folder."
            raise ValueError(_checks.message("`folder` was begun with other settings.", received, remedy))
        self._lines = {line["name"]: line for line in known[1:]}
        _files.write_text(self._path, "".join(json.dumps(one) + "\n" for one in [settings, *self._lines.values()]))

    @staticmethod
    def forget(path, names):
        """Takes names out of a journal, if there is one: what was done to them no longer holds."""
        if Path(path).exists():
            lines = _whole_lines(Path(path))
            _files.write_text(path, "".join(one for one in lines if json.loads(one).get("name") not in names))

    def entry(self, name, state):
        """What was noted of `name` in this state, or None."""
        line = self._lines.get(name)
        return line["entry"] if line is not None and line["state"] == state else None

    def add(self, name, state, entry):
        """Notes what is done."""
        self._lines[name] = {"name": name, "state": state, "entry": entry}
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(self._lines[name]) + "\n")


def _whole_lines(path):
    """A kill may leave half a line."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
