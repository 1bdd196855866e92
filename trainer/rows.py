"""What the trainer trains on: rows of token streams, in Parquet. No torch.

A compiler (`compile.py`) turns search trees into rows, an objective a file; the trainer
(`train.py`) knows rows and nothing of trees or algorithms. Everything that an algorithm says of a
token is a number beside it, so that rows are independent: any sampler, any number of ranks.

A file has rows of one kind, and says in its metadata (`Header`) what they are made of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.errors import DataError

SCHEMA_VERSION = "2"  # of 1, rows of tokens had no labels
METADATA = b"ponder.rows"
Kind = Literal["tokens", "scores", "pairs"]


class Header(BaseModel):
    """The metadata of a file of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str = SCHEMA_VERSION
    kind: Kind
    objective: dict[str, Any]  # its kind and every parameter
    model_id: str  # whose token ids these are
    tokenizer_sha: str | None
    versions: tuple[str, ...]  # of the policies that wrote what the rows learn from
    report: dict[str, Any]  # traces read, dropped and why; rows


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A sequence as the policy saw and wrote it. T tokens; every list is [T] or empty (all 0, or
    for log-probabilities: not known). The weights of token 0, which nothing predicts, are 0.

    The loss is the sum of four parts, each over its weights' sum in the global batch:
    cross-entropy, -ce * log p; policy gradient, rl * f(ratio, advantage); ref_kl * KL(p || ref);
    and where a verdict is asked for, the cross-entropy of the two labels alone, as what comes
    next, against it. A token that the server put in has weight 0 in the first three.
    """

    kind: ClassVar[Kind] = "tokens"

    trace_id: str
    problem_id: str
    ids: Sequence[int]
    ce: Sequence[float] = ()
    rl: Sequence[float] = ()
    advantage: Sequence[float] = ()
    ref_kl: Sequence[float] = ()
    # Natural, under the distribution sampled from (temperature and the rest); NaN: not sampled.
    logp: Sequence[float] = ()
    logp_prox: Sequence[float] = ()  # by the policy that training begins with; by `score.py`
    logp_ref: Sequence[float] = ()  # by the reference policy; by `score.py`
    temperature: float = 1.0  # that `logp` is under; top-p and the like are off, or `logp` is empty
    version: str = ""  # of the policy that sampled it
    verdict: Sequence[float] = ()  # of the answer up to this token, in [0, 1]; NaN: not asked
    labels: Sequence[int] = ()  # the token that says good, and the one that says bad

    @property
    def asks(self) -> bool:
        """Whether anything is to be learned from it."""
        weighs = any(self.ce) or any(self.rl) or any(self.ref_kl)
        return weighs or any(v == v for v in self.verdict)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A sequence as a reward model reads it, and what it is to say. [T] each."""

    kind: ClassVar[Kind] = "scores"

    trace_id: str
    problem_id: str
    ids: Sequence[int]
    target: Sequence[float]  # in [0, 1]; NaN where nothing is asked
    weight: Sequence[float] = ()  # empty: 1 where there is a target

    @property
    def asks(self) -> bool:
        weights = self.weight or (1.0,) * len(self.ids)
        return any(w and t == t for t, w in zip(self.target, weights, strict=True))


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two ways to go on from one prompt, the first better than the second."""

    kind: ClassVar[Kind] = "pairs"

    trace_id: str
    problem_id: str
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    # 1 where sampled, 0 where the server put it in; empty: all 1.
    chosen_mask: Sequence[float] = ()
    rejected_mask: Sequence[float] = ()
    weight: float = 1.0
    # Of each token, by the reference policy at temperature 1; by `score.py`.
    chosen_logp_ref: Sequence[float] = ()
    rejected_logp_ref: Sequence[float] = ()

    @property
    def asks(self) -> bool:
        return True


Row = TokenRow | ScoreRow | PairRow
KINDS: dict[Kind, type[Row]] = {r.kind: r for r in (TokenRow, ScoreRow, PairRow)}
TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "float": pa.float32(),
    "Sequence[int]": pa.list_(pa.int32()),
    "Sequence[float]": pa.list_(pa.float32()),
}


@dataclass
class RowWriter:
    """Writes rows under a temporary name; `close` gives the file its own. Left by an error, there
    is no file."""

    path: Path
    header: Header
    size: int = 1024  # rows a group
    count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._schema = schema(self.header.kind)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            raise DataError(f"{self.path}: cannot be written: {error}") from error
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        check(row, f"{self.path} row {self.count}")
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= self.size:
            self._flush()

    def close(self, header: Header | None = None) -> None:
        """`header` takes the place of the one given first, when the report is known."""
        self._flush()
        text = (header or self.header).model_dump_json()
        self._writer.add_key_value_metadata({METADATA.decode(): text})
        self._writer.close()
        os.replace(self._temporary, self.path)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._writer.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            columns = {
                name: [getattr(row, name) for row in self._rows] for name in self._schema.names
            }
            self._writer.write_table(pa.table(columns, schema=self._schema))
            self._rows = []


def schema(kind: Kind) -> pa.Schema:
    of = [f for f in fields(KINDS[kind]) if f.name != "kind"]
    return pa.schema([pa.field(f.name, TYPES[str(f.type)], nullable=False) for f in of])


def read_header(path: Path) -> Header:
    """Raises `DataError`: the file is no Parquet, is torn, or is not a file of rows."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a whole Parquet file: {error}") from error
    if METADATA not in metadata:
        raise DataError(f"{path}: not a file of rows: it lacks the metadata {METADATA.decode()}")
    found = json.loads(metadata[METADATA])
    if (version := found.get("schema_version")) != SCHEMA_VERSION:
        raise DataError(f"{path}: rows of schema {version}; this trainer reads {SCHEMA_VERSION}")
    try:
        return Header.model_validate(found)
    except ValidationError as error:
        raise DataError(f"{path}: bad metadata: {error}") from error


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, each checked. Raises `DataError` with the file and row."""
    header = read_header(path)
    file = pq.ParquetFile(path)
    if not file.schema_arrow.remove_metadata().equals(schema(header.kind)):
        raise DataError(f"{path}: its columns are not those of {header.kind} rows")
    number = 0
    for group in range(file.num_row_groups):
        for values in file.read_row_group(group).to_pylist():
            row = KINDS[header.kind](**values)
            check(row, f"{path} row {number}")
            number += 1
            yield row


def write_rows(path: Path, header: Header, rows: Iterable[Row]) -> None:
    with RowWriter(path, header) as writer:
        for row in rows:
            writer.add(row)
        writer.close()


def check(row: Row, where: str) -> None:
    """Raises `DataError`: lists of other lengths, no tokens, weights and targets that are no
    numbers, a weight at a token that nothing predicts."""
    if isinstance(row, PairRow):
        _check_pair(row, where)
        return
    if not row.ids:
        raise DataError(f"{where}: ids: no tokens")
    names = ("ce", "rl", "advantage", "ref_kl", "logp", "logp_prox", "logp_ref", "verdict")
    for name in names if isinstance(row, TokenRow) else ("target", "weight"):
        values = getattr(row, name)
        if values and len(values) != len(row.ids):
            raise DataError(f"{where}: {name}: {len(values)} numbers for {len(row.ids)} tokens")
        unknown = name.startswith("logp") or name in ("target", "verdict")
        if any(_bad(v, unknown) for v in values):
            raise DataError(f"{where}: {name}: a number that is NaN or infinite")
        if name in ("ce", "rl", "ref_kl") and values and values[0]:
            raise DataError(f"{where}: {name}: the first token has a weight; nothing predicts it")
    name = "verdict" if isinstance(row, TokenRow) else "target"
    if any(t < 0 or t > 1 for t in getattr(row, name)):
        raise DataError(f"{where}: {name}: allowed are 0 to 1, and NaN for none")
    if isinstance(row, TokenRow) and any(v == v for v in row.verdict) and len(set(row.labels)) != 2:
        raise DataError(f"{where}: labels: {list(row.labels)}; two are needed for a verdict")


def _check_pair(row: PairRow, where: str) -> None:
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        if not getattr(row, name):
            raise DataError(f"{where}: {name}: no tokens")
    sides = (("chosen", row.chosen_ids), ("rejected", row.rejected_ids))
    for name, ids in [(f"{side}_{n}", i) for side, i in sides for n in ("mask", "logp_ref")]:
        values = getattr(row, name)
        if values and len(values) != len(ids):
            raise DataError(f"{where}: {name}: {len(values)} numbers for {len(ids)} tokens")
        if any(_bad(v, False) for v in values):
            raise DataError(f"{where}: {name}: a number that is NaN or infinite")
    if _bad(row.weight, False) or row.weight <= 0:
        raise DataError(f"{where}: weight: {row.weight}; allowed are numbers above 0")


def _bad(value: float, unknown: bool) -> bool:
    """Infinite, or NaN where that does not mean unknown."""
    return value in (float("inf"), float("-inf")) or (value != value and not unknown)
