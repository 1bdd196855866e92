"""The closed loop on the real pair: killed while it trains, it goes on, and a new policy serves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from server.published import KINDS, manifest_of, promoted, verify
from server.traces import compact
from trainer import weights
from trainer.config import Head, TrainConfig
from trainer.loop.children import writes_below

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]
LOOP = ROOT / "configs" / "train" / "loop.yaml"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PONDER_")}
SECONDS = 300.0  # on a busy machine
POLICY = [
    {
        "objective": {"kind": "expert_iteration"},
        "demonstrations": 20,
        "train": {"steps": 3, "batch": 16, "micro_batch": 16, "off_policy": None},
    }
]
SEARCH = {"kind": "mcts", "simulations": 8}

SMALL: dict[str, Any] = {
    "rounds": 1,
    "per_round": 12,
    "tasks": {"kind": "game24", "held_out": 6, "gate": 6, "demonstrations": 40},
    "searches": [{"ask": {"strategy": one}} for one in (SEARCH, {"kind": "vote", "n": 4})],
    "policy": POLICY,
    "prm.searches": [{"ask": {"strategy": {"kind": "vote", "n": 4}}}],
    "gate": {"measure": {"samples": 2, "search": SEARCH, "greedy": False}, "tolerance": 1.0},
    "evaluate": {"samples": 4, "search": SEARCH},
}


def settings(folder: Path) -> dict[str, Any]:
    """With a PRM that knows nothing, of the policy's own trunk and a head from a seed."""
    prm, small = folder / "prm", {"kv_cache_bytes": 1 << 26, "max_num_seqs": 64}
    if not prm.exists():
        policy = str(ROOT / "models" / "policy")
        head = Head(kind="token")
        config = TrainConfig(model=policy, rows=(folder,), output=folder, head=head)
        torch.manual_seed(0)
        model = weights.load_reward(policy, config)
        weights.save(prm, model, model.state_dict(), config, "scores")
    return SMALL | {
        "out": str(folder / "loop"),
        "serve.set": {"policy": small, "prm": {"engine": {"model": str(prm), **small}}},
        "prm.objective.model": str(prm),
        "prm.train": {"steps": 3, "batch": 16, "micro_batch": 16, "packing": "tree"},
    }


@asynccontextmanager
async def loop(folder: Path) -> AsyncIterator[Process]:
    words = [f"--set={key}={json.dumps(value)}" for key, value in settings(folder).items()]
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trainer", "loop", "--config", str(LOOP), *words),
            stdout=log,
            stderr=log,
            env=CLEAN,
            cwd=ROOT,
        )
    try:
        async with asyncio.timeout(SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()


def stages(out: Path) -> dict[str, Any]:
    file = out / "state.json"
    return dict(json.loads(file.read_text())["stages"]) if file.exists() else {}


def sessions(out: Path) -> list[int]:
    file = out / "children.json"
    return list(json.loads(file.read_text())["sessions"]) if file.exists() else []


def writing(out: Path) -> list[psutil.Process]:
    """What loops have running."""
    found = []
    for process in psutil.process_iter():
        try:
            if writes_below(process, out):
                found.append(process)
        except psutil.Error:
            continue
    return found


async def test_a_loop_that_is_killed_while_it_trains_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "loop"
    async with loop(tmp_path) as process:
        while not (out / "round-01" / "policy" / "run").exists():
            assert process.returncode is None, (tmp_path / "log").read_text()[-2000:]
            await asyncio.sleep(0.1)
        process.kill()
        await process.wait()
    done, left = stages(out), sessions(out)
    assert "1/compile-policy" in done and "1/train-policy" not in done
    assert len(left) == 2, "a server and a training"
    assert len(writing(out)) >= 4, "with its two engines"

    async with loop(tmp_path) as process:
        assert await process.wait() == 0, (tmp_path / "log").read_text()[-2000:]
    ended = stages(out)
    assert {name: ended[name] for name in done} == done, "nothing was done again"
    assert not writing(out), "no process is left over"
    check_round(out, ended)


def check_round(out: Path, ended: dict[str, Any]) -> None:
    kinds = ended["1/gate"]["kinds"]  # with the new PRM or the old, as it searches better
    assert [one["kinds"] for one in ended["1/gate"]["tried"]] == [["policy", "prm"], ["policy"]]
    base = {kind: ended["0/base"][kind]["version"] for kind in KINDS}
    new = {kind: ended["1/publish"][kind]["version"] for kind in kinds}
    assert new["policy"] != base["policy"] and new.get("prm") != base["prm"]
    assert ended["0/evaluation"]["versions"] == base
    assert ended["1/evaluation"]["versions"] == base | new
    assert ended["1/gate"]["candidate"]["versions"] == base | new
    traces = list(compact.read(out / "round-01" / "traces"))
    assert len(traces) == 24
    assert {t.versions.policy_version for t in traces} == {base["policy"]}
    assert ended["1/search"]["traces"] == 24 and 0 < ended["1/search"]["right"] < 1
    rollouts = list(compact.read(out / "round-01" / "rollouts"))
    assert {t.versions.policy_version for t in rollouts} == {new["policy"]}, "not yet published"
    assert len(rollouts) == ended["1/rollouts"]["traces"] == 12
    assert not {t.seed for t in rollouts} & {t.seed for t in traces}
    for kind in kinds:
        (version,) = promoted(out / "weights", kind)
        manifest = manifest_of(version.folder)
        assert manifest is not None and manifest.report is not None
        assert manifest.rows is not None and manifest.config is not None
        verify(version.folder, manifest)
    rounds = json.loads((out / "figures.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [0, 1]
    for row in rounds:
        assert {"greedy", "pass_at_1", "pass_at_4", "search"} < row["evaluation"].keys()
    assert (out / "accuracy.png").stat().st_size > 1000
