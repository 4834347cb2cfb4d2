"""`read_pairs`: from folders, listings, archives and named sets to pairs of input and label."""

import unicodedata
from pathlib import Path, PurePosixPath

from tfalign import _checks
from tfalign.data import formats, recipes, slides, sources, tables, tfds
from tfalign.data import positions as position_files
from tfalign.data.formats import BadFileError
from tfalign.data.marks import Drawing
from tfalign.data.pairs import Pair, Pairs, Skipped


def read_pairs(
    inputs,
    labels=None,
    *,
    recipe=None,
    positions=None,
    rank=None,
    max_margin=0,
    max_pixels=formats.MAX_PIXELS,
    slide_level=0,
    slide_tile=None,
    split="train",
    features=None,
    strict=False,
):
    """Finds inputs and their labels.

    * A folder: its files and those of its subfolders, hidden ones and `labels` excepted, matched with those of the
      folder `labels` by path and name, whatever the suffix. A file: this one, with the file `labels`.
    * A .csv, .tsv or .parquet file: a listing with the column `input` and, if you like, `label` (empty: none) and
      `name`; paths as seen from the listing.
    * An .npz file: its arrays, matched with those of the .npz file `labels` by their keys. Or, with the key `inputs`:
      the samples along the first axis of `inputs` and `labels`, named by `names`.
    * "tfds:<name>", or "tfds:<folder of a prepared set>": a split of a set of TensorFlow Datasets, by its supervised
      keys or `features`.

    Files are those of `tfalign.data.formats`, and whole slides (.svs .ndpi .mrxs .scn .vms .vmu .bif .svslide). Label
    files may also hold positions (`tfalign.data.positions`): one .csv or .geojson for each input, or as `labels` one
    file for all: COCO (.json), or a table with the column `name`.

    Inputs without a label are kept, with the label None. A file that is damaged, empty, too large, of no known format,
    ambiguous (two labels of one name) or without counterpart (a label without input) is skipped and listed. So is a
    pair that does not match: label and input differ in rank, or in size by more than `max_margin`; their centres
    coincide (index `size // 2`). Channels may differ.

    Args:
        inputs, labels: see the table; str or path.
        recipe: computes the labels from the inputs instead: a name of `tfalign.data.recipes.RECIPES`, a mapping of
            "name" and its options, or a function of the input.
        positions: mapping of options of `tfalign.data.marks.Drawing`: how labels given as positions are drawn.
        rank: number of spatial axes, 1 to 3, that inputs must have; None takes any. Arrays (.npy, .npz, sets) of `rank`
            axes gain the channel axis; with None they are taken as `(*spatial, channels)`.
        max_margin: pixels a side by which a label may be larger or smaller than its input.
        max_pixels: most pixels times channels of a file (of a region, for slides), against decompression bombs.
        slide_level: level of a slide's pyramid; 0 is the finest.
        slide_tile: pixels a side of the tiles that a slide is cut into, each a pair; None reads it as one. With
            `slide_level` or `slide_tile`, TIFF pyramids are read as slides too.
        split, features: of a TensorFlow Datasets set; features are the names of input and label, (input, None) for
            none.
        strict: True raises at the first file that would be skipped.

    Returns:
        `Pairs`, in the order of names, or of the listing.

    Raises:
        ValueError, TypeError: an option out of range, or nothing to read.
        BadFileError: what would be skipped, if strict.
        ImportError: an extra is missing: `parquet`, `slides`, `datasets`.
    """
    finder = _Finder(
        drawing=Drawing(**(positions or {})).checked(),
        rank=None if rank is None else _checks.choice("rank", rank, (1, 2, 3)),
        max_pixels=_checks.whole_number("max_pixels", max_pixels, at_least=1),
        level=_checks.whole_number("slide_level", slide_level, at_least=0),
        tile=None if slide_tile is None else _checks.whole_number("slide_tile", slide_tile, at_least=1),
        strict=strict,
    )
    max_margin = _checks.whole_number("max_margin", max_margin, at_least=0)
    if recipe is not None and labels is not None:
        raise ValueError(_checks.message("`recipe` stands for `labels`: give one of them.", {"labels": str(labels)}))
    if str(inputs).startswith("tfds:"):
        _check_no_labels(labels, "`features` name those of the set")
        pairs = finder.named_set(str(inputs).removeprefix("tfds:"), split, features)
    else:
        inputs, labels = _existing("inputs", inputs), labels if labels is None else _existing("labels", labels)
        pairs = finder.pairs(inputs, labels)
    if recipe is not None:
        recipe = recipes.resolve(recipe)
        pairs = [pair._replace(label=sources.Computed(pair.input.path, recipe)) for pair in pairs]
    if not pairs:
        received = {"inputs": str(inputs), "skipped": finder.skipped[:3]}
        raise ValueError(_checks.message("`inputs` must hold a file that can be read.", received))
    return Pairs(pairs, skipped=finder.skipped, max_margin=max_margin, rank=rank, strict=strict)


class _Finder:
    """Makes pairs, and notes what it skips."""

    def __init__(self, *, drawing, rank, max_pixels, level, tile, strict):
        self.drawing, self.rank, self.max_pixels = drawing, rank, max_pixels
        self.level, self.tile, self.strict = level, tile, strict
        self.skipped: list[Skipped] = []

    def skip(self, path, reason):
        """Notes a file that is left out, or stops."""
        if self.strict:
            raise BadFileError(path, reason)
        self.skipped.append(Skipped(str(path), reason))

    def pairs(self, inputs, labels):
        """All pairs of `inputs` and `labels`."""
        if inputs.suffix.lower() in tables.SUFFIXES:
            _check_no_labels(labels, "the listing has the column `label`")
            return self._listed(inputs)
        if inputs.suffix.lower() == ".npz":
            archive = sources.Archive(inputs, self.max_pixels)
            if "inputs" in archive.names:
                _check_no_labels(labels, "the archive holds `labels`")
                return self._samples(archive)
        of_inputs = self._sources(inputs, beside=labels, is_label=False)
        of_labels = {} if labels is None else self._labels(labels, inputs, of_inputs)
        if labels is not None and inputs.is_file() and labels.is_file() and len(of_inputs) == len(of_labels) == 1:
            of_labels = dict(zip(of_inputs, of_labels.values()))
        for name in sorted(of_labels.keys() - of_inputs.keys()):
            for source in of_labels[name]:
                self.skip(source.path, f"no input is called {name!r}")
        pairs = []
        for name, found in sorted(of_inputs.items()):
            candidates = of_labels.get(name, [])
            if self._is_one(name, found, "inputs") and self._is_one(name, candidates, "labels"):
                pairs += self._spread(Pair(name, found[0], candidates[0] if candidates else None))
        return pairs

    def named_set(self, name, split, features):
        """The pairs of a TensorFlow Datasets set."""
        found = tfds.Split(name, split)
        names = features or found.supervised
        if names is None or len(names) != 2:
            received = {"features": names, "those of the set": list(found.features)}
            raise ValueError(_checks.message("`features` must name input and label.", received))
        for feature in names if names[1] else names[:1]:
            if not len(getattr(found.features.get(feature), "shape", ()) or ()):
                received = {"features": names, "those of the set": found.features}
                raise ValueError(_checks.message("`features` must be arrays of the set.", received))

        def source(index, feature):
            return None if feature is None else tfds.Feature(found, index, feature, self.rank, self.max_pixels)

        return [Pair(f"{index:06d}", *(source(index, feature) for feature in names)) for index in range(len(found))]

    def _is_one(self, name, found, role):
        """Whether at most one source has this name; more are skipped."""
        for source in found if len(found) > 1 else ():
            others = ", ".join(str(other.path) for other in found if other is not source)
            self.skip(source.path, f"several {role} are called {name!r}, also {others}")
        return len(found) <= 1

    def _sources(self, place, *, beside, is_label):
        """Lists of sources by name, of a folder without the place `beside`, a file or an archive."""
        found: dict[str, list] = {}
        if place.suffix.lower() == ".npz" and place.is_file():
            archive = sources.Archive(place, self.max_pixels)
            return {_name(name): [sources.Member(archive, name, self.rank)] for name in archive.names}
        for path in [place] if place.is_file() else _files_below(place, beside):
            name = _stem(path.relative_to(place.parent if place.is_file() else place))
            if not _is_text(name):
                self.skip(path, "its name is no Unicode text; rename it")
                continue
            source = self._source(path, is_label=is_label)
            if source is not None:
                found.setdefault(name, []).append(source)
        return found

    def _source(self, path, *, is_label):
        """The source of one file, or None where it is skipped."""
        suffix = path.suffix.lower()
        if not path.is_file():
            return self.skip(path, "there is no such file")
        try:
            with formats.decoding(path):
                has_positions = is_label and position_files.is_file_of_positions(path)
        except BadFileError as error:
            return self.skip(error.path, error.reason)
        if has_positions:
            return sources.Drawn(str(path), self.drawing)
        if suffix in slides.SUFFIXES or suffix in formats.SUFFIXES:
            return sources.File(path, self.rank, self.max_pixels)
        return self.skip(path, f"no format is known by the suffix {path.suffix!r}")

    def _labels(self, labels, inputs, of_inputs):
        """Lists of label sources by name; one file of positions may hold those of all inputs."""
        with formats.decoding(labels):
            found = position_files.read_shared(labels, self.drawing) if labels.is_file() else None
        if found is None:
            return self._sources(labels, beside=inputs, is_label=True)
        named: dict[str, list] = {}
        for file_name, (shape, marks) in found.items():
            name = _stem(file_name)
            name = name if name in of_inputs else name.rpartition("/")[-1]
            named.setdefault(name, []).append(sources.Drawn(f"{labels}: {file_name}", self.drawing, marks, shape))
        return named

    def _listed(self, path):
        """The pairs of a listing."""
        pairs: dict[str, Pair] = {}
        with formats.decoding(path):
            rows = tables.rows(path)
        if rows and "input" not in rows[0]:
            received = {"inputs": str(path), "columns": list(rows[0])}
            raise ValueError(_checks.message("A listing must have the column `input`.", received))
        for number, row in enumerate(rows, 1):
            if not row["input"]:
                self.skip(f"{path}: row {number}", "it names no input")
                continue
            name = _name(str(row["name"])) if row.get("name") else _stem(row["input"])
            source = self._source(path.parent / row["input"], is_label=False)
            label = self._source(path.parent / row["label"], is_label=True) if row.get("label") else None
            if source is None or (row.get("label") and label is None):
                continue
            if name in pairs:
                self.skip(f"{path}: row {number}", f"several rows are called {name!r}; name them in the column `name`")
                continue
            pairs[name] = Pair(name, source, label)
        return [part for pair in pairs.values() for part in self._spread(pair)]

    def _samples(self, archive):
        """The pairs of an archive with the arrays `inputs`, and perhaps `labels` and `names`."""
        for key in {"inputs", "labels", "names"}.intersection(archive.names):
            if not archive.shape(key):
                self.skip(f"{archive.path}: {key}", "it is a single value; samples lie along the first axis")
                return []
        count = archive.shape("inputs")[0]
        names = [f"{index:06d}" for index in range(count)]
        if "names" in archive.names:
            names = [_name(str(name)) for name in archive.read("names")]
        counts = {name: archive.shape(name)[0] for name in ("inputs", "labels", "names") if name in archive.names}
        if len(set(counts.values())) > 1 or len(set(names)) != count:
            received = {"inputs": str(archive.path), **counts}
            raise ValueError(_checks.message("An archive must hold as many labels and names as inputs.", received))
        labelled = "labels" in archive.names

        def source(key, index):
            return sources.Member(archive, key, self.rank, index)

        return [
            Pair(name, source("inputs", index), source("labels", index) if labelled else None)
            for index, name in enumerate(names)
        ]

    def _spread(self, pair):
        """The pair itself, or one for each part of its input where that is a slide."""
        if not isinstance(pair.input, sources.File) or not self._is_slide(pair.input.path):
            return [pair]
        try:
            regions = self._regions(pair.input.path)
            labels = self._parts(pair.label, regions)
        except BadFileError as error:
            self.skip(error.path, error.reason)
            return []
        names = [f"{pair.name}_{row:06d}_{col:06d}" for row, col in (region.origin for region in regions)]
        return list(map(Pair, [pair.name] if self.tile is None else names, regions, labels))

    def _parts(self, label, regions):
        """What belongs to each region of a slide of its label."""
        if isinstance(label, sources.Drawn):
            return label.parts(regions)
        if isinstance(label, sources.File) and self._is_slide(label.path):
            parts = self._regions(label.path)
            if [(part.origin, part.shape) for part in parts] != [(region.origin, region.shape) for region in regions]:
                raise BadFileError(label.path, "it is not of the size of its slide at this level")
            return parts
        if label is not None and len(regions) > 1:
            raise BadFileError(label.path, "the label of a slide in tiles must be a slide or positions")
        return [label] * len(regions)

    def _regions(self, path):
        return slides.regions(path, level=self.level, tile=self.tile, max_pixels=self.max_pixels)

    def _is_slide(self, path):
        if path.suffix.lower() in (".tif", ".tiff") and self.level == 0 and self.tile is None:
            return False
        return slides.is_slide(path)


def _existing(name, place):
    place = Path(place)
    if not place.exists():
        raise ValueError(_checks.message(f"`{name}` must be a file or a folder.", {name: str(place)}))
    return place


def _check_no_labels(labels, reason):
    if labels is not None:
        raise ValueError(_checks.message(f"`labels` must be left out: {reason}.", {"labels": str(labels)}))


def _files_below(folder, beside):
    """All files of a folder and its subfolders, sorted, without hidden ones and those of a place inside it."""
    inner = None if beside is None else beside.resolve()
    is_inside = inner is not None and folder.resolve() in inner.parents
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (is_inside and path.resolve().is_relative_to(inner))
    )


def _is_text(name):
    """Whether a name can be written: systems hand over bytes that are no Unicode as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stem(path):
    """The name that inputs and labels are matched by: the path without suffix."""
    path = Path(path).with_suffix("")
    return _name(path.with_suffix("") if path.suffix.lower() == ".ome" else path)


def _name(given):
    """A name with / between folders and composed accents; one that leaves a folder it is put into loses that part."""
    parts = [part for part in PurePosixPath(Path(given).as_posix()).parts if part not in ("/", "..")]
    return unicodedata.normalize("NFC", "/".join(parts))
