"""Rows to batches: what is computed (trees of tokens), and what is asked of it (predictions).

A batch has B trees of at most N tokens and P predictions, each at one token of one tree. With
`packing: none` a tree is a single sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.packing import Ints, Tree, divide, merge, single
from trainer.plan import BLANK
from trainer.rows import KINDS, Kind, PairRow, Row, ScoreRow, TokenRow, schema

Floats = npt.NDArray[np.float32]
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Line:
    """A sequence and what is asked of it at P of its places, [P] each stream."""

    ids: Sequence[int]
    columns: Ints  # [P] after which of its tokens it is asked
    targets: Ints  # [P] the id that comes next, where that is what is asked
    streams: dict[str, npt.NDArray[Any]]
    weights: tuple[float, ...]  # what it adds to the denominators of the loss's parts
    weight: float = 1.0


def token_lines(row: TokenRow) -> list[Line]:
    streams = {name: _floats(getattr(row, name), row.ids) for name in TOKEN_STREAMS}
    streams["temperature"] = np.full(len(row.ids), row.temperature, np.float32)
    wanted = (streams["ce"] != 0) | (streams["rl"] != 0) | (streams["ref_kl"] != 0)
    weights = [float(streams[name].sum(dtype=np.float64)) for name in ("ce", "rl", "ref_kl")]
    verdict = _floats(row.verdict, row.ids, missing=np.nan)
    labelled = np.nonzero(~np.isnan(verdict))[0]
    said = _line(row.ids, wanted, streams, (*weights, float(len(labelled))), shift=1)
    return [_with_verdicts(said, labelled, verdict[labelled], row.labels)]


def _with_verdicts(line: Line, columns: Ints, verdict: Floats, labels: Sequence[int]) -> Line:
    """Besides what comes next, a verdict is asked after these tokens."""
    old, new = len(line.columns), len(columns)
    streams = {
        name: np.concatenate([v, np.full(new, name == "temperature", np.float32)])
        for name, v in line.streams.items()
    }
    good, bad = labels if new else (0, 0)
    streams["verdict"] = np.concatenate([np.full(old, np.nan, np.float32), verdict])
    for name, label in (("good", good), ("bad", bad)):
        streams[name] = np.full(old + new, label, np.int64)
    return replace(
        line,
        columns=np.concatenate([line.columns, columns]),
        targets=np.concatenate([line.targets, np.full(new, good, np.int64)]),
        streams=streams,
    )


def score_lines(row: ScoreRow) -> list[Line]:
    streams = {
        "target": _floats(row.target, row.ids),
        "weight": _floats(row.weight, row.ids, missing=1.0),
    }
    wanted = ~np.isnan(streams["target"]) & (streams["weight"] != 0)
    total = float(streams["weight"][wanted].sum(dtype=np.float64))
    return [_line(row.ids, wanted, streams, (total,), shift=0)]


def pair_lines(row: PairRow) -> list[Line]:
    """The chosen one, then the rejected one."""
    lines = []
    for side, ids in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
        front = np.zeros(len(row.prompt_ids), np.float32)
        mask = _floats(getattr(row, f"{side}_mask"), ids, missing=1.0)
        ref = _floats(getattr(row, f"{side}_logp_ref"), ids)
        streams = {"mask": np.concatenate([front, mask]), "ref": np.concatenate([front, ref])}
        chosen = side == "chosen"
        weights = (row.weight * chosen, row.weight * chosen * float(mask.sum(dtype=np.float64)))
        whole = [*row.prompt_ids, *ids]
        lines.append(_line(whole, streams["mask"] != 0, streams, weights, 1, row.weight))
    return lines


TOKEN_STREAMS = ("ce", "rl", "advantage", "ref_kl", "logp_prox", "logp_ref")
LINES: dict[Kind, Callable[[Any], list[Line]]] = {
    "tokens": token_lines,
    "scores": score_lines,
    "pairs": pair_lines,
}
PARTS: dict[Kind, int] = {"tokens": 4, "scores": 1, "pairs": 2}  # of the loss


def _floats(values: Sequence[float], ids: Sequence[int], missing: float = 0.0) -> Floats:
    return np.asarray(values, np.float32) if len(values) else np.full(len(ids), missing, np.float32)


def _line(
    ids: Sequence[int],
    wanted: npt.NDArray[np.bool_],
    streams: dict[str, Floats],
    weights: tuple[float, ...],
    shift: int,
    weight: float = 1.0,
) -> Line:
    """`shift` 1: what stands at a place is told after the token before it."""
    places = np.nonzero(wanted)[0]
    kept = {name: values[places] for name, values in streams.items()}
    return Line(ids, places - shift, np.asarray(ids, np.int64)[places], kept, weights, weight)


@dataclass(frozen=True, slots=True)
class Unit:
    """What is computed together: the lines of some rows, and the trees that hold their tokens."""

    lines: list[Line]
    trees: list[tuple[Tree, list[int]]]  # and which lines are its paths


class Units(Dataset[Unit]):
    """The rows of an Arrow file, mapped into memory: one a unit, or those of a problem that fit."""

    def __init__(self, file: Path, kind: Kind, packing: str = "none", budget: int = 0):
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        self.kind, self._packed = kind, packing == "tree"
        self.rows = self._table.num_rows
        self.tokens = sum(self._row_lengths())  # of all sequences, before any are merged
        groups = self._grouped(budget)
        self._members, self.lengths = [g[0] for g in groups], [g[1] for g in groups]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, at: int) -> Unit:
        if at == BLANK:
            return Unit([], [(single([0]), [])])
        lines = [line for n in self._members[at] for line in LINES[self.kind](self._row(n))]
        if self._packed:
            return Unit(lines, [(merge([line.ids for line in lines]), list(range(len(lines))))])
        return Unit(lines, [(single(line.ids), [n]) for n, line in enumerate(lines)])

    def _row(self, n: int) -> Row:
        values: dict[str, Any] = self._table.slice(n, 1).to_pylist()[0]
        return KINDS[self.kind](**values)

    def _row_lengths(self) -> list[int]:
        if self.kind != "pairs":
            return self._lengths_of("ids")
        return [2 * prompt + both for prompt, both in self._pair_lengths()]

    def _pair_lengths(self) -> list[tuple[int, int]]:
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        columns = zip(*map(self._lengths_of, names), strict=True)
        return [(prompt, chosen + rejected) for prompt, chosen, rejected in columns]

    def _lengths_of(self, column: str) -> list[int]:
        lengths: list[int] = pc.list_value_length(self._table[column]).to_pylist()
        return lengths

    def _grouped(self, budget: int) -> list[tuple[list[int], int]]:
        """The rows of each unit, and its tokens."""
        if not self._packed:
            return [([n], length) for n, length in enumerate(self._row_lengths())]
        if self.kind == "pairs":  # the two of a pair share their prompt, at least
            return [([n], sum(length)) for n, length in enumerate(self._pair_lengths())]
        problems: dict[str, list[int]] = {}  # whose searches begin alike, one and another
        for n, problem in enumerate(self._table["problem_id"].to_pylist()):
            problems.setdefault(problem, []).append(n)
        return [group for rows in problems.values() for group in self._divided(rows, budget)]

    def _divided(self, rows: list[int], budget: int) -> Iterator[tuple[list[int], int]]:
        for members, size in divide([self._table["ids"][n].as_py() for n in rows], budget):
            yield [rows[m] for m in members], size


def write_arrow(file: Path, kind: Kind, rows: Iterator[Row]) -> int:
    """The rows as `Units` reads them. Returns their number."""
    shape, count = schema(kind), 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, shape) as writer:
        chunk: list[Row] = []
        for row in rows:
            chunk.append(row)
            count += 1
            if len(chunk) == 1024:
                writer.write_table(_table(chunk, shape))
                chunk = []
        if chunk:
            writer.write_table(_table(chunk, shape))
    return count


def _table(rows: list[Row], shape: pa.Schema) -> pa.Table:
    return pa.table({n: [getattr(row, n) for row in rows] for n in shape.names}, schema=shape)


@dataclass(frozen=True, slots=True)
class Collator:
    """Units to a batch.

    input_ids [B, N]; attention_mask [B, N], or [B, 1, N, N] with position_ids [B, N];
    keep [K]: the columns that anything is asked at; of each prediction its tree `row` [P], its
    column's place in keep `column` [P], `target_id` [P], its `line` [P] and the streams [P];
    weights [C]: denominators of the loss's parts, line_weight [L].
    """

    parts: int

    def __call__(self, units: list[Unit]) -> Batch:
        every = [(tree, unit, paths) for unit in units for tree, paths in unit.trees]
        # Where anything is asked, blanks are not computed.
        trees = [found for found in every if found[2]] or every[:1]
        batch = _tokens([tree for tree, _, _ in trees])
        lines: list[Line] = []
        asked: list[tuple[Ints, Ints, Ints, Ints]] = []
        for number, (tree, unit, paths) in enumerate(trees):
            for path, n in zip(tree.paths, paths, strict=False):
                line = unit.lines[n]
                asked.append(_predictions(number, path, line, len(lines)))
                lines.append(line)
        batch |= _asked(asked) | _streams(lines)
        weights = [np.asarray(line.weights) for line in lines]
        total = np.sum(weights, 0) if weights else np.zeros(self.parts)
        batch["weights"] = torch.from_numpy(np.asarray(total, np.float64))
        batch["line_weight"] = torch.tensor([line.weight for line in lines])
        return batch


def _tokens(trees: list[Tree]) -> Batch:
    size = max(len(tree.ids) for tree in trees)
    ids = np.zeros((len(trees), size), np.int64)
    for row, tree in zip(ids, trees, strict=True):
        row[: len(tree.ids)] = tree.ids
    if all(tree.straight for tree in trees):
        mask = np.zeros((len(trees), size), np.int64)
        for n, tree in enumerate(trees):
            mask[n, : len(tree.ids)] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    # Padding attends to itself: a softmax over nothing is NaN.
    square = np.broadcast_to(np.eye(size, dtype=np.bool_), (len(trees), 1, size, size)).copy()
    depth = np.zeros((len(trees), size), np.int64)
    for n, tree in enumerate(trees):
        square[n, 0, : len(tree.ids), : len(tree.ids)] = tree.ancestors()
        depth[n, : len(tree.ids)] = tree.depth()
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(square),
        "position_ids": torch.from_numpy(depth),
    }


def _predictions(tree: int, path: Ints, line: Line, number: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Tree, column, the id that comes next, line; [P] each."""
    size = len(line.columns)
    return np.full(size, tree), path[line.columns], line.targets, np.full(size, number)


def _asked(parts: list[tuple[Ints, Ints, Ints, Ints]]) -> Batch:
    empty = [np.zeros(0, np.int64)]
    row, column, ids, line = (np.concatenate([p[n] for p in parts] or empty) for n in range(4))
    keep, place = np.unique(column, return_inverse=True)
    named = {"row": row, "column": place, "target_id": ids, "line": line}
    named["keep"] = keep if len(keep) else np.zeros(1, np.int64)
    return {name: torch.from_numpy(np.asarray(v, np.int64)) for name, v in named.items()}


def _streams(lines: list[Line]) -> Batch:
    names = lines[0].streams if lines else ()
    batch = {
        name: torch.from_numpy(np.concatenate([line.streams[name] for line in lines]))
        for name in names
    }
    if "temperature" in batch and bool((batch["temperature"] == 1).all()):
        del batch["temperature"]
    if "verdict" in batch and bool(batch["verdict"].isnan().all()):
        for name in ("verdict", "good", "bad"):
            del batch[name]
    return batch
