"""The python_tests verifier: the share of tests that the answer's program passes.

The program is the last ```python block of the answer, else all of it. Tests are Python that uses
the program's names: each `assert` at the top level and each function `test_*` is one; where there
is neither, the whole is one.

Program and tests run in two processes (`server.sandbox.code`), each made for this one answer.

*Protects from*: network, files (reading and writing), starting processes and threads, signals to
others: a seccomp filter lets none of these calls through, whatever code makes them, native code
included. Endless loops and sleeps: all is killed at its deadline, and tests passed until then
count. Memory (`memory_bytes` a process). Secrets in the environment: there is none. Forged
verdicts: the program can neither reach the process that compares nor read the tests; printing,
patching `assert` or `__eq__` for plain data, and ending the process gain nothing.

*Does not protect from*: a flaw in the few system calls that remain (memory, time, random numbers,
reading and writing two pipes), or in CPython's unpickler, which reads what the program returns
(plain data, no classes); what can be learnt by timing the processor; using a core until the
deadline. An object of the program's own class answers for itself: a test that only asks it
`a == b` of two such objects, or `bool(a)`, believes it.

*Does not support*: modules beyond the preloaded part of the standard library, programs that read
standard input or are judged by what they print, coroutines, the tests' own objects as arguments
(functions and plain data can be), the program's own exception classes in `except`.

With `verifiers.sandbox: weak`, for systems without seccomp, there are only the resource limits,
the separate processes and the deadline: then a program can read files and use the network.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.errors import BadRequest, ScorerError
from server.reward.tools import Tools
from server.reward.verifiers.verifier import Answer, Verifier, fenced
from server.sandbox.pool import Late
from server.types import Prompt


class PythonTests(Verifier):
    kind: Literal["python_tests"] = "python_tests"
    tests: str = Field(min_length=1, max_length=1 << 18, description="Python that uses its names")

    async def ready(self, tools: Tools) -> None:
        _, total = await tools.code.run({"tests": self.tests})
        if total == 0:
            message = "tests must be valid Python with 1 to 10000 tests"
            raise BadRequest(message, param="reward.tests")

    def subject(self, text: str, pattern: str | None) -> Answer | None:
        block = fenced(text, "python", "py", "python3")
        return Answer(text if block is None else block, found=block is not None)

    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        try:
            passed, total = await tools.code.run({"tests": self.tests, "program": answer.text})
        except Late:
            return 0.0
        if total == 0:
            raise ScorerError("the tests could not be run")
        return float(passed / total)
