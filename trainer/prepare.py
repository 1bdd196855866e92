"""From files of rows to the one file that a run reads: checked against the model, scored,
corrected for what another policy sampled, with an account of what was left out and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.data import write_arrow
from trainer.errors import ConfigError, DataError
from trainer.offpolicy import Correction
from trainer.rows import Header, Kind, PairRow, Row, ScoreRow, TokenRow, read_header, read_rows
from trainer.score import Scoring, check_gaps, scored_by
from trainer.weights import check_packing, config_of, tokenizer_sha

FILE = "rows.arrow"


@dataclass(frozen=True, slots=True)
class Prepared:
    kind: Kind
    report: dict[str, Any]


@dataclass
class Preparation:
    """`run` writes `FILE` into the output folder. Raises `DataError`, `ConfigError`."""

    config: TrainConfig
    device: str
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Prepared:
        headers = [read_header(file) for file in self.config.rows]
        kind = self._kind(headers)
        self._check_tokenizer(headers)
        model = config_of(self.config.model)
        if self.config.packing == "tree":
            check_packing(self.config.model, model)
        text = model.get_text_config()
        self._vocabulary = int(text.vocab_size)
        self._positions = int(getattr(text, "max_position_embeddings", None) or 1 << 62)
        lacking = [self._check(file) for file in self.config.rows]
        files = [self._scored(n, headers[n], lacks) for n, lacks in enumerate(lacking)]
        scores = [s for file in files if (s := scored_by(read_header(file)))]
        self._check_gap(kind, scores)
        correction = Correction(self.config.off_policy) if self.config.off_policy else None
        kept = self._write(kind, files, correction)
        report = dict(self.counts) | {"kept": kept}
        off = correction.report() if correction and kind == "tokens" else None
        return Prepared(kind, {"rows": report, "off_policy": off, "score": scores})

    def _write(self, kind: Kind, files: list[Path], correction: Correction | None) -> int:
        partial = self.config.output / f".{FILE}.tmp"
        try:
            kept = write_arrow(partial, kind, self._rows(files, correction))
            if not kept:
                raise DataError(f"{self._names()}: nothing to learn from: {dict(self.counts)}")
            os.replace(partial, self.config.output / FILE)
        finally:
            partial.unlink(missing_ok=True)
        return kept

    def _kind(self, headers: list[Header]) -> Kind:
        kinds = {header.kind for header in headers}
        if len(kinds) > 1:
            raise DataError(f"{self._names()}: rows of several kinds: {', '.join(sorted(kinds))}")
        return headers[0].kind

    def _check_tokenizer(self, headers: list[Header]) -> None:
        own = tokenizer_sha(self.config.model)
        for file, header in zip(self.config.rows, headers, strict=True):
            if header.tokenizer_sha not in (None, own):
                raise DataError(
                    f"{file}: its ids are of tokenizer {header.tokenizer_sha}; "
                    f"that of {self.config.model} is {own}"
                )

    def _check(self, file: Path) -> bool:
        """Every row, before anything is computed. Returns whether some are to be scored."""
        lacking = False
        for number, row in enumerate(read_rows(file)):
            self._check_row(row, f"{file} row {number}")
            lacking = lacking or self._lacks(row)
        return lacking

    def _check_row(self, row: Row, where: str) -> None:
        sizes, largest = _sizes(row)
        if largest >= self._vocabulary:
            raise DataError(
                f"{where}: id {largest}: {self.config.model} has {self._vocabulary} ids"
            )
        limit = self.config.max_length
        if max(sizes) > self._positions and (limit is None or limit > self._positions):
            raise DataError(
                f"{where}: {max(sizes)} tokens; {self.config.model} has {self._positions} "
                "positions (max_length drops longer rows)"
            )
        if isinstance(row, TokenRow):
            _check_tokens(row, where)

    def _scored(self, number: int, header: Header, lacks: bool) -> Path:
        """The file itself, or one beside the run with the log-probabilities it lacks."""
        file = self.config.rows[number]
        if (by := scored_by(header)) is not None:
            wanted = {"model": self.config.model, "reference": self._reference}
            differ = [f"{k} {by[k]}, not {v}" for k, v in wanted.items() if by[k] != v]
            if differ:
                raise DataError(f"{file}: it was scored by {'; '.join(differ)}")
            return file
        if not lacks:
            return file
        out = self.config.output / f"scored-{number}.parquet"
        if not out.exists():
            Scoring(
                self.config.model,
                self._reference,
                self.config.precision,
                self.device,
                self.config.micro_batch,
                self.config.max_gap,
                self._current,
            ).run(file, out)
        return out

    def _check_gap(self, kind: Kind, scores: list[dict[str, Any]]) -> None:
        """Of files that were scored before, too; and that something was compared."""
        most = self.config.max_gap
        if most is None:
            return
        if kind != "tokens":
            raise ConfigError(f"max_gap: rows of {kind} have no logged log-probabilities")
        names, of = self._names(), self._current
        if not sum(check_gaps(names, s, most, of) for s in scores):
            said = "" if of is None else f" of version {of!r}"
            raise DataError(f"{names}: max_gap: no logged log-probabilities{said}")

    @property
    def _current(self) -> str | None:
        """The policy version that `model` is, if that is said."""
        off = self.config.off_policy
        return off.versions[-1] if off and off.versions else None

    @property
    def _reference(self) -> str:
        return self.config.reference or self.config.model

    def _lacks(self, row: Row) -> bool:
        if isinstance(row, PairRow):
            return not row.chosen_logp_ref or not row.rejected_logp_ref
        if isinstance(row, ScoreRow):
            return False
        learned = self._counting(row)
        compared = self.config.max_gap is not None and any(p == p for p in row.logp)
        wanted = compared or (self.config.needs_prox and any(learned.rl))
        prox = wanted and not row.logp_prox
        return prox or (self.config.needs_ref and any(learned.ref_kl) and not row.logp_ref)

    def _rows(self, files: list[Path], correction: Correction | None) -> Iterator[Row]:
        for name, file in zip(self.config.rows, files, strict=True):
            for number, row in enumerate(read_rows(file)):
                self.counts["read"] += 1
                if (left := self._row(row, f"{name} row {number}", correction)) is not None:
                    yield left

    def _row(self, row: Row, where: str, correction: Correction | None) -> Row | None:
        if self.config.max_length is not None and max(_sizes(row)[0]) > self.config.max_length:
            self.counts["too_long"] += 1
            return None
        if isinstance(row, TokenRow):
            row = self._counting(row)
        if not row.asks:
            self.counts["nothing_asked"] += 1
            return None
        if not isinstance(row, TokenRow) or correction is None:
            return row
        left = correction(row, where)
        self.counts["dropped_off_policy"] += left is None
        return left

    def _counting(self, row: TokenRow) -> TokenRow:
        """Without what has no part in this run's loss."""
        losses = self.config.losses
        return replace(
            row,
            ce=row.ce if losses.ce else (),
            rl=row.rl if losses.rl else (),
            ref_kl=row.ref_kl if losses.ref_kl else (),
            verdict=row.verdict if losses.label else (),
        )

    def _names(self) -> str:
        return ", ".join(map(str, self.config.rows))


def _check_tokens(row: TokenRow, where: str) -> None:
    for name in ("ce", "rl", "ref_kl"):
        if any(weight < 0 for weight in getattr(row, name)):
            raise DataError(f"{where}: {name}: a weight below 0; allowed are 0 and above")
    if any(row.rl) and not row.advantage:
        raise DataError(f"{where}: advantage: none, but rl has weights")
    if row.temperature <= 0:
        raise DataError(f"{where}: temperature: {row.temperature}; allowed are numbers above 0")


def _sizes(row: Row) -> tuple[list[int], int]:
    """Tokens of its sequences, and the largest id."""
    if isinstance(row, PairRow):
        sizes = [len(row.prompt_ids) + len(ids) for ids in (row.chosen_ids, row.rejected_ids)]
        return sizes, max(map(max, (row.prompt_ids, row.chosen_ids, row.rejected_ids)))
    labels = row.labels if isinstance(row, TokenRow) else ()
    return [len(row.ids)], max(*row.ids, *labels, 0)


def check_kind(config: TrainConfig, kind: Kind) -> None:
    """Raises `ConfigError`: what is set has no part in learning from such rows."""
    for name in ("reference", "losses") if kind == "scores" else ("head",):
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            raise ConfigError(f"{name}: has no part in learning from rows of {kind}")
