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
ENDED = 3  # exit status of a tests process that found no job


def serve(source: int, sink: int, limits: Limits) -> None:
    if limits.strict and not available():
        write_frame(sink, {"error": "this system has no system call filter (seccomp) to hold it"})
        return
    write_frame(sink, {"ready": True})
    ended = False
    while not ended and select.select([source], [], []):
        passed, total, ended = judged(source, limits)
        if not ended:
            write_frame(sink, {"result": [passed, total]})


def judged(source: int, limits: Limits) -> tuple[int, int, bool]:
    """Tests passed, tests in all, and whether there was no job."""
    ours, theirs = socket.socketpair()
    results, report = os.pipe()
    answer = _forked(lambda: run_answer(theirs.fileno(), limits), [theirs.fileno()])
    keep = [ours.fileno(), report, source]
    tests = _forked(lambda: run_tests(source, ours.fileno(), report, limits), keep)
    ours.close()
    theirs.close()
    os.close(report)
    try:
        passed, total = _collected(results, limits.seconds)
    finally:
        os.close(results)
        os.kill(answer, signal.SIGKILL)
        os.kill(tests, signal.SIGKILL)
        os.waitpid(answer, 0)
        status = os.waitpid(tests, 0)[1]
    return passed, total, os.WIFEXITED(status) and os.WEXITSTATUS(status) == ENDED


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


def _collected(results: int, seconds: float) -> tuple[int, int]:
    """Count the marks of the tests process, until it is done, ends, or is late."""
    marks, deadline = b"", time.monotonic() + seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([results], [], [], left)[0]:
            break
        chunk = os.read(results, 4096)
        marks += chunk
        if not chunk or len(marks) > 4 + MAX_TESTS:
            break
        if len(marks) >= 4 and len(marks) - 4 >= int.from_bytes(marks[:4], "big"):
            break
    total = int.from_bytes(marks[:4], "big")
    return marks[4 : 4 + total].count(b"+"), total


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
    if job is None:
        os._exit(ENDED)
    os.close(source)
    _hold(limits)
    suite = Suite(job["tests"])
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
            passed = self._passes(lambda s=statement: _execute(s, space))  # type: ignore[misc]
            if isinstance(statement, ast.Assert):
                mark(passed)
            elif not passed:
                return
        if self.whole:
            mark(True)
        for name in self.functions:
            mark(self._passes(lambda name=name: space[name]()))  # type: ignore[misc]

    @staticmethod
    def _passes(test: Callable[[], Any]) -> bool:
        try:
            test()
        except Exception:  # an assertion, or whatever else goes wrong in a test
            return False
        return True


def _execute(statement: ast.stmt, space: dict[str, Any]) -> None:
    exec(compile(ast.Module([statement], []), "<tests>", "exec"), space)
