"""What an engine in this process says of itself."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger


class Meter(PrometheusStatLogger):
    """What the engine's scheduler says of its KV cache and drafts, with each of its steps.

    A subclass without its parent's collectors, which vLLM would otherwise make, too.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None):
        self.preempted = self.drafted = self.accepted = 0
        self._used: dict[int, float] = {}  # share in use, by data-parallel rank

    @property
    def used(self) -> float:
        return sum(self._used.values()) / len(self._used) if self._used else 0.0

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._used[engine_idx] = scheduler_stats.kv_cache_usage
            # Counted when they resume.
            self.preempted += scheduler_stats.prefix_cache_stats.preempted_requests
            if (drafts := scheduler_stats.spec_decoding_stats) is not None:
                self.drafted += drafts.num_draft_tokens
                self.accepted += drafts.num_accepted_tokens

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Not kept."""

    def record_admission_rejection(self, reason: str) -> None:
        """Not kept."""
