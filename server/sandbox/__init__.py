"""Processes that work on what nobody vouches for, and that can be killed.

`pool.py` is the server's side: a bounded number of processes of a kind, each started when it is
first needed, killed when it is late. Everything else here runs inside such a process and imports
the standard library only, so that it starts in a fraction of a second:

    math    equality of mathematical expressions (math-verify, sympy)
    text    regular expressions and JSON schemas
    code    Python programs against their tests

What holds them is the kernel, by means that need no privileges (`lockdown.py`): a seccomp filter
without sockets, processes, signals or files, and resource limits. Neither protects from a flaw in
the kernel's few calls that remain, nor from what a process can learn by timing the processor.
"""
