"""The network of a run: made or loaded, and compiled with the loss that aligns."""

import dataclasses
import importlib
import os
import sys

import keras

from tfalign import _checks
from tfalign.data.steps import as_tuples
from tfalign.jobs import files, run_reading
from tfalign.jobs.config import AUTO
from tfalign.jobs.run_data import ignored_class
from tfalign.losses import ShiftInvariantLoss
from tfalign.models.deformable import DeformableModel
from tfalign.models.unet import unet
from tfalign.models.warp_network import WarpNetwork


def made(config, facts):
    """The network that the settings name, for data as `data.json` describes it; of bent labels a `DeformableModel`.

    Raises:
        ValueError, TypeError: no such model, or it does not fit the data.
    """
    network = _predictor(config, facts)
    return network if config.deformable is False else _deformable(network, config)


def _deformable(network, config):
    options = {name: as_tuples(value) for name, value in config.deformable_options.items()}
    return DeformableModel(network, WarpNetwork(**options.pop("warp_network", {})), **options)


def _predictor(config, facts):
    sizes = {name: facts[name] for name in ("rank", "input_channels", "output_channels")}
    if config.model == "unet":
        options = {"filters": config.filters, "depth": config.depth, "activation": _activation(config)}
        return unet(**sizes, **options)
    if config.model.endswith(".keras"):
        return _fitting(files.read_model(config.model), config, sizes)
    return _fitting(_of_function(config.model, sizes), config, sizes)


def trained(folder, config, facts, *, model=None):
    """The best network of a run.

    Args:
        folder: `RunFolder`.
        config, facts: its settings and `data.json`.
        model: "module:function" where the network needs code of the user's; it is not taken from the run folder, which
            may be another person's.

    Raises:
        ValueError: there is none yet, or it cannot be read without code.
    """
    if model is None:
        return files.read_model(run_reading.best_model(folder.path))
    network = made(dataclasses.replace(config, model=model), facts)
    compile_for(network, config)
    network.load_weights(str(run_reading.best_model(folder.path)))
    return predictor_of(network)


def predictor_of(model):
    """What is left of a model once it is trained: of a `DeformableModel` its predictor."""
    return model.predictor if isinstance(model, DeformableModel) else model


def check(config):
    """Raises what would otherwise only come up once the files are read."""
    loss_of(config)
    if config.deformable is not False:
        _deformable(keras.Sequential(), config)
    if config.model.endswith(".keras") and not os.path.isfile(config.model):
        raise FileNotFoundError(_checks.message("`model` must be a file.", {"model": config.model}))


def compile_for(model, config, *, metrics=()):
    """Compiles a network with the loss, the optimizer and the metrics of a run, and builds its optimizer."""
    options = {} if config.jit_compile == AUTO else {"jit_compile": config.jit_compile}
    model.compile(keras.optimizers.Adam(config.learning_rate), loss=loss_of(config), metrics=list(metrics), **options)
    model.optimizer.build(model.trainable_variables)


def loss_of(config):
    """The `ShiftInvariantLoss` of the settings."""
    options = {name: as_tuples(value) for name, value in config.loss.items()}
    options["base"] = _base(config.loss["base"])
    # Class maps are -1 beyond their file.
    options["ignore_class"] = ignored_class(config)
    return ShiftInvariantLoss(**options)


def _base(base):
    """A name of a Keras loss, or `{class_name, config}` as an instance; nothing else is looked up."""
    if isinstance(base, str):
        return base
    known = isinstance(base, dict) and "class_name" in base and set(base) <= {"class_name", "config"}
    kind = getattr(keras.losses, str(base["class_name"]), None) if known else None
    if not (isinstance(kind, type) and issubclass(kind, keras.losses.Loss)):
        remedy = "E.g. mae, or {class_name: Huber, config: {delta: 0.5}}."
        raise ValueError(_checks.message("`loss.base` must be a Keras loss.", {"base": base}, remedy))
    return kind(**(base.get("config") or {}))


def _activation(config):
    """Of the last layer: what makes the values that the base takes."""
    if config.activation != AUTO:
        return config.activation
    base = config.loss["base"]
    name, options = (base.get("class_name"), base.get("config") or {}) if isinstance(base, dict) else (base, {})
    name = str(name).lower().replace("_", "")
    if options.get("from_logits") or "crossentropy" not in name:
        return None
    return "sigmoid" if "binary" in name else "softmax"


def _of_function(model, sizes):
    """What the user's function returns."""
    module, _, function = model.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        received = {"model": model, "error": str(error)}
        remedy = "The module is looked for in this folder and where Python looks."
        raise ValueError(_checks.message("`model` must be a function of a module.", received, remedy)) from error
    return make(**sizes)


def _fitting(model, config, sizes):
    """The model, if it takes these inputs and gives predictions of the label's channels."""
    if not isinstance(model, keras.Model):
        received = {"model": config.model, "it is a": type(model).__name__}
        raise TypeError(_checks.message("`model` must be a Keras model.", received))
    rank = sizes["rank"]
    shapes = {"inputs": model.input_shape, "outputs": model.output_shape}
    wanted = {"inputs": sizes["input_channels"], "outputs": sizes["output_channels"]}
    for role, shape in shapes.items():
        fits = isinstance(shape, tuple) and len(shape) == rank + 2 and shape[-1] in (None, wanted[role])
        if not fits:
            received = {"model": config.model, f"its {role}": shape, "spatial axes": rank, "channels": wanted[role]}
            raise ValueError(_checks.message(f"The model must have {role} that fit the data.", received))
    return model
