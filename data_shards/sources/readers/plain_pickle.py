"""Numbers, texts, containers and NumPy arrays out of a pickle file, without Python's unpickler.

Some data sets exist as pickles only. A pickle is a program, and Python's unpickler runs it: whatever function the file
names is imported and called. Here nothing is imported and nothing is called. The opcodes are only listed
(``pickletools.genops`` parses, it does not execute), and a small machine below puts plain values together. A name in
the file stays a name: those few that NumPy writes for its arrays have a meaning here, any other is refused.

The whole file is held in memory. Object arrays become lists.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MARK = object()
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# What a name in the file may be, and what stands for it here.
NAMES: dict[tuple[str, str], str] = {
    **{(module, "_reconstruct"): "array" for module in _NUMPY},
    **{(module, "scalar"): "scalar" for module in _NUMPY},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
    ("numpy", "ndarray"): "type",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
    ("collections", "OrderedDict"): "mapping",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class NotPlainError(ValueError):
    """The pickle holds something else than plain data."""


@dataclass(frozen=True)
class _Name:
    """A name that the file may use; never looked up."""

    meaning: str


@dataclass
class _Dtype:
    text: str
    order: str = "|"

    def numpy(self) -> np.dtype[Any]:
        dtype = np.dtype(self.text)
        if dtype.kind not in "biufSUO" or dtype.names is not None:
            raise NotPlainError(f"an array of type {self.text!r} is not plain data")
        return dtype if self.order in "|=" else dtype.newbyteorder(self.order)  # type: ignore[arg-type]


@dataclass
class _Array:
    """An array whose contents come later in the file."""

    value: np.ndarray | list[Any] | None = None


def read_plain_pickle(path: Path) -> Any:
    """The value that a pickle file holds.

    Raises:
        ValueError: the file is no pickle, is damaged, or holds anything but plain data; says what.
    """
    with path.open("rb") as stream:
        return _read(stream, str(path))


def read_plain_npy(path: Path, mmap: bool = False) -> Any:
    """A ``.npy`` file: an array of numbers (``mmap``: left on disk), or an object array as a list."""
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(stream)
        except ValueError as error:
            raise ValueError(f"{path} is not a NumPy file: {error}") from error
        if dtype.hasobject:
            return _read(stream, str(path))
    return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)


class _Bounded:
    """A file that is never asked for more than it holds: lengths in a damaged pickle can be anything."""

    def __init__(self, stream: BinaryIO) -> None:
        self.tell, self.readline, self._stream = stream.tell, stream.readline, stream
        self._end = os.fstat(stream.fileno()).st_size

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        return self._stream.read(max(0, min(size, self._end - self.tell())))


def _read(stream: BinaryIO, name: str) -> Any:
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(stream)):  # type: ignore[arg-type]
            machine.step(opcode.name, argument)
        return _settled(machine.result, {})
    except NotPlainError as error:
        raise NotPlainError(f"{name}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} is damaged or no pickle: {error}") from error


class _Machine:
    """The stack and the memo of a pickle, for the opcodes of plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "GLOBAL":
            self.stack.append(_named(*argument.split(" ", 1)))
        elif name == "STOP":
            self.result = self.stack.pop()
        elif name not in ("PROTO", "FRAME"):
            self._structure(name)

    def _structure(self, name: str) -> None:
        action: Callable[[], None] | None = getattr(self, f"_{name.lower()}", None)
        if action is None:
            raise NotPlainError(f"opcode {name} builds something else than plain data")
        action()

    def _items(self) -> list[Any]:
        """What was pushed since the last mark."""
        behind = next((i for i, item in enumerate(reversed(self.stack)) if item is MARK), None)
        if behind is None:
            raise ValueError("a container ends that never began")
        place = len(self.stack) - 1 - behind
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _mark(self) -> None:
        self.stack.append(MARK)

    def _pop(self) -> None:
        self.stack.pop()

    def _pop_mark(self) -> None:
        self._items()

    def _empty_list(self) -> None:
        self.stack.append([])

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _empty_tuple(self) -> None:
        self.stack.append(())

    def _list(self) -> None:
        self.stack.append(self._items())

    def _tuple(self) -> None:
        self.stack.append(tuple(self._items()))

    def _dict(self) -> None:
        items = self._items()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _tuple1(self) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self) -> None:
        item = self.stack.pop()
        _expect(self.stack[-1], list).append(item)

    def _appends(self) -> None:
        items = self._items()
        _expect(self.stack[-1], list).extend(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _expect(self.stack[-1], dict)[key] = value

    def _setitems(self) -> None:
        items = self._items()
        _expect(self.stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_named(module, name))

    def _reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(_expect(name, _Name).meaning, _expect(arguments, tuple)))

    def _build(self) -> None:
        state, thing = self.stack.pop(), self.stack[-1]
        if isinstance(thing, _Dtype):
            thing.order = str(state[1])
        elif isinstance(thing, _Array):
            _, shape, dtype, fortran, data = state
            thing.value = _array(data, _expect(dtype, _Dtype), shape, "F" if fortran else "C")
        else:
            raise NotPlainError(f"a {type(thing).__name__} is given a state of its own")


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise NotPlainError(f"a {type(value).__name__} where a {kind.__name__.strip('_').lower()} belongs")
    return value


def _named(module: str, name: str) -> _Name:
    if (module, name) not in NAMES:
        raise NotPlainError(f"it wants to use {module}.{name}, and only plain data are read; nothing of it was run")
    return _Name(NAMES[module, name])


def _made(meaning: str, arguments: tuple[Any, ...]) -> Any:
    """What NumPy's own functions would make of these arguments."""
    if meaning == "array":
        return _Array()
    if meaning == "dtype":
        return _Dtype(str(arguments[0]))
    if meaning == "encode":
        return str(arguments[0]).encode("latin-1")
    if meaning == "bytes":
        return b""
    if meaning == "mapping":
        return dict(arguments[0]) if arguments else {}
    if meaning == "scalar":
        return np.frombuffer(_bytes(arguments[1]), _expect(arguments[0], _Dtype).numpy())[0].item()
    if meaning == "frombuffer":
        data, dtype, shape, order = arguments
        return _array(data, _expect(dtype, _Dtype), shape, order)
    raise NotPlainError(f"{meaning} is called")


def _bytes(data: Any) -> bytes:
    """Bytes; pickles of old Pythons hold them as text."""
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray | list[Any]:
    """The array, whose size must be that of its bytes; an object array as a (flat) list."""
    kind = dtype.numpy()
    if kind.hasobject:
        return _expect(data, list)  # type: ignore[no-any-return]
    flat = np.frombuffer(_bytes(data), kind) if len(data) else np.empty(0, kind)
    if any(extent < 0 for extent in shape) or int(np.prod(shape, dtype=object)) != len(flat):
        raise ValueError(f"an array of shape {shape} has {len(flat)} values")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _settled(value: Any, seen: dict[int, Any]) -> Any:
    """The value with every array in its place; a container inside itself is refused."""
    if isinstance(value, _Array):
        return _settled(value.value, seen)
    if not isinstance(value, list | tuple | dict):
        if isinstance(value, _Name | _Dtype) or value is MARK:
            raise NotPlainError("a name stands where data belong")
        return value
    if id(value) in seen:
        if seen[id(value)] is None:
            raise NotPlainError("a container holds itself")
        return seen[id(value)]
    seen[id(value)] = None
    if isinstance(value, dict):
        settled: Any = {_settled(key, seen): _settled(item, seen) for key, item in value.items()}
    else:
        settled = type(value)(_settled(item, seen) for item in value)
    seen[id(value)] = settled
    return settled
