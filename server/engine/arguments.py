"""How vLLM is started: the arguments of an engine, and the environment of its process.

Environment variables are read by vLLM and OpenMP in the engine's own process, which `Llm.start`
spawns; `ENVIRONMENT` and, on CPU, `CPU_ENVIRONMENT` are set before that, and only where the user
has set nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from server.config import VllmSettings
from server.engine.repack import Repack
from server.errors import BadRequest

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anyone
}
CPU_ENVIRONMENT = {
    # Half the cores: a policy and a PRM run side by side. One thread beats two that share a core.
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
    # vLLM's own binding puts every engine of a machine on the same first cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The worker lives in the engine's process: one process fewer to start and to talk to.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
CPU_ARGUMENTS: dict[str, Any] = {
    "enforce_eager": True,  # compiling takes longer to start than small models win back
    "block_size": 32,  # vLLM's 128 caches a prefix in steps of 128 tokens
    "kv_cache_memory_bytes": 1 << 29,  # vLLM's default is nearly all memory, for each engine
    "worker_extension_cls": "server.engine.kernels.Worker",
}
PROPOSER = "server.engine.verify.Proposer"
LORA = {
    "enable_lora": True,
    "max_loras": 2,  # in one batch: searches end on the last one while others begin on the next
    "max_cpu_loras": 4,
}
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's


def lora_rank(rank: int) -> int:
    """The least of vLLM's that holds it."""
    return next(allowed for allowed in LORA_RANKS if allowed >= rank)


def arguments(settings: VllmSettings, defaults: Mapping[str, Any] | None = None) -> AsyncEngineArgs:
    """Engine arguments: ours, `defaults` over them, the user's `extra` over both.

    vLLM's own statistics are off: they cost time for each token, and are process-wide Prometheus
    collectors, which a second engine wipes. `Meter` takes what is needed.
    `BadRequest` on an argument that vLLM does not have.
    """
    known = {f.name for f in fields(AsyncEngineArgs)}
    if unknown := sorted(settings.extra.keys() - known):
        raise BadRequest(f"unknown AsyncEngineArgs: {', '.join(unknown)}", param="extra")
    values: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": f"{Repack.__module__}.{Repack.__qualname__}",
    }
    if settings.lora_rank is not None:
        values |= LORA | {"max_lora_rank": lora_rank(settings.lora_rank)}
    values |= CPU_ARGUMENTS if current_platform.is_cpu() else {}
    if settings.draft_tokens:
        if not current_platform.is_cpu():
            problem = "is for a CPU; elsewhere there is extra.speculative_config"
            raise BadRequest(f"draft_tokens {problem}", param="draft_tokens")
        if other := sorted(settings.extra.keys() & {"speculative_config", "use_fp64_gumbel"}):
            problem = f"draft_tokens does not go together with extra.{other[0]}"
            raise BadRequest(problem, param="draft_tokens")
        values["speculative_config"] = {
            "method": "custom_class",
            "model": PROPOSER,
            "num_speculative_tokens": settings.draft_tokens,
        }
    if settings.kv_cache_bytes is not None:
        values["kv_cache_memory_bytes"] = settings.kv_cache_bytes
    return AsyncEngineArgs(**(values | dict(defaults or {}) | settings.extra))


def prepare_environment() -> None:
    """Set what the user has not set. Logging in this process was configured by the import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    if current_platform.is_cpu():
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
