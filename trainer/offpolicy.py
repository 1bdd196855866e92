"""What is done, before training, about rows that another policy sampled.

The ratios of the policy that training begins with to the one that sampled do not change in
training, so they are numbers beside the tokens like the rest: truncated, they are a factor of the
advantage (every surrogate of `losses.policy_gradient` is linear in it under a factor >= 0).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from trainer.config import OffPolicy
from trainer.errors import DataError
from trainer.rows import TokenRow


@dataclass
class Correction:
    """Applies to the rows of one run, and counts what it does."""

    settings: OffPolicy
    counts: Counter[str] = field(default_factory=Counter)
    _log_ratios: float = 0.0

    def __call__(self, row: TokenRow, where: str) -> TokenRow | None:
        """The row to learn from; None where nothing is left of it. Raises `DataError`."""
        if self._stale(row, where):
            self.counts["stale"] += 1
            return None
        learned = np.asarray(row.rl, np.float64) != 0
        if not learned.any() or (self.settings.cap is None and self.settings.reject is None):
            return row
        ratios = self._ratios(row, learned, where)
        self._log_ratios += float(np.log(ratios).sum())
        self.counts["corrected_tokens"] += len(ratios)
        if self._rejected(ratios):
            self.counts["rejected"] += 1
            rest = replace(row, rl=(), advantage=())
            return rest if any(rest.ce) or any(rest.ref_kl) else None
        return self._weighted(row, learned, ratios)

    def report(self) -> dict[str, float]:
        mean = self._log_ratios / max(1, self.counts["corrected_tokens"])
        return dict(self.counts) | {"geometric_mean_ratio": math.exp(mean)}

    def _stale(self, row: TokenRow, where: str) -> bool:
        versions, most = self.settings.versions, self.settings.max_staleness
        if most is None:
            return False
        if row.version not in versions:
            known = ", ".join(versions)
            raise DataError(
                f"{where}: version: {row.version!r} is none of off_policy.versions: {known}"
            )
        return len(versions) - 1 - versions.index(row.version) > most

    def _ratios(self, row: TokenRow, learned: np.ndarray, where: str) -> np.ndarray:
        if not row.logp:
            raise DataError(
                f"{where}: logp: not known, so nothing tells how far the policy is from the one "
                "that sampled it; off_policy: null trains as if it were the same"
            )
        log_ratios = np.asarray(row.logp_prox)[learned] - np.asarray(row.logp)[learned]
        if np.isnan(log_ratios).any():
            at = int(np.nonzero(learned)[0][np.isnan(log_ratios)][0])
            raise DataError(f"{where}: logp: token {at} has an rl weight, but was not sampled")
        ratios: np.ndarray = np.exp(log_ratios.astype(np.float64))
        return ratios

    def _rejected(self, ratios: np.ndarray) -> bool:
        if self.settings.reject is None:
            return False
        low, high = self.settings.reject
        return not low <= math.exp(np.log(ratios).mean()) <= high

    def _weighted(self, row: TokenRow, learned: np.ndarray, ratios: np.ndarray) -> TokenRow:
        cap = self.settings.cap
        if cap is None:
            return row
        self.counts["truncated_tokens"] += int((ratios > cap).sum())
        advantage = np.asarray(row.advantage, np.float64).copy()
        advantage[learned] *= np.minimum(ratios, cap)
        return replace(row, advantage=advantage.tolist())
