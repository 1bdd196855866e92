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
import numpy.typing as npt

from trainer.config import OffPolicy
from trainer.errors import DataError
from trainer.rows import TokenRow

Floats = npt.NDArray[np.float64]


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
        if not any(row.rl) or (self.settings.cap is None and self.settings.reject is None):
            return row
        row, ratios = self._ratios(row, where)
        known = ratios[~np.isnan(ratios)]
        self._log_ratios += float(np.log(known).sum())
        self.counts["corrected_tokens"] += len(known)
        if self._rejected(known):
            self.counts["rejected"] += 1
            row = replace(row, rl=(), advantage=())
        if not row.asks:
            return None
        return self._weighted(row, ratios)

    def report(self) -> dict[str, float]:
        mean = self._log_ratios / max(1, self.counts["corrected_tokens"])
        return dict(self.counts) | {"geometric_mean_ratio": math.exp(mean)}

    def _stale(self, row: TokenRow, where: str) -> bool:
        """A row that several versions wrote is as old as the oldest."""
        versions, most = self.settings.versions, self.settings.max_staleness
        if most is None:
            return False
        of = row.version.split(",")
        if unknown := [version for version in of if version not in versions]:
            known = ", ".join(versions)
            raise DataError(
                f"{where}: version: {unknown[0]!r} is none of off_policy.versions: {known}"
            )
        return len(versions) - 1 - min(map(versions.index, of)) > most

    def _ratios(self, row: TokenRow, where: str) -> tuple[TokenRow, Floats]:
        """[T] p_begin / p_sampled, NaN where nothing is learned or known; and the row with the
        weights that are left."""
        rl = np.asarray(row.rl, np.float64)
        logp = np.asarray(row.logp, np.float64) if len(row.logp) else np.full(len(rl), np.nan)
        ratios: Floats = np.exp(np.asarray(row.logp_prox, np.float64) - logp)
        ratios[rl == 0] = np.nan
        lacking = (rl != 0) & np.isnan(ratios)
        if not lacking.any():
            return row, ratios
        if self.settings.unlogged == "refuse":
            at = int(np.nonzero(lacking)[0][0])
            raise DataError(
                f"{where}: logp: token {at} has an rl weight, but what its sampler thought of it "
                "is not known (off_policy.unlogged: drop or trust, or off_policy: null)"
            )
        self.counts[f"unlogged_{self.settings.unlogged}"] += int(lacking.sum())
        if self.settings.unlogged == "drop":
            rl[lacking] = 0
        return replace(row, rl=rl.tolist()), ratios

    def _rejected(self, ratios: Floats) -> bool:
        if self.settings.reject is None or not len(ratios):
            return False
        low, high = self.settings.reject
        return not low <= math.exp(np.log(ratios).mean()) <= high

    def _weighted(self, row: TokenRow, ratios: Floats) -> TokenRow:
        cap = self.settings.cap
        if cap is None or not len(row.rl):
            return row
        self.counts["truncated_tokens"] += int((ratios > cap).sum())
        factor = np.where(np.isnan(ratios), 1.0, np.minimum(ratios, cap))
        return replace(row, advantage=(np.asarray(row.advantage, np.float64) * factor).tolist())
