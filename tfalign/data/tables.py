"""Tables of text: numbers of a spectrum, and rows of a listing or of positions.

The separator is a tab, a semicolon or a comma, the first of them that the first line holds. Where it is no comma,
decimal commas are understood.
"""

import csv
import io
import re
from pathlib import Path

import numpy as np

from tfalign import _checks, _files

SUFFIXES = (".csv", ".tsv", ".parquet")
MAX_CELLS = 2**24  # of a .parquet file, which may be tiny: rows take a few hundred bytes each in memory
# Headings of a first column that says where a row lies and is no channel.
AXES = ("wavelength", "wavenumber", "frequency", "energy", "mass", "mz", "ramanshift", "time", "sample", "index", "x")


def numbers(path):
    """The numbers of a table `(rows, columns)` float32; lines that begin with # and one line of headings are passed.

    A first column whose heading is one of `AXES`, with or without a unit in brackets, is left out if others follow.
    """
    lines, separator, first_row, first_column = _numeric(path)
    rows_of_numbers = [line.replace(",", ".") if separator != "," else line for line in lines[first_row:]]
    values = np.loadtxt(rows_of_numbers, delimiter=separator, quotechar='"', ndmin=2)
    return values[:, first_column:].astype(np.float32)


def write_numbers(like, path, values):
    """Writes `values` `(rows, columns)` as the table `like`: headings, comments, axis and separator stay."""
    lines, separator, first_row, first_column = _numeric(like)
    comments = [line for line in _text(like).splitlines() if line.startswith("#")]
    if len(lines) - first_row != len(values):
        raise ValueError(
            _checks.message(
                "A spectrum must keep its rows.", {"rows": len(values), "of the file": len(lines) - first_row}
            )
        )
    written = [*comments, *lines[:first_row]]
    for line, row in zip(lines[first_row:], values):
        cells = [f"{value:.9g}" for value in row]
        if separator != ",":
            cells = [cell.replace(".", ",") if "," in line else cell for cell in cells]
        written.append(separator.join([*line.split(separator)[:first_column], *cells]))
    Path(path).write_text("\n".join(written) + "\n", encoding="utf-8")


def _numeric(path):
    """The lines of a table of numbers, their separator, the first one that holds numbers, and the first column."""
    lines = [line for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]
    separator = _separator(lines[0])
    first = [cell.strip(' "') for cell in lines[0].split(separator)]
    plain = [cell.replace(",", ".") for cell in first] if separator != "," else first
    has_heading = not all(_is_number(cell) for cell in plain)
    if not lines[has_heading:]:
        raise ValueError("no row of numbers")
    is_axis = has_heading and _key(re.sub(r"[(\[].*", "", first[0])) in AXES and len(first) > 1
    return lines, separator, int(has_heading), int(is_axis)


def _text(path):
    # A heading in another encoding (nm, µm, cm⁻¹) does not matter to the numbers.
    return Path(path).read_text(encoding="utf-8-sig", errors="replace")


def _rows_text(path):
    # Names must be read right.
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it must be text in UTF-8; in a spreadsheet, save it as CSV UTF-8") from error


def rows(path):
    """The rows of a .csv, .tsv or .parquet file with headings, as dicts; headings lose case, spaces, - and _.

    Raises:
        ImportError: a .parquet file without the extra `parquet`.
        ValueError: text that is not UTF-8, rows of several lengths, or a .parquet file of more than `MAX_CELLS`.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
    else:
        text = _rows_text(path)
        separator = _separator(text.split("\n", 1)[0])
        table = list(csv.DictReader(io.StringIO(text), delimiter=separator, strict=True))
        # A spreadsheet may add rows of separators alone.
        table = [row for row in table if any(row.values())]
        for number, row in enumerate(table, 1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} has not as many cells as there are headings")
    return [{_key(heading): cell for heading, cell in row.items()} for row in table]


def write_rows(like, path, changed):
    """Writes the rows of the table `like` with the numbers that `changed(row)` gives by heading, as `rows` has them.

    Decimal commas stay decimal commas.
    """
    path, like = Path(path), Path(like)
    if like.suffix.lower() == ".parquet":
        _write_parquet(path, [_replaced(row, changed) for row in _read_parquet(like)])
        return
    text = _rows_text(like)
    separator, written = _separator(text.split("\n", 1)[0]), io.StringIO()
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
    writer = csv.DictWriter(written, reader.fieldnames or [], delimiter=separator, lineterminator="\n")
    writer.writeheader()
    has_commas = separator != "," and re.search(r"\d,\d", text) is not None

    def with_commas(row):
        return {heading: str(value).replace(".", ",") for heading, value in changed(row).items()}

    writer.writerows(_replaced(row, with_commas if has_commas else changed) for row in reader if any(row.values()))
    _files.write_text(path, written.getvalue())


def _replaced(row, changed):
    values = changed({_key(heading): cell for heading, cell in row.items()})
    return {heading: values.get(_key(heading), cell) for heading, cell in row.items()}


def check_suffix(name, path):
    """Refuses a table of another kind than .csv or .parquet, or that of an extra which is missing."""
    if _checks.choice(f"suffix of `{name}`", Path(path).suffix, (".csv", ".parquet")) == ".parquet":
        _checks.extra("pyarrow.parquet", "parquet")


def write(path, rows_of_table):
    """Writes dicts of the same keys as a .csv or .parquet file."""
    path = Path(path)
    if path.suffix == ".parquet":
        _write_parquet(path, rows_of_table)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows_of_table[0]) if rows_of_table else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of_table)
    _files.write_text(path, text.getvalue())


def _read_parquet(path):
    """The rows, once the metadata say that they are not too many."""
    parquet = _checks.extra("pyarrow.parquet", "parquet")
    known = parquet.read_metadata(path)
    groups = [known.row_group(number) for number in range(known.num_row_groups)]
    cells = sum(group.column(column).num_values for group in groups for column in range(group.num_columns))
    if cells > MAX_CELLS:
        raise ValueError(f"it holds {cells} cells, more than tfalign.data.tables.MAX_CELLS={MAX_CELLS}; split it")
    return parquet.read_table(path).to_pylist()


def _write_parquet(path, rows_of_table):
    table = _checks.extra("pyarrow", "parquet").Table.from_pylist(rows_of_table)
    beside = path.with_name(f"part-{path.name}")
    _checks.extra("pyarrow.parquet", "parquet").write_table(table, beside)
    beside.replace(path)


def headings(path):
    """The headings of such a file as `rows` gives them."""
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        names = _checks.extra("pyarrow.parquet", "parquet").read_schema(path).names
    else:
        with open(path, encoding="utf-8-sig", errors="replace") as stream:
            line = stream.readline()
        names = line.split(_separator(line))
    return [_key(name) for name in names]


def _separator(line):
    return next((mark for mark in "\t;," if mark in line), ",")


def _key(heading):
    return re.sub(r'[\s_/"-]', "", heading).lower()


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True
