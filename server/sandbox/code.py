"""A Python program against its tests, in two processes that live for one job.

The *answer* process runs the program; the *tests* process runs the tests, in which the program's
names are `Remote`s (`wire.py`). So what the program prints, patches, or ends says nothing about
the verdict: it can only return values, and those are compared where it cannot reach. Nor can it
read the tests, which never were in a process that it descends from.

This process forks both, reads nothing of the job itself, collects the results, and kills both.
"""

from __future__ import annotations

import _strptime  # noqa: F401  (the modules that a program may import: none can be opened later)
import array  # noqa: F401
import ast
import base64  # noqa: F401
import bisect  # noqa: F401
import calendar  # noqa: F401
import cmath  # noqa: F401
import contextlib  # noqa: F401
import copy  # noqa: F401
import csv  # noqa: F401
import dataclasses  # noqa: F401
import datetime  # noqa: F401
import decimal  # noqa: F401
import enum  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import hashlib  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import math
import numbers  # noqa: F401
import operator  # noqa: F401
import os
import queue  # noqa: F401
import random  # noqa: F401
import re  # noqa: F401
import select
import signal
import socket
import statistics  # noqa: F401
import string  # noqa: F401
import struct  # noqa: F401
import textwrap  # noqa: F401
import time
import typing  # noqa: F401
import unicodedata  # noqa: F401
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from server.sandbox.child import read_frame, write_all, write_frame
from server.sandbox.lockdown import Limits, available, die_with_parent, limit, lock
from server.sandbox.wire import OPERATIONS, Peer, call

MAX_TESTS = 10_000
READING = 60.0  # seconds to read a job and parse its tests, on a busy machine


def serve(source: int, sink: int, limits: Limits) -> None:
    if limits.strict and not available():
        write_frame(sink, {"error": "this system has no system call filter (seccomp) to hold it"})
        return
    write_frame(sink, {"ready": True})
    while select.select([source], [], []):
        result = judged(source, limits)
        if result is None:
            return
        write_frame(sink, {"result": result})


def judged(source: int, limits: Limits) -> tuple[int, int] | None:
    """Tests passed, and tests in all; None if there was no job."""
    ours, theirs = socket.socketpair()
    results, report = os.pipe()
    answer = _forked(lambda: run_answer(theirs.fileno(), limits), [theirs.fileno()])
    keep = [ours.fileno(), report, source]
    tests = _forked(lambda: run_tests(source, ours.fileno(), report, limits), keep)
    ours.close()
    theirs.close()
    os.close(report)
    try:
        return _collected(results, limits.seconds)
    finally:
        os.close(results)
        os.kill(answer, signal.SIGKILL)
        os.kill(tests, signal.SIGKILL)
        os.waitpid(answer, 0)
        os.waitpid(tests, 0)


def _forked(main: Callable[[], None], keep: Sequence[int]) -> int:
    """The id of a new process that does `main` and has no files open but those of `keep`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        last = 2
        for number in sorted(keep):
            os.closerange(last + 1, number)
            last = number
        os.closerange(last + 1, 4096)
        main()
    finally:
        os._exit(1)


def _collected(results: int, seconds: float) -> tuple[int, int] | None:
    """Tests passed and in all, once the tests process is done, ends, or is late. None if it has
    not even read the job, which may still be in the pipe."""
    head = _read_until(results, 4, time.monotonic() + READING)
    if len(head) < 4:
        return None
    total = int.from_bytes(head, "big")
    return _read_until(results, total, time.monotonic() + seconds).count(b"+"), total


def _read_until(source: int, size: int, deadline: float) -> bytes:
    """So many bytes, or as many as came before the end or the deadline."""
    data = b""
    while len(data) < size:
        left = max(0.0, deadline - time.monotonic())
        chunk = (
            os.read(source, size - len(data)) if select.select([source], [], [], left)[0] else b""
        )
        if not chunk:
            break
        data += chunk
    return data


def _hold(limits: Limits) -> None:
    die_with_parent()
    limit(limits, cpu_seconds=math.ceil(limits.seconds) + 1)
    if limits.strict:
        lock()


def run_answer(channel: int, limits: Limits) -> None:
    """The answer process: run the program that it is sent, then do what the tests ask for."""
    _hold(limits)
    peer = Peer(channel, {**OPERATIONS, "load": load})
    peer.serve()


def load(program: str) -> dict[str, Any]:
    """Run a program: what it has defined by name."""
    space: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    exec(compile(program, "<answer>", "exec"), space)
    return {
        name: value
        for name, value in space.items()
        if not name.startswith("__") and not isinstance(value, ModuleType)
    }


def run_tests(source: int, channel: int, report: int, limits: Limits) -> None:
    """The tests process: read the job, hand the program over, report on each test."""
    job = read_frame(source)
    os.close(source)
    if job is None:
        return
    _hold(limits)
    suite = parsed(job["tests"])
    write_all(report, suite.total.to_bytes(4, "big"))
    if "program" not in job:
        return
    peer = Peer(channel, {"call": call})
    try:
        space = peer.ask("load", job["program"])
    except Exception:  # whatever its code raised: it passes no test
        return
    if type(space) is dict and all(type(name) is str for name in space):
        suite.run({**space, "__name__": "tests"}, lambda passed: _mark(report, passed))


def parsed(tests: str) -> Suite:
    try:
        return Suite(tests)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return Suite("")  # which has no test: `ready` has said so before


def _mark(report: int, passed: bool) -> None:
    write_all(report, b"+" if passed else b"-")


class Suite:
    """Tests as the caller wrote them: each `assert` at the top level and each function `test_*`
    is one; where there is neither, the whole is one."""

    def __init__(self, source: str):
        """Raises `SyntaxError`, `ValueError`."""
        self.statements = ast.parse(source, "<tests>").body
        named = (s.name for s in self.statements if isinstance(s, ast.FunctionDef))
        self.functions = list(dict.fromkeys(name for name in named if name.startswith("test_")))
        asserts = sum(isinstance(s, ast.Assert) for s in self.statements)
        self.whole = not asserts and not self.functions and bool(self.statements)
        self.total = asserts + len(self.functions) + self.whole
        if self.total > MAX_TESTS:
            raise ValueError(f"more than {MAX_TESTS} tests")

    def run(self, space: dict[str, Any], mark: Callable[[bool], None]) -> None:
        """Run them over the program's names; the first failure of anything else ends it."""
        for statement in self.statements:
            passed = self._passes(_execute, statement, space)
            if isinstance(statement, ast.Assert):
                mark(passed)
            elif not passed:
                return
        if self.whole:
            mark(True)
        for name in self.functions:
            mark(self._passes(_call, name, space))

    @staticmethod
    def _passes(test: Callable[..., None], *args: Any) -> bool:
        try:
            test(*args)
        except Exception:  # an assertion, or whatever else goes wrong in a test
            return False
        return True


def _call(name: str, space: dict[str, Any]) -> None:
    space[name]()


def _execute(statement: ast.stmt, space: dict[str, Any]) -> None:
    exec(compile(ast.Module([statement], []), "<tests>", "exec"), space)
