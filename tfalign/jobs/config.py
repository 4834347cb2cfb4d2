"""What a run is made of: every setting with its default, from a YAML file, from flags, and back into one.

    inputs: images            # any key of `Config`; what is left out is as by default
    labels: labels
    epochs: 40
    loss:                     # any keyword of `tfalign.ShiftInvariantLoss`
      base: mae
      max_shift: 8

A file is data: nothing in it is imported or run.
"""

import dataclasses
import difflib
import inspect
import re
from pathlib import Path
from typing import Any

import yaml

from tfalign import _checks
from tfalign.data.split import SETS
from tfalign.losses import ShiftInvariantLoss
from tfalign.models.deformable import DeformableModel
from tfalign.models.warp_network import WarpNetwork

AUTO = "auto"
SCHEDULES = ("plateau", "cosine", "constant")


def loss_options():
    """Every keyword of `ShiftInvariantLoss` with its default."""
    return _keywords(ShiftInvariantLoss)


def _keywords(kind):
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run; "auto" is settled by the data, and then stands in the run's `data.json`.

    Attributes:
        inputs, labels: as `tfalign.data.read_pairs` takes them.
        tfds: instead of them, a set of TensorFlow Datasets: a name, or the folder of a prepared set.
        tfds_split, features, recipe, positions, rank, slide_level, slide_tile: see `read_pairs`.
        max_margin: pixels a side by which labels may be larger or smaller than their inputs; "auto": `max_shift`.
        validation_inputs, validation_labels: held-out truth whose labels are known to lie right. All other files are
            then for training and test.
        strict: stop at the first file that cannot be used, instead of leaving it out.
        cache: keep the patches in the run folder; otherwise every epoch reads the files again.
        preprocessing: of inputs, a list of steps (`tfalign.data.preprocess`), as `{step: Scale, high: 255}`; "auto":
            the 1st and the 99th percentile of the training set become 0 and 1.
        label_range: `[low, high]`, the label values that become 0 and 1; None leaves values as they are. "auto": bytes
            from 0 to 255, wider integers from 0 to the highest value found, floats and class maps as they are.
        patch_size, patch_overlap, margin: see `tfalign.data.cutting.Cutting`. "auto": 512, 64 or 24 pixels in 1-D, 2-D
            or 3-D, or four times `max_shift`; a margin of `max_shift`.
        fractions, split_by: likewise. "auto": by file if there are 10 or more.
        model: "unet", a .keras file, or "module:function", which is called with `rank=`, `input_channels=` and
            `output_channels=`; the last runs your code and is taken from the command line only.
        filters, depth: of the U-Net.
        deformable: labels are bent, too: a warp network is trained beside. True, or keywords of
            `tfalign.models.DeformableModel`, of which `warp_network` holds those of `tfalign.models.warp_network`.
        output_channels: "auto": those of the label, or for class maps the classes found.
        activation: of the U-Net's last layer; "auto": that which `base` needs.
        loss: keywords of `tfalign.ShiftInvariantLoss`. `base` may also be `{class_name: …, config: {…}}`.
        epochs, batch_size: as in Keras.
        steps_per_epoch: "auto": all patches once, 100 steps at least.
        max_blank: share of blank patches at most, see `tfalign.data.patches.balanced`.
        flips: True, False, or a list of axes; "auto": all axes of pictures and volumes, none of recordings.
        learning_rate: of Adam.
        schedule: "plateau" multiplies the rate by `reduce_factor` when the monitored value has not improved for
            `reduce_patience` epochs; "cosine" lets it fall to 0; or "constant".
        monitor: what is watched, a column of `metrics.jsonl`; "auto": the first in-place metric where validation labels
            are known to lie right, else "val_loss", which lays each label where it belongs (the network's own drift
            taken out) and compares there. In place against labels that lie wrong, a blurred network would win.
        stop_patience: epochs without improvement, after which training stops; None never.
        stop_below: a value of `monitor` at which training stops (above it for metrics to be maximised).
        stop_change: training has converged when the monitored value varies by less than this share over
            `stop_change_epochs` epochs.
        tensorboard: write scalars, histograms of shifts and images (extra `tensorboard`).
        jit_compile: as in Keras; "auto".
        seed: of the split, the order of patches, flips, and the network's first weights.
        name: of the exported model.
        workers: processes that read files; does not change a result. "auto": 0 for few small files.
    """

    inputs: str | None = None
    labels: str | None = None
    tfds: str | None = None
    tfds_split: str = "train"
    features: list | None = None
    recipe: Any = None
    positions: dict | None = None
    rank: int | None = None
    slide_level: int = 0
    slide_tile: int | None = None
    max_margin: int | str = AUTO
    validation_inputs: str | None = None
    validation_labels: str | None = None
    strict: bool = False
    cache: bool = True
    preprocessing: list | str = AUTO
    label_range: list | str | None = AUTO
    patch_size: int | list | str = AUTO
    patch_overlap: int | list = 0
    margin: int | list | str = AUTO
    fractions: list = dataclasses.field(default_factory=lambda: [0.8, 0.1, 0.1])
    split_by: str = AUTO
    model: str = "unet"
    filters: int = 16
    depth: int = 3
    deformable: bool | dict = False
    output_channels: int | str = AUTO
    activation: str | None = AUTO
    loss: dict = dataclasses.field(default_factory=loss_options)
    epochs: int = 30
    steps_per_epoch: int | str = AUTO
    batch_size: int = 16
    max_blank: float = 0.1
    flips: bool | list | str = AUTO
    learning_rate: float = 1e-3
    schedule: str = "plateau"
    reduce_factor: float = 0.5
    reduce_patience: int = 5
    monitor: str = AUTO
    stop_patience: int | None = 15
    stop_below: float | None = None
    stop_change: float | None = None
    stop_change_epochs: int = 5
    tensorboard: bool = False
    jit_compile: bool | str = AUTO
    seed: int = 0
    name: str = "model"
    workers: int | str = AUTO

    def __post_init__(self):
        _check_sources(self)
        for name, least in _WHOLE.items():
            _check_whole(name, getattr(self, name), least)
        for name, (low, high) in _NUMBERS.items():
            if getattr(self, name) is not None:
                _checks.number(name, getattr(self, name), at_least=low, at_most=high)
        for name in ("strict", "cache", "tensorboard"):
            _checks.choice(name, getattr(self, name), (True, False))
        _checks.choice("schedule", self.schedule, SCHEDULES)
        _checks.choice("split_by", self.split_by, (AUTO, "file", "region"))
        _checks.choice("jit_compile", self.jit_compile, (AUTO, True, False))
        _check_deformable(self.deformable)
        for name in ("patch_size", "margin", "preprocessing", "label_range", "flips"):
            _check_auto_or_list(name, getattr(self, name))
        if not (isinstance(self.fractions, (list, tuple)) and len(self.fractions) == len(SETS)):
            requirement = "`fractions` must be three numbers, of training, validation and test."
            raise ValueError(_checks.message(requirement, {"fractions": self.fractions}))
        if not _MODEL.fullmatch(str(self.model)):
            received = {"model": self.model}
            raise ValueError(_checks.message("`model` must be unet, FILE.keras or module:function.", received))
        if not re.fullmatch(r"\w[\w.-]*", str(self.name)):
            raise ValueError(_checks.message("`name` must be letters, digits, . _ and -.", {"name": self.name}))

    @property
    def max_shift(self):
        """The bound that is searched: `loss.max_shift`, or the loss's default."""
        bound = self.loss["max_shift"]
        return DEFAULT_MAX_SHIFT if bound is None else bound

    @property
    def deformable_options(self):
        """Keywords of `DeformableModel`."""
        return self.deformable if isinstance(self.deformable, dict) else {}

    @property
    def runs_code(self):
        """Whether the model is a function of the user's."""
        return self.model != "unet" and not self.model.endswith(".keras")

    def to_mapping(self):
        """Every setting, as YAML and JSON can hold it."""
        return dataclasses.asdict(self)

    def differences(self, other):
        """`{setting: (own, other's)}` of those that change a result."""
        mine, others = _flat(self.to_mapping()), _flat(other.to_mapping())
        names = (name for name in {**mine, **others} if name not in ("workers",))
        return {name: (mine.get(name), others.get(name)) for name in names if mine.get(name) != others.get(name)}


_MODEL = re.compile(r"unet|.+\.keras|[\w.]+:\w+")
DEFAULT_MAX_SHIFT = 8  # pixels, what the loss searches when it is not told
_WHOLE = {  # least values; some may be "auto" or None
    "rank": 1,
    "slide_level": 0,
    "slide_tile": 1,
    "max_margin": 0,
    "filters": 1,
    "depth": 1,
    "output_channels": 1,
    "epochs": 1,
    "steps_per_epoch": 1,
    "batch_size": 1,
    "reduce_patience": 1,
    "stop_patience": 1,
    "stop_change_epochs": 2,
    "seed": 0,
    "workers": 0,
}
_NUMBERS = {
    "max_blank": (0.0, 1.0),
    "learning_rate": (0.0, None),
    "reduce_factor": (0.0, 1.0),
    "stop_below": (None, None),
    "stop_change": (0.0, None),
}


def _check_sources(config):
    given = {name: getattr(config, name) for name in ("inputs", "tfds")}
    if sum(value is not None for value in given.values()) != 1:
        remedy = "Give --inputs and --labels, or --tfds."
        raise ValueError(_checks.message("Either `inputs` or `tfds` must be given.", given, remedy))
    pair = {name: getattr(config, name) for name in ("validation_inputs", "validation_labels")}
    if sum(value is not None for value in pair.values()) == 1:
        raise ValueError(_checks.message("Validation inputs and labels must be given together.", pair))


def _check_whole(name, value, least):
    default = next(field.default for field in dataclasses.fields(Config) if field.name == name)
    if value != default and not (value is None and name == "stop_patience"):
        _checks.whole_number(name, value, at_least=least)


def _check_deformable(value):
    if not isinstance(value, (bool, dict)):
        requirement = "`deformable` must be true, false, or keywords with their values."
        raise ValueError(_checks.message(requirement, {"deformable": value}))
    if isinstance(value, dict):
        _check_keys("keyword of `deformable`", value, _keywords(DeformableModel))
        own = value.get("warp_network", {})
        if not isinstance(own, dict):
            requirement = "`deformable.warp_network` must be keywords with their values."
            raise ValueError(_checks.message(requirement, {"warp_network": own}))
        _check_keys("keyword of `deformable.warp_network`", own, _keywords(WarpNetwork))


def _check_auto_or_list(name, value):
    kinds = {"patch_size": (int, list), "margin": (int, list), "flips": (bool, list)}
    is_none = value is None and name == "label_range"
    if value != AUTO and not is_none and not isinstance(value, kinds.get(name, (list,))):
        raise ValueError(_checks.message(f'`{name}` must be "auto" or a list, see the help.', {name: value}))
    if name == "label_range" and isinstance(value, list) and not (len(value) == 2 and value[0] < value[1]):
        raise ValueError(_checks.message("`label_range` must be two numbers, the lower one first.", {name: value}))


def from_mapping(mapping):
    """A `Config` of a mapping that may leave out what is as by default; loss options may be left out too.

    Raises:
        ValueError, TypeError: a key that is no setting, or a value out of range.
    """
    mapping = dict(mapping)
    known = [field.name for field in dataclasses.fields(Config)]
    _check_keys("setting", mapping, known)
    own = mapping.get("loss") or {}
    if not isinstance(own, dict):
        raise ValueError(_checks.message("`loss` must be keywords of the loss with their values.", {"loss": own}))
    _check_keys("keyword of the loss", own, loss_options())
    mapping["loss"] = {**loss_options(), **own}
    for name in ("inputs", "labels", "validation_inputs", "validation_labels"):
        if mapping.get(name) is not None:
            mapping[name] = str(Path(mapping[name]).absolute())
    model = str(mapping.get("model", "unet"))
    if model.endswith(".keras"):
        mapping["model"] = str(Path(model).absolute())
    # What YAML cannot tell from its own text is the same setting.
    return Config(**_plain(mapping))


def merged(*mappings):
    """One mapping of several, the later ones first; those of `loss` key by key."""
    result: dict = {"loss": {}}
    for mapping in mappings:
        result = {**result, **mapping, "loss": {**result["loss"], **(mapping.get("loss") or {})}}
    return result


def read(path):
    """The mapping in a YAML file.

    Raises:
        ValueError: not YAML, or no mapping.
        OSError: no such file.
    """
    content = parse(Path(path).read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict):
        raise ValueError(_checks.message("`config` must hold settings with their values.", {"config": str(path)}))
    return content


def parse(text, where):
    """A text of YAML as plain data."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(_checks.message(f"`{where}` must be YAML.", {"error": said})) from error


def setting(text):
    """The mapping of one `key=value`, the value in YAML; `loss.base=mse` is a keyword of the loss."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(_checks.message("A setting must be written key=value.", {"set": text}))
    value = parse(value, f"--set {key}")
    return {"loss": {key.removeprefix("loss."): value}} if key.startswith("loss.") else {key: value}


def text_of(config):
    """The YAML of a `Config`."""
    return "# Every setting of this run; `tfalign train --config` takes it.\n" + yaml.safe_dump(
        config.to_mapping(), sort_keys=False, allow_unicode=True, width=120
    )


class _Loader(yaml.SafeLoader):
    """Plain data; 1e-3 is a number, which YAML 1.1 takes for a word."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_keys(kind, mapping, known):
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            remedy = f"Is it {near[0]!r}?" if near else f"There are {', '.join(known)}."
            raise ValueError(_checks.message(f"A {kind} must be known.", {"key": key}, remedy))


def _flat(mapping):
    """The keywords of the loss as settings of their own."""
    loss = {f"loss.{name}": value for name, value in mapping["loss"].items()}
    return {**{name: value for name, value in mapping.items() if name != "loss"}, **loss}


def _plain(value):
    """Tuples as lists and paths as text, as they come back from a file."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
