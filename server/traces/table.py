"""Traces as zstd Parquet.

Floats are float64 throughout: an engine in this process gives float32 values, but another's
log-probabilities are whatever decimals it printed. Split into byte streams, the zero bytes of a
float32-exact double compress to nothing, so that exactness costs no space. The free
dictionaries are JSON strings. The file's metadata carries the schema version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from server.errors import TraceError
from server.traces.codec import check_version, first
from server.traces.schema import SCHEMA_VERSION, Trace
from server.traces.spool import BEGINNING
from server.traces.summary import Head, Summary, Wanted

SUFFIX = ".parquet"
VERSION_KEY = b"ponder.schema_version"
JSON_FIELDS = (
    *("prompt_messages", "sampling", "strategy", "reward"),
    *("verify", "decisions", "budget"),
)
GROUP_NODES = 16_384  # nodes and
GROUP_TRACES = 256  # traces of a row group at most: what reading one trace costs

_IDS = pa.list_(pa.int32())
_SPAN = pa.struct(
    [
        pa.field("version", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
    ]
)
_PART = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("raw", pa.float64(), nullable=False),
    ]
)
NODE = pa.struct(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("parent", pa.int64()),
        pa.field("depth", pa.int64(), nullable=False),
        pa.field("sibling_index", pa.int64(), nullable=False),
        pa.field("key", _IDS, nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", _IDS, nullable=False),
        pa.field("token_source", pa.string(), nullable=False),
        pa.field("forced", pa.int64(), nullable=False),
        pa.field("logprobs", pa.list_(pa.float64())),
        pa.field("policy_version_spans", pa.list_(_SPAN), nullable=False),
        pa.field("prompt_ids", _IDS),
        pa.field("multiplicity", pa.int64(), nullable=False),
        pa.field("proposal", pa.string(), nullable=False),
        pa.field("behaviour", pa.string()),
        pa.field("fresh", pa.bool_(), nullable=False),
        pa.field("aside", pa.bool_(), nullable=False),
        pa.field("prm_raw", pa.float64()),
        pa.field("prm_agg", pa.float64()),
        pa.field("parts", pa.list_(pa.field("element", _PART, nullable=False)), nullable=False),
        pa.field("prior", pa.float64()),
        pa.field("visits", pa.int64(), nullable=False),
        pa.field("value_sum", pa.float64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("outcome", pa.float64()),
        pa.field("answer_norm", pa.string()),
    ]
)
_USAGE = pa.struct(
    [
        *(
            pa.field(name, pa.int64(), nullable=False)
            for name in (
                *("prompt", "prompt_computed", "prompt_cached", "policy", "kept", "discarded"),
                *("scorer_computed", "scorer_cached", "scorer_calls", "nodes"),
            )
        ),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
_VERSIONS = pa.struct(
    [
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("policy_version", pa.string(), nullable=False),
        pa.field("tokenizer_sha", pa.string()),
        pa.field("chat_template_sha", pa.string()),
        pa.field("scorer_id", pa.string(), nullable=False),
        pa.field("scorer_version", pa.string(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.string(), nullable=False),
        pa.field("trace_id", pa.string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("tenant", pa.string()),
        pa.field("problem_id", pa.string()),
        pa.field("consent", pa.bool_(), nullable=False),
        pa.field("redaction_status", pa.string(), nullable=False),
        pa.field("versions", _VERSIONS, nullable=False),
        pa.field("prompt_messages", pa.string(), nullable=False),
        pa.field("prompt_ids", _IDS, nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("reward", pa.string(), nullable=False),
        pa.field("verify", pa.string(), nullable=False),
        pa.field("decisions", pa.string(), nullable=False),
        pa.field("budget", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("nodes", pa.list_(pa.field("element", NODE, nullable=False)), nullable=False),
        pa.field("selected", pa.int64()),
        pa.field("answer", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("usage", _USAGE, nullable=False),
        pa.field("outcome", pa.float64()),
        pa.field("feedback", pa.float64()),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)
FLOATS = [
    "nodes.list.element.logprobs.list.element",
    *(f"nodes.list.element.{name}" for name in ("prm_raw", "prm_agg", "prior", "value_sum")),
]
HEAD_COLUMNS = [name for name in Head.model_fields if name != "usage"] + [
    f"usage.{name}" for name in _USAGE.names
]


class TableWriter:
    """Writes one Parquet file; durable when `close` returns. Use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")
        words = [c for c in _leaves(SCHEMA) if c not in FLOATS]
        self._out = pq.ParquetWriter(
            self._file,
            SCHEMA,
            compression="zstd",
            use_dictionary=words,
            use_byte_stream_split=FLOATS,
        )
        self._rows: list[dict[str, Any]] = []
        self._nodes = 0

    def add(self, trace: Trace) -> None:
        row = trace.model_dump()
        for name in JSON_FIELDS:
            row[name] = json.dumps(row[name], ensure_ascii=False, allow_nan=False)
        self._rows.append(row)
        self._nodes += len(trace.nodes)
        if self._nodes >= GROUP_NODES or len(self._rows) >= GROUP_TRACES:
            self._group()

    def _group(self) -> None:
        if self._rows:
            self._out.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows, self._nodes = [], 0

    def close(self) -> None:
        self._group()
        self._out.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.close()
        self.abandon()

    def abandon(self) -> None:
        """Close it as it is."""
        self._out.close()
        self._file.close()


class Table:
    """A Parquet file as read. Keeps the ids in memory, 40 bytes a trace, and which tenants and what
    time they are of.

    `opened` opens it; without it `path` is on this machine.
    """

    def __init__(self, path: Path, opened: Callable[[], Any] | None = None):
        self.path = path
        self._opened = opened or partial(pa.OSFile, str(path))
        with self._open() as file:
            self.oldest, self.newest = _span(file.metadata)
            columns = file.read(columns=["trace_id", "tenant"])
            self.ids = columns["trace_id"].combine_chunks()
            self._tenants = frozenset(columns["tenant"].unique().to_pylist())
            groups = range(file.num_row_groups)
            self._groups = [file.metadata.row_group(g).num_rows for g in groups]

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        with self._opened() as raw:
            try:
                file = pq.ParquetFile(raw)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise TraceError(f"{self.path}: corrupt Parquet file: {error}") from error
            version = (file.metadata.metadata or {}).get(VERSION_KEY)
            check_version(version.decode(errors="replace") if version else None, str(self.path))
            yield file

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, trace_id: str) -> int | None:
        row = pc.index(self.ids, trace_id).as_py()
        return None if row < 0 else row

    def read(self, row: int) -> Trace:
        group, within = 0, row
        while within >= self._groups[group]:
            within -= self._groups[group]
            group += 1
        with self._open() as file:
            found = self._group(file, group).slice(within, 1)
        return self._trace(found.to_pylist()[0], row)

    def may_have(self, wanted: Wanted) -> bool:
        """Whether a listing might show one of its traces; reads nothing."""
        since, tenants, after = wanted.since, wanted.tenants, wanted.after
        return (
            (since is None or self.newest >= since)
            and (tenants is None or not self._tenants.isdisjoint(tenants))
            and (after is None or self.oldest <= after[0])
        )

    def heads(self) -> list[Summary]:
        with self._open() as file:
            rows = file.read(columns=HEAD_COLUMNS).to_pylist()
        return [Summary.of(Head.model_validate(_unpack(row))) for row in rows]

    def __iter__(self) -> Iterator[Trace]:
        row = 0
        with self._open() as file:
            for group in range(file.num_row_groups):
                # A trace at a time: as Python objects a group takes twenty times its size.
                table = self._group(file, group)
                for within in range(len(table)):
                    yield self._trace(table.slice(within, 1).to_pylist()[0], row)
                    row += 1

    def _group(self, file: pq.ParquetFile, group: int) -> pa.Table:
        try:
            return file.read_row_group(group)
        except (pa.ArrowInvalid, OSError) as error:
            raise TraceError(f"{self.path}: corrupt row group {group}: {error}") from error

    def _trace(self, row: dict[str, Any], number: int) -> Trace:
        where = f"{self.path}: row {number}"
        check_version(row["schema_version"], where)
        try:
            return Trace.model_validate(_unpack(row))
        except ValidationError as error:
            raise TraceError(f"{where}: corrupt trace: {first(error)}") from error


def _unpack(row: dict[str, Any]) -> dict[str, Any]:
    """The free dictionaries of a row, from JSON."""
    return row | {name: json.loads(row[name]) for name in JSON_FIELDS if name in row}


def _span(metadata: pq.FileMetaData) -> tuple[datetime, datetime]:
    """The earliest and the latest `created_at`, from the footer alone."""
    column = SCHEMA.names.index("created_at")  # Parquet's own index too: those before are flat,
    # in every version of the schema
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    spans = [group.column(column).statistics for group in groups]
    moments = [moment.astimezone(UTC) for span in spans for moment in (span.min, span.max)]
    return min(moments, default=BEGINNING), max(moments, default=BEGINNING)


def _leaves(fields: Any, prefix: str = "") -> list[str]:
    """Parquet's names of the columns below some Arrow fields."""
    names: list[str] = []
    for f in fields:
        path, kind = prefix + f.name, f.type
        while pa.types.is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        names += _leaves(kind, f"{path}.") if pa.types.is_struct(kind) else [path]
    return names
