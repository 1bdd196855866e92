"""Other weights in vLLM's running engine, and where that is known to be right."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from server.engine.checkpoint import Checkpoint

# What vLLM, on a CPU, puts into a running engine as a new one would have it; seen by comparing the
# two's log-probabilities and verdicts. Of others it may leave packed copies as they were.
RELOADED_RIGHT = frozenset(
    {
        "LlamaForCausalLM",
        "LlamaForTokenClassification",
        "Qwen2ForCausalLM",
        "Qwen2ForProcessRewardModel",
    }
)


def reloads_right(found: Checkpoint, *, converted: bool) -> bool:
    """Whether an engine takes these as it runs; `converted` ones vLLM has made a classifier of."""
    # vLLM computes the one from other weights and forgets to, and adds the other on its own.
    if converted or "score.bias" in found.tensors or found.quantized:
        return False
    return not current_platform.is_cpu() or found.architecture in RELOADED_RIGHT


async def reload(engine: Any, found: Checkpoint) -> None:
    """Full weights of the engine's own shape. It should have no request; what comes waits. Where
    it fails the engine may have some of both and is not to be used any more. Its workers have
    `server.engine.repack.Repack`."""
    await engine.pause_generation(mode="wait")
    await engine.collective_rpc("reload_weights", kwargs={"weights_path": str(found.folder)})
    await engine.collective_rpc("repack")
    await engine.reset_prefix_cache()
    await engine.update_weight_version(found.version)
    await engine.resume_generation()
