"""SavedModels in the C++ runtime that TF Serving uses, through its C API: no Python of TensorFlow's runs.

As a program, `python c_api.py MODEL OUT.npz` loads a SavedModel in a process that has not imported TensorFlow, replays
its warm-up requests, and writes the results, named `<record>/<output>`.
"""

import ctypes
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np

PACKAGE = Path(importlib.util.find_spec("tensorflow").submodule_search_locations[0])
LIBRARY = PACKAGE / "libtensorflow_cc.so.2"
INVALID_ARGUMENT = 3
_STRING = 7
_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 9: np.int64, 10: np.bool_}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_TSTRING_BYTES = 24
_POINTER, _INT, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p


class Output(ctypes.Structure):
    """TF_Output."""

    _fields_ = [("operation", _POINTER), ("index", _INT)]


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [("data", _POINTER), ("length", _SIZE), ("deallocator", _POINTER)]


_SIGNATURES = {
    "TF_NewStatus": (_POINTER, []),
    "TF_DeleteStatus": (None, [_POINTER]),
    "TF_GetCode": (_INT, [_POINTER]),
    "TF_Message": (_TEXT, [_POINTER]),
    "TF_NewGraph": (_POINTER, []),
    "TF_DeleteGraph": (None, [_POINTER]),
    "TF_NewSessionOptions": (_POINTER, []),
    "TF_DeleteSessionOptions": (None, [_POINTER]),
    "TF_NewBuffer": (ctypes.POINTER(Buffer), []),
    "TF_DeleteBuffer": (None, [_POINTER]),
    "TF_LoadSessionFromSavedModel": (
        _POINTER,
        [_POINTER, _POINTER, _TEXT, ctypes.POINTER(_TEXT), _INT, _POINTER, _POINTER, _POINTER],
    ),
    "TF_CloseSession": (None, [_POINTER, _POINTER]),
    "TF_DeleteSession": (None, [_POINTER, _POINTER]),
    "TF_GraphOperationByName": (_POINTER, [_POINTER, _TEXT]),
    "TF_SessionRun": (
        None,
        [_POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER],
    ),
    "TF_AllocateTensor": (_POINTER, [_INT, _POINTER, _INT, _SIZE]),
    "TF_DeleteTensor": (None, [_POINTER]),
    "TF_TensorData": (_POINTER, [_POINTER]),
    "TF_TensorByteSize": (_SIZE, [_POINTER]),
    "TF_TensorType": (_INT, [_POINTER]),
    "TF_NumDims": (_INT, [_POINTER]),
    "TF_Dim": (ctypes.c_int64, [_POINTER, _INT]),
    "TF_StringInit": (None, [_POINTER]),
    "TF_StringCopy": (None, [_POINTER, _TEXT, _SIZE]),
    "TF_StringDealloc": (None, [_POINTER]),
}


class Failed(Exception):  # noqa: N818
    """What the runtime answered: a code and a message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def _library():
    library = ctypes.CDLL(str(LIBRARY))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Session:
    """A SavedModel, loaded. `run` may be called from several threads."""

    def __init__(self, folder):
        from tensorflow.core.protobuf import meta_graph_pb2

        self._tf = _library()
        self._graph = self._tf.TF_NewGraph()
        options, description = self._tf.TF_NewSessionOptions(), self._tf.TF_NewBuffer()
        self._session = self._checked(
            self._tf.TF_LoadSessionFromSavedModel,
            options,
            None,
            str(folder).encode(),
            (_TEXT * 1)(b"serve"),
            1,
            self._graph,
            ctypes.cast(description, _POINTER),
        )
        content = ctypes.string_at(description.contents.data, description.contents.length)
        self._tf.TF_DeleteBuffer(ctypes.cast(description, _POINTER))
        self._tf.TF_DeleteSessionOptions(options)
        found = meta_graph_pb2.MetaGraphDef.FromString(content).signature_def
        self.signatures = {name: one for name, one in found.items() if not name.startswith("__")}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checked(self._tf.TF_CloseSession, self._session)
        self._checked(self._tf.TF_DeleteSession, self._session)
        self._tf.TF_DeleteGraph(self._graph)

    def run(self, signature, **feeds):
        """Outputs by name; raises `Failed` with what the runtime says."""
        definition = self.signatures[signature]
        assert feeds.keys() == definition.inputs.keys()
        names = sorted(definition.outputs)
        inputs = (Output * len(feeds))(*(self._place(definition.inputs[key].name) for key in feeds))
        outputs = (Output * len(names))(*(self._place(definition.outputs[key].name) for key in names))
        given = [self._tensor(value) for value in feeds.values()]
        values = (_POINTER * len(feeds))(*(tensor for tensor, _ in given))
        results = (_POINTER * len(names))()
        try:
            self._checked(
                self._tf.TF_SessionRun,
                self._session,
                None,
                inputs,
                values,
                len(feeds),
                outputs,
                results,
                len(names),
                None,
                0,
                None,
            )
            return {name: self._array(result) for name, result in zip(names, results)}
        finally:
            for tensor, strings in given:
                for string in strings:
                    self._tf.TF_StringDealloc(string)
                self._tf.TF_DeleteTensor(tensor)
            for result in results:
                if result:
                    self._tf.TF_DeleteTensor(result)

    def _checked(self, function, *arguments):
        status = self._tf.TF_NewStatus()
        try:
            result = function(*arguments, status)
            if self._tf.TF_GetCode(status):
                raise Failed(self._tf.TF_GetCode(status), self._tf.TF_Message(status).decode(errors="replace"))
            return result
        finally:
            self._tf.TF_DeleteStatus(status)

    def _place(self, name):
        operation, index = name.split(":")
        return Output(self._tf.TF_GraphOperationByName(self._graph, operation.encode()), int(index))

    def _tensor(self, value):
        """A tensor of an array or of a list of bytes, and its strings, which must be freed by themselves."""
        value = np.asarray(value, object if isinstance(value, list) else None)
        is_string = value.dtype == object
        code = _STRING if is_string else _CODES[value.dtype]
        size = _TSTRING_BYTES * value.size if is_string else value.nbytes
        shape = (ctypes.c_int64 * value.ndim)(*value.shape)
        tensor = self._tf.TF_AllocateTensor(code, shape, value.ndim, size)
        data = self._tf.TF_TensorData(tensor)
        if not is_string:
            ctypes.memmove(data, value.tobytes(), size)
            return tensor, []
        strings = [data + _TSTRING_BYTES * number for number in range(value.size)]
        for string, content in zip(strings, value.ravel()):
            self._tf.TF_StringInit(string)
            self._tf.TF_StringCopy(string, content, len(content))
        return tensor, strings

    def _array(self, tensor):
        dtype = _DTYPES[self._tf.TF_TensorType(tensor)]
        shape = [self._tf.TF_Dim(tensor, axis) for axis in range(self._tf.TF_NumDims(tensor))]
        content = ctypes.string_at(self._tf.TF_TensorData(tensor), self._tf.TF_TensorByteSize(tensor))
        return np.frombuffer(content, dtype).reshape(shape)


def tf_records(path):
    """The records of a TFRecord file; lengths and checksums are not checked."""
    content, records = Path(path).read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        records.append(content[12 : 12 + length])
        content = content[16 + length :]
    return records


def array_of(proto):
    """The value of a TensorProto that `tf.make_tensor_proto` made."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype == _STRING:
        return np.array(list(proto.string_val), object).reshape(shape)
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, _DTYPES[proto.dtype]).reshape(shape)
    return np.broadcast_to(np.array(proto.float_val, _DTYPES[proto.dtype]), shape)


def replay(session, folder):
    """Runs the warm-up requests: pairs of a PredictRequest and its outputs."""
    from tensorflow_serving.apis import prediction_log_pb2

    results = []
    for record in tf_records(Path(folder) / "assets.extra/tf_serving_warmup_requests"):
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        feeds = {name: array_of(proto) for name, proto in request.inputs.items()}
        results.append((request, session.run(request.model_spec.signature_name, **feeds)))
    return results


def main(folder, out):
    """See the top of the file."""
    # The protos alone, without the package that they lie in.
    package = types.ModuleType("tensorflow")
    package.__path__ = [str(PACKAGE)]
    sys.modules["tensorflow"] = package
    with Session(folder) as session:
        results = replay(session, folder)
    assert "tensorflow.python" not in sys.modules
    arrays = {f"{number}/{name}": value for number, (_, values) in enumerate(results) for name, value in values.items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
