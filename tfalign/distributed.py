"""Training on one device, on several GPUs, or with several workers that see the same folder, by one call.

    strategy = tfalign.distributed.strategy()  # first of all: workers meet here
    with strategy.scope():
        model = tfalign.models.unet()
        model.compile("adam", loss=tfalign.ShiftInvariantLoss(max_shift=8))
    tfalign.distributed.fit(model, batches, epochs=20, checkpoints="run/checkpoints")

`model.fit` is enough for one device and for several GPUs of one machine. That of Keras 3 does not run with several
workers (keras#20585): it takes what `strategy.run` returns for tensors. `fit` here runs the model's own `train_step`,
so compiled losses and metrics, optimizers, mixed precision and models like `DeformableModel` do what they do there.
"""

import contextlib
import functools
import json
import os
import re
import tempfile
import warnings
import zipfile
from pathlib import Path

import keras
import tensorflow as tf

from tfalign import _checks
from tfalign.callbacks import AlignmentLog
from tfalign.losses import ShiftInvariantLoss

_WRITERS = (keras.callbacks.CSVLogger, keras.callbacks.RemoteMonitor, keras.callbacks.TensorBoard)
_CHECKPOINT = re.compile(r"epoch-(\d{5})\.keras")
_KEPT = 2  # checkpoints: one more than needed, should the last be damaged


def strategy():
    """The strategy for this process: of its workers, of its GPUs, or of one device.

    Several workers are named by the environment variable `TF_CONFIG`, to each with its own "task":
    `{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}`. They wait here
    for one another, so it must be called before anything else of TensorFlow.

    Returns:
        A `MultiWorkerMirroredStrategy` with several workers, else a `MirroredStrategy` with several GPUs, else the
        strategy in use, by default that of one device.
    """
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    if sum(len(cluster.get(kind, ())) for kind in ("chief", "worker")) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def is_chief(strategy):
    """Whether this process is the one that writes: the chief of the workers, the first, or the only one."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    first = "chief" if "chief" in resolver.cluster_spec().as_dict() else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


@contextlib.contextmanager
def together(strategy):
    """What all workers must have done before one goes on, as reading what the chief writes; where one fails, all do.

    Raises:
        ConnectionError: on the workers that did not fail.
    """
    try:
        yield
    except Exception:
        _failures(strategy, 1.0)
        raise
    if _failures(strategy, 0.0) > 0.0:
        raise ConnectionError("Another worker failed, the chief perhaps: see what it says.")


def _failures(strategy, mine):
    """The sum over all workers, of which one that is gone has failed."""
    try:
        return _reduced(strategy, tf.distribute.ReduceOp.SUM, mine)
    except (tf.errors.UnavailableError, tf.errors.AbortedError):
        return mine + 1.0


def _reduced(strategy, operation, value):
    """A number that each replica has, summed or averaged over those of all workers."""

    def reduced():
        return strategy.reduce(operation, strategy.run(lambda: tf.constant(value, tf.float64)), axis=None)

    return tf.function(reduced, autograph=False)().numpy()


def fit(
    model,
    data,
    *,
    epochs=1,
    initial_epoch=0,
    steps_per_epoch=None,
    validation_data=None,
    validation_steps=None,
    callbacks=(),
    checkpoints=None,
    verbose=0,
):
    """Trains a compiled model on the devices and workers of the strategy that it was made under.

    Every worker runs the same program. Each step takes one global batch, of which each replica gets a part, and is
    what one device would do with the whole batch; logs are of all replicas and the same on all workers. A batch of
    which a replica would get nothing, as a small last one, is not trained on: without a sample, batch normalisation
    has no mean, and its weights would be NaN from then on. Validation takes it.

    Args:
        model: a compiled and built `keras.Model`.
        data: a `tf.data.Dataset` of global batches `(inputs, labels)` or `(inputs, labels, weights)`, in the same order
            on all workers: each reads all of it and takes its part. Or a function of a `tf.distribute.InputContext` and
            the number of an epoch that returns this worker's own dataset of that epoch, batches for one replica: what
            large data, that each worker reads in part, and the `tf.data` service need.
        epochs: up to which number to train.
        initial_epoch: the number of the first epoch, where no checkpoint says another.
        steps_per_epoch: steps; by default all of the data. Where a dataset is longer the next epoch goes on in it.
        validation_data: as `data`, evaluated after each epoch, from its beginning.
        validation_steps: steps of a validation; by default all of the data.
        callbacks: of Keras, run on every worker, but those that write (`CSVLogger`, `TensorBoard`, `RemoteMonitor` and
            any with an attribute `chief_only = True`) on the chief alone. `ModelCheckpoint` and `AlignmentLog` run
            everywhere and keep their files on the chief. Logs of a batch are means over replicas.
        checkpoints: a folder that all workers see. After each epoch the model, with optimizer and loss, is saved there,
            and a call that finds a checkpoint goes on after it: with the data that would have come next, if that is a
            function or a dataset of known size or with `steps_per_epoch`, and the same on each call. State of callbacks
            is not kept.
        verbose: 0, or of the progress bar, which the chief shows.

    Returns:
        A `keras.callbacks.History` of the epochs that this call trained.

    Raises:
        ValueError: arguments do not fit, the data is too short, no batch has a sample for each replica, or workers see
            different checkpoints.
        TypeError: `data` is neither a dataset nor a function.

    Not covered: `steps_per_execution` (each step is one execution), XLA with several replicas (off, as in Keras).

    Example:
        >>> def batches(context, epoch):
        ...     size = context.get_per_replica_batch_size(32)
        ...     mine = dataset.shard(context.num_input_pipelines, context.input_pipeline_id)
        ...     return mine.shuffle(1000, seed=epoch).batch(size, drop_remainder=True)
        >>> tfalign.distributed.fit(model, batches, epochs=2, checkpoints="run/checkpoints")
    """
    _check_model(model)
    _checks.whole_number("epochs", epochs, at_least=1)
    scope = model.distribute_strategy
    with scope.scope():
        # What the first step would make is made now: steps are then traced once.
        model.optimizer.build(model.trainable_variables)
        _ = [loss.state for loss in tf.nest.flatten(model.loss) if isinstance(loss, ShiftInvariantLoss)]
    saved = None if checkpoints is None else _Checkpoints(checkpoints, scope)
    begin = _checks.whole_number("initial_epoch", initial_epoch, at_least=0)
    begin = begin if saved is None else saved.restore(model) or begin
    training = _Batches(scope, "data", data, steps_per_epoch, goes_on=True, begin=begin)
    validation = None
    if validation_data is not None:
        validation = _Batches(scope, "validation_data", validation_data, validation_steps, goes_on=False)
    train, test = _Step(model, model.train_step, is_training=True), _Step(model, model.test_step)

    history = keras.callbacks.History()
    with tempfile.TemporaryDirectory() as aside:
        told = keras.callbacks.CallbackList(
            [*_of_this_worker(callbacks, scope, aside), history],
            add_progbar=bool(verbose) and is_chief(scope),
            model=model,
            epochs=epochs,
            steps=training.steps,
            verbose=verbose if is_chief(scope) else 0,
        )
        model.stop_training = False
        told.on_train_begin()
        for epoch in range(begin, epochs):
            told.on_epoch_begin(epoch)
            logs = _pass(model, train, training, epoch, told.on_train_batch_begin, told.on_train_batch_end)
            if validation is not None:
                told.on_test_begin()
                found = _pass(model, test, validation, epoch, told.on_test_batch_begin, told.on_test_batch_end)
                told.on_test_end(found)
                logs |= {f"val_{name}": value for name, value in found.items()}
            if epoch + 1 == epochs:
                model.optimizer.finalize_variable_values(model.trainable_variables)
            told.on_epoch_end(epoch, logs)
            if saved is not None:
                saved.save(model, epoch + 1)
            if model.stop_training:
                break
        told.on_train_end()
    return history


def _check_model(model):
    is_compiled = getattr(model, "optimizer", None) is not None
    if not (model.built and is_compiled):
        received = {"model": model.name, "built": model.built, "compiled": is_compiled}
        remedy = "Call it on a batch, or model.build(shape), and model.compile(…), inside the scope of the strategy."
        raise ValueError(_checks.message("`model` must be built and compiled.", received, remedy))


class _Step:
    """A step of training or evaluation on a batch, whose logs are means over replicas."""

    def __init__(self, model, step, *, is_training=False):
        self._model, self._scope, self._step, self._function = model, model.distribute_strategy, step, None
        self._needs_samples = is_training and self._scope.num_replicas_in_sync > 1
        self._count = None
        if model.jit_compile and self._scope.num_replicas_in_sync == 1:
            self._step = tf.function(step, jit_compile=True, reduce_retracing=True)

    def takes(self, batch, spec):
        """Whether the batch is one to step on: to train, each replica of each worker needs a sample."""
        if not self._needs_samples:
            return True
        if self._count is None:
            self._count = tf.function(self._empty_parts, autograph=False, input_signature=[spec])
        return self._count(batch) == 0

    def __call__(self, batch, spec):
        if self._model.run_eagerly:
            return self._run(batch)
        if self._function is None:
            # All workers must trace the same graph, whatever sizes their last batches have.
            self._function = tf.function(self._run, autograph=False, input_signature=[spec])
        return self._function(batch)

    def _empty_parts(self, batch):
        def is_empty(part):
            return tf.cast(tf.equal(tf.shape(tf.nest.flatten(part)[0])[0], 0), tf.float32)

        return self._scope.reduce(tf.distribute.ReduceOp.SUM, self._scope.run(is_empty, args=(batch,)), axis=None)

    def _run(self, batch):
        logs = self._scope.run(self._on_replica, args=(batch,))
        return {name: self._scope.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

    def _on_replica(self, batch):
        with tf.variable_creator_scope(_lifted):
            return tf.nest.map_structure(lambda value: tf.cast(value, tf.float32), self._step(batch))


def _lifted(creator, **options):
    """Makes a variable, of a metric say, outside of the step that meets it first: there it could not be initialized."""
    with tf.init_scope():
        return creator(**options)


def _pass(model, step, batches, epoch, begin, end):
    """The logs of all steps of an epoch, of all replicas."""
    model.reset_metrics()
    iterator, taken, done = batches.of(epoch), 0, 0
    while batches.steps is None or taken < batches.steps:
        batch = iterator.get_next_as_optional()  # an error would come when the step is under way
        if not batch.has_value():
            break
        taken += 1
        values, spec = batch.get_value(), iterator.element_spec
        if not step.takes(values, spec):
            continue
        begin(done)
        logs = step(values, spec)
        end(done, {name: _as_number(value) for name, value in logs.items()})
        done += 1
    batches.check(taken, done)
    return {name: _as_number(value) for name, value in model.get_metrics_result().items()}


def _as_number(value):
    array = tf.convert_to_tensor(value).numpy()
    return float(array) if array.ndim == 0 else array


class _Batches:
    """The batches of each epoch, on the devices of this worker."""

    _REMEDY = "Make batches larger, and give every worker as many of them."

    def __init__(self, scope, name, data, steps, *, goes_on, begin=0):
        self._scope, self._name, self._data = scope, name, data
        self.steps = None if steps is None else _checks.whole_number(f"steps of `{name}`", steps, at_least=1)
        self._is_function = not isinstance(data, tf.data.Dataset)
        self._iterator = None
        if self._is_function:
            if not callable(data):
                raise TypeError(
                    _checks.message(
                        f"`{name}` must be a tf.data.Dataset of batches, or a function of (context, epoch).",
                        {name: type(data).__name__},
                        "As in tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(16).",
                    )
                )
            return
        size = int(data.cardinality())
        if size == tf.data.INFINITE_CARDINALITY and self.steps is None:
            raise ValueError(_checks.message(f"`{name}` without end needs a number of steps.", {"steps": None}))
        if goes_on and self.steps is None and size >= 0:
            self.steps, self._data = size, data.repeat()
        self._data = _by_batches(self._data)
        if goes_on and self.steps is not None:
            self._iterator = iter(scope.experimental_distribute_dataset(self._data.skip(begin * self.steps)))

    def of(self, epoch):
        """An iterator for this epoch."""
        if self._iterator is not None:
            return self._iterator
        if self._is_function:
            return iter(self._scope.distribute_datasets_from_function(lambda context: self._data(context, epoch)))
        return iter(self._scope.experimental_distribute_dataset(self._data))

    def check(self, taken, done):
        """Raises where there were too few batches, or too small ones; warns of many that were left out."""
        if taken == 0 or self.steps not in (None, taken):
            received = {"steps": self.steps, "batches": taken}
            raise ValueError(_checks.message(f"`{self._name}` must last for all steps.", received, "Repeat the data."))
        received = {"batches": taken, "replicas": self._scope.num_replicas_in_sync, "trained on": done}
        text = _checks.message(
            f"A batch of `{self._name}` must have a sample for each replica.", received, self._REMEDY
        )
        if done == 0:
            raise ValueError(text)
        if taken - done > 1:  # more than the last one
            warnings.warn(text, stacklevel=2)


def _by_batches(data):
    """Each worker takes its part of every batch: whole files, which TensorFlow would share out, change the batches."""
    options = tf.data.Options()
    policy = data.options().experimental_distribute.auto_shard_policy
    if policy == tf.data.experimental.AutoShardPolicy.AUTO:
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


def _of_this_worker(callbacks, scope, aside):
    """The callbacks that run here; files of the other workers than the chief go into the folder `aside`."""
    here = []
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            received = {"callbacks": type(callback).__name__}
            raise ValueError(_checks.message("Give `checkpoints=folder` in its place.", received))
        if not is_chief(scope):
            if isinstance(callback, _WRITERS) or getattr(callback, "chief_only", False):
                continue
            if isinstance(callback, keras.callbacks.ModelCheckpoint):
                # A model is saved with its metrics, whose sums the workers make together: all must save.
                callback.filepath = os.path.join(aside, os.path.basename(callback.filepath))
            if isinstance(callback, AlignmentLog):
                callback.file = None
        here.append(callback)
    return here


class _Checkpoints:
    """Files `epoch-00012.keras`: model, optimizer and loss after 12 epochs."""

    def __init__(self, folder, scope):
        self._folder, self._scope = Path(folder), scope

    def restore(self, model):
        """Loads the latest file that is whole; how many epochs it holds."""
        epochs = 0
        with self._scope.scope():
            for number, path in self._saved():
                try:
                    model.load_weights(str(path))
                except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                    continue
                epochs = number
                break
        self._check_agreement(epochs)
        return epochs

    def save(self, model, epochs):
        """Writes a file on the chief, and deletes older ones."""
        # All workers save: a model is saved with its metrics, whose sums they make together.
        with tempfile.TemporaryDirectory() as aside:
            name = f"epoch-{epochs:05d}.keras"
            if not is_chief(self._scope):
                model.save(os.path.join(aside, name))
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            beside = self._folder / f"part-{name}"
            model.save(beside)
            os.replace(beside, self._folder / name)
        for _, old in self._saved()[_KEPT:]:
            old.unlink()

    def _saved(self):
        """`(epochs, path)`, the latest first."""
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        found = ((_CHECKPOINT.fullmatch(path.name), path) for path in paths)
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

    def _check_agreement(self, epochs):
        mean = functools.partial(_reduced, self._scope, tf.distribute.ReduceOp.MEAN)
        if mean(epochs**2) - mean(epochs) ** 2 > 0.0:
            received = {"checkpoints": str(self._folder), "epochs here": epochs}
            remedy = "It must lie where all workers read and write."
            raise ValueError(_checks.message("`checkpoints` must be the same on all workers.", received, remedy))
