"""Programs that try to get out, to break something, or to pass without being right."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from server.sandbox.lockdown import Limits
from server.sandbox.pool import Pool, Worker
from tests.sandboxing import MEMORY, STRICT, WEAK, judged

HASTY = Limits(seconds=0.5, memory_bytes=MEMORY, strict=True)


@pytest.fixture(scope="module")
async def pool() -> AsyncIterator[Pool]:
    pool = Pool("code", 2, STRICT)
    yield pool
    await pool.close()


@pytest.fixture(scope="module")
async def hasty() -> AsyncIterator[Pool]:
    pool = Pool("code", 1, HASTY)
    yield pool
    await pool.close()


async def alive(pool: Pool) -> Worker:
    """The pool's one process, idle and with nothing left of what it started."""
    if not pool._workers:
        await judged(pool, "x = 1", "assert x")
    (worker,) = pool._workers
    process = worker._process.result()
    assert process.poll() is None and psutil.Process(process.pid).children() == []
    return worker


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(1e6)",
        "f = lambda: 'x' * 10**12",
        "f = lambda: [0] * 10**9",
        "f = lambda: int('9' * 10**7)",
        "x = []\nwhile True: x.append(bytearray(10**7))",
        "def f(): return f()",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(): return f()",
        "class E:\n def __reduce__(self): return eval, ('1',)\ndef f(): return E()",
        "def f():\n while True: print('x' * 10**6)",
        "def f():\n import os\n while True: os.write(1, b'x' * 10**6)",
    ],
)
async def test_what_takes_too_much_is_wrong_and_harms_nobody(hasty: Pool, program: str) -> None:
    before = await alive(hasty)
    assert await judged(hasty, program, "assert f() == 1") == (0, 1)
    assert await alive(hasty) is before


FORGERIES = {
    "exit": "import os; os._exit(0)",
    "exit in a test": "import os\ndef f(): os._exit(0)",
    "raise exit": "def f(): raise SystemExit(0)",
    "marks on every file": """
        import os
        def f():
            for fd in range(64):
                try: os.write(fd, b'\\0\\0\\0\\1+' * 100)
                except OSError: pass
        """,
    "marks on every file at once": """
        import os
        for fd in range(64):
            try: os.write(fd, b'\\0\\0\\0\\1+' * 100)
            except OSError: pass
        """,
    "the results printed": "def f(): print('{\"result\": [1, 1]}')",
    "equal to all": """
        class E:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 42
        def f(): return E()
        """,
    "a number equal to all": """
        class E(int):
            def __eq__(self, other): return True
        def f(): return E(7)
        """,
    "a list of what is equal to all": """
        class E:
            def __eq__(self, other): return True
        class L(list):
            def __eq__(self, other): return True
        def f(): return L([E()])
        """,
    "assertions patched": """
        import builtins
        class Never(BaseException): pass
        builtins.AssertionError = Never
        def f(): return 0
        """,
    "an assertion of its own": "def f(): raise AssertionError",
    "names of the harness": """
        def f(): return 0
        __name__ = 'tests'
        suite = test_ok = mark = _mark = lambda *a: True
        """,
    "frames of the caller": """
        import sys
        def f():
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()):
                    if hasattr(value, 'total'): value.total = 0
                    if hasattr(value, '_operations'): value._operations = {}
                frame = frame.f_back
            return 0
        """,
    "the tests' own text": """
        import gc, re
        def texts():
            for o in gc.get_objects():
                for r in gc.get_referents(o):
                    if isinstance(r, (str, bytes)): yield str(r)
        def f():
            for t in list(texts()):
                found = re.search('assert f\\\\(\\\\) == ([0-9]+) # secret', t)
                if found: return int(found[1])
        """,
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
async def test_a_verdict_cannot_be_forged(pool: Pool, program: str) -> None:
    await judged(pool, "x = 1", "assert f() == 42 # secret")  # it may be in someone's memory
    assert await judged(pool, program, "assert f() == 42 # secret") == (0, 1)
    assert await judged(pool, "def f(): return 42", "assert f() == 42") == (1, 1)


READ = "def f():\n    return open('/etc/passwd').read()"
LOOK = "def f():\n    import os\n    return os.listdir('/') or os.path.exists('/etc/passwd')"


@pytest.mark.parametrize("program", [READ, LOOK])
async def test_files_cannot_be_read(pool: Pool, program: str) -> None:
    assert await judged(pool, program, "assert f()") == (0, 1)
    weak = Pool("code", 1, WEAK)  # without the filter they can: the test tries for real
    assert await judged(weak, program, "assert f()") == (1, 1)
    await weak.close()


async def test_files_cannot_be_written(pool: Pool, tmp_path: Path) -> None:
    for name in ("open", "os.open"):
        program = f"""
            import os
            def f():
                try: open({str(tmp_path / "x")!r}, 'w').write('x')
                except OSError: pass
                fd = os.open({str(tmp_path / "y")!r}, os.O_CREAT | os.O_WRONLY)
                return os.write(fd, b'x')
            """
        assert await judged(pool, program, "assert f()") == (0, 1), name
    assert os.listdir(tmp_path) == []


async def test_the_network_cannot_be_used(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        program = f"""
            import socket
            def f(): return socket.create_connection({listener.getsockname()!r}).send(b'x')
            """
        assert await judged(pool, program, "assert f()") == (0, 1)
        with pytest.raises(BlockingIOError):
            listener.accept()
        weak = Pool("code", 1, WEAK)
        assert await judged(weak, program, "assert f()") == (1, 1)
        await weak.close()
        listener.accept()[0].close()


async def test_native_code_gets_no_further(pool: Pool) -> None:
    """What Python refuses is not what holds it: the calls themselves fail, with EPERM."""
    program = """
        import sys
        ctypes = sys.modules['ctypes']
        libc = ctypes.CDLL(None, use_errno=True)
        def f(name, *args):
            result = getattr(libc, name)(*args)
            return result, ctypes.get_errno()
        """
    tests = """
        assert f('open', b'/etc/passwd', 0) == (-1, 1)
        assert f('socket', 2, 1, 0) == (-1, 1)
        assert f('fork') == (-1, 1)
        assert f('kill', 1, 0) == (-1, 1)
        assert f('execv', b'/bin/true', None) == (-1, 1)
        assert f('ptrace', 16, 1, 0, 0) == (-1, 1)
        assert f('setrlimit', 9, None) == (-1, 1)
        assert f('prctl', 22, 0, 0, 0, 0) == (-1, 1)
        assert f('unshare', 0x10000000) == (-1, 1)
        assert f('getppid')[0] == -1
        assert f('mount', None, None, None, 0, None) == (-1, 1)
        """
    assert await judged(pool, program, tests) == (11, 11)


async def test_no_process_can_be_started_and_none_ended() -> None:
    pool = Pool("code", 1, STRICT)
    before = await alive(pool)
    program = """
        import os, signal
        def tried(what, *args):
            try: return what(*args)
            except OSError: return None
        for _ in range(1000): tried(os.fork)
        for pid in range(1, 50_000): tried(os.kill, pid, signal.SIGKILL)
        tried(os.killpg, 0, signal.SIGKILL)
        started = tried(os.fork) is not None
        """
    assert await judged(pool, program, "assert not started\nassert started") == (1, 2)
    assert await alive(pool) is before
    await pool.close()
