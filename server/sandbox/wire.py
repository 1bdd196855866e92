"""Two programs that use each other's functions, of which one is not to be believed.

Only plain data crosses, by value: numbers, text, containers, and a few types of the standard
library. Anything else stays where it is and is a `Remote` on the other side, which asks back for
whatever is done with it. A remote object never claims to be equal to plain data unless its own
class is built on a plain type, in which case that part of it is sent along and compared here.

The frames are pickles that may name no class but those of `TYPES`, so that nothing can be
constructed, or called, by what a frame says.
"""

from __future__ import annotations

import builtins
import io
import operator
import pickle
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import EllipsisType, ModuleType, NoneType
from typing import Any

from server.sandbox.child import read_exactly, write_all

BASES = (int, float, complex, str, bytes, bytearray, tuple, list, dict, frozenset, set)
TYPES: frozenset[type] = frozenset(
    {*BASES, bool, NoneType, EllipsisType, slice, range}
    | {Counter, OrderedDict, defaultdict, deque, Fraction, Decimal}
    | {date, datetime, time, timedelta, timezone}
)
CLASSES = frozenset(map(id, TYPES))  # they never die; asking a value about itself runs its code
NAMES = {(kind.__module__, kind.__qualname__): kind for kind in TYPES}
MUTABLE = (list, dict, set, bytearray)

BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def call(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return function(*args, **named)


# All that may be asked of the side that is not to be believed. It may ask for `call` only.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": call,
    "isinstance": isinstance,
    "getattr": getattr,
    "setattr": setattr,
    **{name: getattr(operator, name) for name in BINARY + COMPARISONS},
    **{n: getattr(operator, n) for n in ("getitem", "setitem", "delitem", "contains", "index")},
    **{n: getattr(operator, n) for n in ("neg", "pos", "invert", "and_", "or_", "xor")},
    **{f.__name__: f for f in (abs, bool, float, int, len, iter, next, reversed, repr, str, hash)},
}


class Gone(Exception):
    """The other side ended."""


class Peer:
    """One end of the connection. `operations`: what the other end may ask for."""

    def __init__(self, channel: int, operations: Mapping[str, Callable[..., Any]]):
        self._channel = channel
        self._operations = operations
        self._ours: list[Any] = []  # what the other side has a `Remote` of

    def ask(self, operation: str, *args: Any, **named: Any) -> Any:
        """The other side's answer. Raises what it raised, as far as that is a built-in."""
        self._send(("ask", operation, args, named))
        while True:
            kind, *body = self._receive()
            if kind == "ask":
                self._reply(*body)
            elif kind == "answer":
                value, changed = body
                return _carry_over(args[1:], changed, value)
            else:
                raise _error(*body)

    def serve(self) -> None:
        """Answer until the other side ends."""
        while True:
            kind, *body = self._receive()
            if kind == "ask":
                self._reply(*body)

    def _reply(self, operation: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            value = self._operations[operation](*args, **named)
            changed = [a for a in args[1:] if type(a) in MUTABLE] if operation == "call" else []
            frame = self._pickled(("answer", value, changed))
        except Gone:
            raise
        except BaseException as error:  # it is anybody's code: SystemExit is an answer too
            frame = self._pickled(("raised", type(error).__name__, _text(error)))
        self._write(frame)

    def _send(self, message: tuple[Any, ...]) -> None:
        self._write(self._pickled(message))

    def _write(self, body: bytes) -> None:
        try:
            write_all(self._channel, len(body).to_bytes(4, "big") + body)
        except OSError as error:
            raise Gone from error

    def _receive(self) -> Any:
        head = read_exactly(self._channel, 4)
        body = None if head is None else read_exactly(self._channel, int.from_bytes(head, "big"))
        if body is None:
            raise Gone
        return _Unpickler(io.BytesIO(body), self).load()

    def _pickled(self, message: tuple[Any, ...]) -> bytes:
        target = io.BytesIO()
        _Pickler(target, self).dump(message)
        return target.getvalue()

    def export(self, value: Any) -> tuple[str, int, Any]:
        """How the other side will know `value`."""
        if type(value) is Remote:
            return "yours", _number(value), None
        if isinstance(value, ModuleType):
            raise TypeError("a module cannot be passed")
        self._ours.append(value)
        base = next((base for base in BASES if isinstance(value, base)), None)
        return "ours", len(self._ours) - 1, None if base is None else base(value)

    def imported(self, name: Any) -> Any:
        side, number, image = name
        if side == "yours":
            return self._ours[number]
        return Remote(self, number, image)


class _Pickler(pickle.Pickler):
    def __init__(self, target: io.BytesIO, peer: Peer):
        super().__init__(target, protocol=5)
        self._peer = peer

    def persistent_id(self, value: Any) -> Any:
        plain = type(value) in TYPES or id(value) in CLASSES
        return None if plain else self._peer.export(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, peer: Peer):
        super().__init__(source)
        self._peer = peer

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} may not cross")
        return NAMES[module, name]

    def persistent_load(self, name: Any) -> Any:
        return self._peer.imported(name)


class Remote:
    """Something that the other side has."""

    __slots__ = ("_image", "_number", "_peer")

    def __init__(self, peer: Peer, number: int, image: Any):
        for name, value in (("_peer", peer), ("_number", number), ("_image", image)):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return _peer(self).ask("call", self, *args, **named)

    def __eq__(self, other: object) -> Any:
        return self._compared("eq", other, False)

    def __ne__(self, other: object) -> Any:
        return self._compared("ne", other, True)

    def __hash__(self) -> int:
        image = object.__getattribute__(self, "_image")
        return hash(image) if image is not None else int(_peer(self).ask("hash", self))

    def __instancecheck__(self, value: object) -> bool:
        return type(value) is Remote and bool(_peer(self).ask("isinstance", value, self))

    def __setattr__(self, name: str, value: Any) -> None:
        _peer(self).ask("setattr", self, name, value)

    def __getattr__(self, name: str) -> Any:
        return _peer(self).ask("getattr", self, name)

    def _compared(self, name: str, other: object, otherwise: bool | None = None) -> Any:
        image = object.__getattribute__(self, "_image")
        if type(other) is Remote:
            return _peer(self).ask(name, self, other)
        if image is not None:
            return getattr(operator, name)(image, other)
        return NotImplemented if otherwise is None else otherwise


def _peer(remote: Remote) -> Peer:
    peer: Peer = object.__getattribute__(remote, "_peer")
    return peer


def _number(remote: Remote) -> int:
    number: int = object.__getattribute__(remote, "_number")
    return number


def _forward(operation: str) -> Callable[..., Any]:
    def method(self: Remote, *args: Any) -> Any:
        return _peer(self).ask(operation, self, *args)

    return method


def _reverse(operation: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        return _peer(self).ask(operation, other, self)

    return method


def _ordered(operation: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        return self._compared(operation, other)

    return method


for _name in OPERATIONS.keys() - {"call", "eq", "ne", "hash", "getattr", "setattr", "isinstance"}:
    _special = f"__{_name.rstrip('_')}__"
    if _name in COMPARISONS:
        setattr(Remote, _special, _ordered(_name))
    else:
        setattr(Remote, _special, _forward(_name))
for _name in (*BINARY, "and_", "or_", "xor"):
    setattr(Remote, f"__r{_name.rstrip('_')}__", _reverse(_name))


def _carry_over(args: tuple[Any, ...], changed: list[Any], value: Any) -> Any:
    """Do to our arguments what the other side did to its copies of them."""
    for argument, copy in zip((a for a in args if type(a) in MUTABLE), changed, strict=False):
        if type(argument) is type(copy) and argument != copy:
            argument.clear()
            (argument.extend if isinstance(argument, (list, bytearray)) else argument.update)(copy)
        value = argument if value is copy else value
    return value


def _error(name: str, text: str) -> Exception:
    """The exception that the other side raised; `RuntimeError` if it is none of Python's."""
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # it is not made of one text
            pass
    return RuntimeError(f"{name}: {text}")


def _text(error: BaseException) -> str:
    return str(error.args[0])[:1000] if error.args and type(error.args[0]) is str else ""
