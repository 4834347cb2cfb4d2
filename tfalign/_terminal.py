"""What commands share at the terminal: lines of text, progress bars, lists of numbers, and how an error is shown."""

import contextlib
import errno
import sys

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tfalign import _checks

EXIT_CODES = "Exit codes: 0 done; 1 a fault of tfalign; 2 a mistake in the call; 3 disk or memory; 130 interrupted."
_FAULT, _MISTAKE, _MACHINE, _INTERRUPTED = 1, 2, 3, 130
_ABSENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_LONGEST = 2000  # characters of an error

console = Console()


def say(text):
    """Prints lines as they are, without colours, unbroken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress():
    """Gives `track(description, total) -> advance(steps)`, one bar each; an interrupted command ends in one line."""
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as bars:

            def track(description, total):
                task = bars.add_task(description, total=total)
                return lambda steps: bars.advance(task, steps)

            yield track
    except KeyboardInterrupt:
        print("tfalign: interrupted; the same command goes on with what is not done yet.", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


def numbers(option, text, kind):
    """A text of one number, or of several with commas between as a tuple."""
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        kinds = {int: "whole numbers", float: "numbers"}
        raise ValueError(
            _checks.message(f"`{option}` must be {kinds[kind]} with commas between.", {option: text})
        ) from error
    return values if len(values) > 1 else values[0]


def run(app):
    """Runs a command line; an error is one line on stderr and an exit code, or with --debug its traceback."""
    is_debugged = "--debug" in sys.argv[1:]
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app()
    except Exception as error:
        if is_debugged:
            raise
        print(f"tfalign: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(_code_of(error))


def _code_of(error):
    if isinstance(error, MemoryError):
        return _MACHINE
    if isinstance(error, OSError) and not isinstance(error, _ABSENT) and error.errno != errno.EINVAL:
        return _MACHINE
    return _MISTAKE if isinstance(error, (ValueError, TypeError, OSError, ImportError)) else _FAULT


def _in_one_line(error):
    text = " ".join((error.strerror if _has_own_text(error) else str(error)).split())
    if _code_of(error) == _FAULT:
        text = f"{type(error).__name__}: {text} Add --debug to see where."
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " … Add --debug to see it all."


def _has_own_text(error):
    """Whether an `OSError` was raised with a message of ours behind the number."""
    return isinstance(error, OSError) and error.filename is None and "Received: " in str(error.strerror)
