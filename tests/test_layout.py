"""The architecture, held by the imports."""

import ast
from pathlib import Path

import pytest

import tfalign

PACKAGE = Path(tfalign.__file__).parent
# A module may import from those above its own; a folder's modules from one another only as listed.
ORDER = [
    "tfalign._version",
    "tfalign._checks",
    "tfalign._files",
    "tfalign._keras",
    "tfalign.ops.replicas",
    "tfalign.ops.geometry",
    "tfalign.ops.spline",
    "tfalign.ops.resample",
    "tfalign.ops.displacements",
    "tfalign.ops.filters",
    "tfalign.ops.spectral",
    "tfalign.ops.similarity.sums",
    "tfalign.ops.similarity.moments",
    "tfalign.ops.similarity.streaming",
    "tfalign.ops.similarity.phase",
    "tfalign.ops.similarity.information",
    "tfalign.ops.similarity.parzen",
    "tfalign.ops.similarity.views",
    "tfalign.ops.similarity.measures",
    "tfalign.ops.peak",
    "tfalign.ops.evidence",
    "tfalign.ops.shifts",
    "tfalign.ops.refine",
    "tfalign.ops.start",
    "tfalign.ops.registration",
    "tfalign.linear_drift",
    "tfalign.drift",
    "tfalign._pixel_loss",
    "tfalign._label_parts",
    "tfalign._filled",
    "tfalign._label_search",
    "tfalign._aligned_loss",
    "tfalign._assignment",
    "tfalign._one_output",
    "tfalign.losses",
    "tfalign.layers",
    "tfalign.metrics.pairs",
    "tfalign.metrics.base",
    "tfalign.metrics.wrappers",
    "tfalign.metrics.pictures",
    "tfalign.metrics.shifts",
    "tfalign.metrics.labels",
    "tfalign.callbacks",
    "tfalign.distributed",
    "tfalign.models.unet",
    "tfalign.models.warp_network",
    "tfalign.models._twins",
    "tfalign.models._bent_labels",
    "tfalign.models._equivariance",
    "tfalign.models.deformable",
    "tfalign.data.stain",
    "tfalign.data.misalign",
    "tfalign.data.fingerprints",
    "tfalign.data.tables",
    "tfalign.data.formats",
    "tfalign.data.marks",
    "tfalign.data.positions",
    "tfalign.data.recipes",
    "tfalign.data.slides",
    "tfalign.data.sources",
    "tfalign.data.tfds",
    "tfalign.data.pairs",
    "tfalign.data.readers",
    "tfalign.data.stain_dataset",
    "tfalign.data.augment",
    "tfalign.data.patches",
    "tfalign.data.steps",
    "tfalign.data.preprocess",
    "tfalign.data.split",
    "tfalign.data.cutting",
    "tfalign.data.workers",
    "tfalign.data.examples",
    "tfalign.data.shards",
    "tfalign.data.cache",
    "tfalign.data.pipeline",
    "tfalign.data.realignment",
    "tfalign.data.offset",
    "tfalign.data.journal",
    "tfalign.data.writers",
    "tfalign.data.label_files",
    "tfalign.data.repair",
    "tfalign.data.misalign_files",
    "tfalign.export.grid",
    "tfalign.export.tiles",
    "tfalign.export.images",
    "tfalign.export.signatures",
    "tfalign.export.requests",
    "tfalign.export.options",
    "tfalign.export.card",
    "tfalign.export.serving",
    "tfalign.jobs.files",
    "tfalign.jobs.run_reading",
    "tfalign.jobs.config",
    "tfalign.jobs.run_folder",
    "tfalign.jobs.run_data",
    "tfalign.jobs.stopping",
    "tfalign.jobs.evaluate",
    "tfalign.jobs.figures",
    "tfalign.jobs.report",
    "tfalign.jobs.demo",
    "tfalign.jobs.export",
    "tfalign.jobs.predictor",
    "tfalign.jobs.predict",
    "tfalign.jobs.analysis_numbers",
    "tfalign.jobs.analysis",
    "tfalign.jobs.networks",
    "tfalign.jobs.misalignment",
    "tfalign.jobs.run_figures",
    "tfalign.jobs.run_pictures",
    "tfalign.jobs.run_report",
    "tfalign.jobs.measures",
    "tfalign.jobs.board",
    "tfalign.jobs.evaluate_run",
    "tfalign.jobs.realign",
    "tfalign.jobs.train",
    "tfalign.jobs.beam.runner",
    "tfalign.jobs.beam.archive",
    "tfalign._terminal",
    "tfalign._train_commands",
    "tfalign._result_commands",
    "tfalign.cli",
]
MODULES = {
    ".".join(("tfalign", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(path):
    """Every module that a file imports, `from a import b` as both a and a.b, and whether inside a function."""
    tree = ast.parse(path.read_text())
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, node in inner
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node in inner


def test_every_module_has_its_place():
    assert sorted(MODULES) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    above = ORDER[: ORDER.index(module)]
    for name, _ in imported(MODULES[module]):
        if name in MODULES:
            assert name in above, f"{module} imports {name}, which is not above it"


@pytest.mark.parametrize("module", ORDER)
def test_nothing_private_and_no_hidden_imports(module):
    source = MODULES[module].read_text()
    for name, inside_function in imported(MODULES[module]):
        assert not inside_function, f"{module} imports {name} inside a function"
        for private in ("tensorflow.python", "tensorflow.core", "keras.src", "tensorflow.keras", "keras.ops"):
            assert not name.startswith(private), f"{module} imports {name}"
    assert "tf.keras" not in source
    assert "keras.ops" not in source


@pytest.mark.parametrize("module", [name for name in ORDER if name.startswith("tfalign.ops")])
def test_ops_know_nothing_of_keras(module):
    assert not any(name.split(".")[0] == "keras" for name, _ in imported(MODULES[module]))


@pytest.mark.parametrize("module", [name for name in ORDER if name != "tfalign._keras"])
def test_only_one_file_knows_of_two_kerases(module):
    source = MODULES[module].read_text()
    for word in ("keras.__version__", "IS_KERAS_3", "is_keras_3"):
        assert word not in source


def test_jobs_know_nothing_of_the_terminal():
    for module in ORDER:
        if module.startswith("tfalign.jobs"):
            names = {name.split(".")[0] for name, _ in imported(MODULES[module])}
            assert not names & {"rich", "typer", "tqdm", "argparse"}


def test_public_names_exist():
    for name in tfalign.__all__:
        assert hasattr(tfalign, name)
