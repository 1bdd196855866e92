"""What the policy that training begins with, and the reference, think of the rows' tokens.

One pass without gradients before training, so that neither stands in memory beside what learns.
Where a row has logged log-probabilities, how far the trainer's are from them is reported by policy
version: the sampler's kernels and precision differ from the trainer's, and an unnoticed mistake
(a temperature, a template) shows here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import torch
import typer
from torch import nn

from trainer import losses
from trainer.config import Precision
from trainer.data import Collator, Floats, Line, Unit, pair_lines
from trainer.errors import ConfigError, DataError
from trainer.packing import single
from trainer.rows import Header, PairRow, Row, RowWriter, TokenRow, read_header, read_rows
from trainer.trainers import logits_of
from trainer.weights import load_policy

CHUNK = 1024  # rows sorted by length at once


@dataclass
class Gap:
    """|trainer's - logged log-probability| of the tokens that a policy version sampled."""

    tokens: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, gaps: Floats) -> None:
        self.tokens += len(gaps)
        self.total += float(gaps.sum(dtype=np.float64))
        self.largest = max(self.largest, float(gaps.max(initial=0.0)))

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else 0.0

    def report(self) -> dict[str, float]:
        return {"tokens": self.tokens, "mean": self.mean, "max": self.largest}


@dataclass
class Scoring:
    """Model names and how they are run. `max_gap` bounds the mean gap of rows by `current`, the
    version that `model` is; of every version's, if that is not said."""

    model: str
    reference: str
    precision: Precision = "float32"
    device: str = "cpu"
    batch: int = 16
    max_gap: float | None = None
    current: str | None = None
    gaps: dict[str, Gap] = field(default_factory=dict)

    def run(self, rows: Path, out: Path) -> dict[str, Any]:
        """Writes `out`, `rows` with logp_prox and logp_ref. Returns the report that is in its
        header too. Raises `DataError`; there is no `out` then."""
        header = read_header(rows)
        if header.kind == "scores":
            raise DataError(f"{rows}: rows of a reward model have no log-probabilities")
        policy = self._load(self.model)
        reference = policy if self.reference == self.model else self._load(self.reference)
        with RowWriter(out, header) as writer:
            for row in self._scored(read_rows(rows), policy, reference):
                writer.add(row)
            report = self._report(rows)
            writer.close(header.model_copy(update={"report": header.report | {"score": report}}))
        return report

    def _load(self, name: str) -> nn.Module:
        return load_policy(name).to(self.device).eval()

    def _scored(
        self, rows: Iterator[Row], policy: nn.Module, reference: nn.Module
    ) -> Iterator[Row]:
        while chunk := list(islice(rows, CHUNK)):
            lines = [line for row in chunk for line in _lines(row)]
            ref = self._log_probs(lines, reference)
            pairs = isinstance(chunk[0], PairRow)
            prox = ref if pairs or policy is reference else self._log_probs(lines, policy)
            at = 0
            for row in chunk:
                if isinstance(row, TokenRow):
                    self._compare(row, prox[at])
                    yield replace(row, logp_prox=prox[at].tolist(), logp_ref=ref[at].tolist())
                    at += 1
                elif isinstance(row, PairRow):
                    size = len(row.prompt_ids)
                    yield replace(
                        row,
                        chosen_logp_ref=ref[at][size:].tolist(),
                        rejected_logp_ref=ref[at + 1][size:].tolist(),
                    )
                    at += 2

    @torch.no_grad()
    def _log_probs(self, lines: Sequence[Line], model: nn.Module) -> list[Floats]:
        """[T] of each line; NaN for its first token."""
        found: list[Floats] = [np.zeros(0, np.float32)] * len(lines)
        order = sorted(range(len(lines)), key=lambda n: len(lines[n].ids))
        cast = torch.autocast(
            self.device.partition(":")[0], torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        for start in range(0, len(order), self.batch):
            numbers = order[start : start + self.batch]
            with cast:
                values = self._pass([lines[n] for n in numbers], model)
            ends = np.cumsum([len(lines[n].columns) for n in numbers])
            for n, part in zip(numbers, np.split(values, ends[:-1]), strict=True):
                found[n] = np.concatenate([np.full(1, np.nan, np.float32), part])
        return found

    def _pass(self, lines: list[Line], model: nn.Module) -> Floats:
        units = [Unit([line], [(single(line.ids), [0])]) for line in lines]
        batch = {name: v.to(self.device) for name, v in Collator(1)(units).items()}
        logits = logits_of(model, batch)
        logp = losses.log_probs(logits, batch["target_id"], batch.get("temperature"))
        values: Floats = logp.float().cpu().numpy()
        return values

    def _compare(self, row: TokenRow, prox: Floats) -> None:
        if not row.logp:
            return
        gaps = np.abs(np.asarray(row.logp, np.float32) - prox)
        self.gaps.setdefault(row.version, Gap()).add(gaps[~np.isnan(gaps)])

    def _report(self, rows: Path) -> dict[str, Any]:
        for gap in self.gaps.values():
            if not math.isfinite(gap.mean):
                raise DataError(f"{rows}: {self.model} gives log-probabilities that are not finite")
        gaps = {version: gap.report() for version, gap in self.gaps.items()}
        report = {
            "model": self.model,
            "reference": self.reference,
            "precision": self.precision,
            "gap": gaps,
        }
        check_gaps(str(rows), report, self.max_gap, self.current)
        return report


def command(
    rows: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="the file to write")],
    model: Annotated[str, typer.Option(help="what training begins with: a folder or hub name")],
    reference: Annotated[str | None, typer.Option(help="of KL and pairs; --model if unset")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16, as in training")] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="sequences a pass")] = 16,
    max_gap: Annotated[
        float | None, typer.Option(help="refuse a policy version whose mean gap is larger")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="that --model is, which alone --max-gap is for")
    ] = None,
) -> None:
    """Add to rows what the policy and the reference think of their tokens."""
    if precision not in get_args(Precision):
        raise ConfigError(f"--precision {precision}: allowed are {', '.join(get_args(Precision))}")
    chosen = cast(Precision, precision)
    scoring = Scoring(model, reference or model, chosen, device, batch, max_gap, version)
    report = scoring.run(rows, out)
    for version, gap in report["gap"].items():
        typer.echo(
            f"{version or 'no version'}: {gap['tokens']} tokens, log-probabilities differ by "
            f"{gap['mean']:.4f} on average, {gap['max']:.4f} at most"
        )
    typer.echo(f"{out} is scored")


def _lines(row: Row) -> list[Line]:
    """Each with every token but its first asked for."""
    if isinstance(row, PairRow):
        return [_whole(line.ids, 1.0) for line in pair_lines(row)]
    assert isinstance(row, TokenRow)
    return [_whole(row.ids, row.temperature)]


def _whole(ids: Sequence[int], temperature: float) -> Line:
    columns, targets = np.arange(len(ids) - 1), np.asarray(ids[1:], np.int64)
    streams = {"temperature": np.full(len(columns), temperature, np.float32)}
    return Line(ids, columns, targets, streams, (0.0,))


def check_gaps(where: str, report: dict[str, Any], most: float | None, current: str | None) -> int:
    """How many tokens were compared with what `current` (None: any version) logged. Raises
    `DataError`: they are further away than `most` on average."""
    compared = {v: gap for v, gap in report["gap"].items() if current in (None, v)}
    for version, gap in compared.items():
        if most is not None and gap["mean"] > most:
            raise DataError(
                f"{where}: version {version!r}: logged log-probabilities are {gap['mean']:.4f} "
                f"from those of {report['model']}, {gap['max']:.4f} at most; "
                f"allowed on average: {most}"
            )
    return int(sum(gap["tokens"] for gap in compared.values()))


def scored_by(header: Header) -> dict[str, Any] | None:
    found: dict[str, Any] | None = header.report.get("score")
    return found
