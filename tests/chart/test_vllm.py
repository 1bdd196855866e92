"""vLLM takes the flags that the chart gives it: its own parser reads them."""

from __future__ import annotations

from argparse import Namespace

import pytest
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tests.chart.rendering import chart

# The shape, the server, and what stands where the kubelet puts a variable of the group's.
SERVERS = [
    ("default", "policy"),
    ("default", "prm"),
    ("two-gpus", "policy"),
    ("closed-loop", "policy"),
    ("multi-node", "policy"),
    ("multi-node", "policy-worker"),
    ("everything", "policy"),
]
GROUP = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "leader"}


def parsed(arguments: list[str]) -> Namespace:
    for name, value in GROUP.items():
        arguments = [a.replace(f"$({name})", value) for a in arguments]
    if arguments[0] == "serve":
        arguments = arguments[1:]
    parser = make_arg_parser(FlexibleArgumentParser())
    found: Namespace = parser.parse_args(arguments)
    return found


@pytest.mark.parametrize(("shape", "name"), SERVERS)
def test_vllm_knows_every_flag(shape: str, name: str) -> None:
    found = parsed(chart(shape).container(name)["args"])
    assert found.host == "0.0.0.0" and found.port == 8000
    assert found.shutdown_timeout == 60


def test_a_wrong_flag_would_be_told() -> None:
    with pytest.raises(SystemExit):
        parsed([*chart("default").container("policy")["args"], "--no-such-flag"])
