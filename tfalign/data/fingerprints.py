"""What tells that something is not what it was: files, how they are read, functions and models; as JSON can hold it."""

import functools
import hashlib
import json
import os
import zlib

import numpy as np


def digest(*parts):
    """A checksum of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def of_example(pairs, index):
    """Of an example: its name, its files and how they are read and drawn; arrays without files by their checksum."""
    if not hasattr(pairs, "read"):
        name, *arrays = pairs[index]
        return [str(name), *(None if array is None else _of_array(array) for array in arrays)]
    pair = pairs[index]
    sources = (None if source is None else _of_source(source) for source in (pair.input, pair.label))
    return [str(pair.name), getattr(pairs, "settings", ""), *sources]


def of_function(function):
    """Of a function: where it is defined, its code, and the plain values that are bound to it."""
    if isinstance(function, functools.partial):
        return [*of_function(function.func), repr(function.args), repr(sorted(function.keywords.items()))]
    function = getattr(function, "python_function", function)  # of a tf.function
    named = function if hasattr(function, "__qualname__") else type(function)
    found = [str(getattr(named, "__module__", "")), named.__qualname__]
    code = getattr(function, "__code__", None)
    if code is None:
        return found
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = [*code.co_consts, *(function.__defaults__ or ()), *cells]
    plain = [repr(value) for value in values if isinstance(value, (str, bytes, int, float, tuple))]
    return [*found, code.co_code.hex(), list(code.co_names), plain]


def of_model(model):
    """Of a model: its kind and a checksum of its weights; one without weights is a function."""
    checksum = hashlib.sha256()
    for weight in getattr(model, "weights", None) or getattr(model, "variables", None) or ():
        array = np.asarray(weight)
        checksum.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return [*of_function(model), checksum.hexdigest()]


def _of_array(array):
    """Shape, type and checksum."""
    return [list(array.shape), str(array.dtype), zlib.crc32(array.tobytes())]


def _of_source(source):
    """How a source is read, and the path, size and time of its file; behind ": " its path names something inside it."""
    path = str(source.path)
    while path and not os.path.exists(path):
        path = path.rpartition(": ")[0]
    state = os.stat(path) if path else None
    settings = getattr(source, "settings", "")
    return [str(source.path), settings, *((state.st_size, state.st_mtime_ns) if state else ())]
