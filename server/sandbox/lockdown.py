"""What a process gives up before it touches what it was sent. Linux; needs no privileges.

A seccomp filter (kernel documentation, userspace-api/seccomp_filter) lets through memory, time,
and reading and writing what is already open. All else fails with EPERM: files, sockets, processes,
threads, signals to others, changing limits. `files=True` adds opening files to read them.
The numbers are the kernel's; a processor that is not in the table has no filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

COMPUTE = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
        "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
        "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60,
        "gettimeofday": 96, "getrusage": 98, "times": 100, "sigaltstack": 131, "gettid": 186,
        "time": 201, "futex": 202, "restart_syscall": 219, "clock_gettime": 228,
        "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "lseek": 62, "mmap": 222, "mprotect": 226,
        "munmap": 215, "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135,
        "rt_sigreturn": 139, "sched_yield": 124, "mremap": 216, "madvise": 233, "nanosleep": 101,
        "getpid": 172, "exit": 93, "gettimeofday": 169, "getrusage": 165, "times": 153,
        "sigaltstack": 132, "gettid": 178, "futex": 98, "restart_syscall": 128,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "exit_group": 94,
        "getrandom": 278,
    },
}  # fmt: skip
READ_FILES = {
    "x86_64": {
        "stat": 4, "fstat": 5, "lstat": 6, "ioctl": 16, "pread64": 17, "access": 21,
        "setitimer": 38, "uname": 63, "fcntl": 72, "getcwd": 79, "readlink": 89, "getuid": 102,
        "getgid": 104, "geteuid": 107,
        "getegid": 108, "sched_getaffinity": 204, "getdents64": 217, "newfstatat": 262,
        "readlinkat": 267, "faccessat": 269, "statx": 332, "faccessat2": 439,
    },
    "aarch64": {
        "getcwd": 17, "fcntl": 25, "ioctl": 29, "faccessat": 48, "getdents64": 61, "pread64": 67,
        "setitimer": 103,
        "readlinkat": 78, "newfstatat": 79, "fstat": 80, "sched_getaffinity": 123, "uname": 160,
        "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "statx": 291,
        "faccessat2": 439,
    },
}  # fmt: skip
OPENAT = {"x86_64": 257, "aarch64": 56}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # of the packet filter's instructions
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # 1: EPERM
NUMBER, ARCHITECTURE, THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class NoLockdown(OSError):
    """This system cannot hold a process as we need it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may take. `strict`: refuse to work where it cannot be held."""

    seconds: float  # of one job
    memory_bytes: int  # of address space, per process
    strict: bool


def limit(limits: Limits, *, cpu_seconds: int | None) -> None:
    """Resource limits: they cannot be raised again once the filter is in place."""
    wanted = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    if cpu_seconds is not None:
        wanted[resource.RLIMIT_CPU] = cpu_seconds
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def die_with_parent() -> None:
    if sys.platform == "linux":
        _prctl()(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def lock(*, files: bool = False) -> None:
    """Install the filter, for good. Raises `NoLockdown` where there is none to be had."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in COMPUTE:
        raise NoLockdown(f"no system call filter for {sys.platform} on {machine}")
    code = program(machine, files=files)
    whole = _Program(len(code) // 8, code)
    refused = _install(ctypes.addressof(whole))
    if refused:
        raise NoLockdown(f"the kernel takes no system call filter: {os.strerror(refused)}")


def available() -> bool:
    """Whether `lock` can succeed; by the kernel's own word, nothing is installed."""
    if sys.platform != "linux" or platform.machine() not in COMPUTE:
        return False
    return _install(0) == errno.EFAULT  # it got as far as reading the program, which is nowhere


def program(machine: str, *, files: bool) -> bytes:
    """The filter as the kernel takes it: 8 bytes an instruction."""
    allowed = set(COMPUTE[machine].values()) | set(READ_FILES[machine].values() if files else ())
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, AUDIT_ARCH[machine]), (RETURN, 0, 0, KILL)]
    code += [(LOAD, 0, 0, NUMBER)]
    for number in sorted(allowed):
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    if files:
        code += [(EQUAL, 0, 4, OPENAT[machine]), (LOAD, 0, 0, THIRD_ARGUMENT)]
        code += [(ANY_BIT, 1, 0, WRITING), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code += [(RETURN, 0, 0, REFUSE)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _prctl() -> Callable[..., int]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    return prctl


def _install(address: int) -> int:
    """The error number with which the kernel refuses the program at `address`; 0: it does not."""
    prctl = _prctl()
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    failed = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0)
    return ctypes.get_errno() if failed else 0
