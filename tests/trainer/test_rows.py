"""Files of rows: written whole or not at all, and refused by name."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.errors import DataError
from trainer.rows import (
    METADATA,
    Header,
    PairRow,
    Row,
    RowWriter,
    ScoreRow,
    TokenRow,
    read_header,
    read_rows,
    write_rows,
)

TOKENS = TokenRow("t", "p", [1, 2, 3], ce=[0.0, 1.0, 0.5], logp=[nan, -0.5, nan], version="v1")
SCORES = ScoreRow("t", "p", [1, 2], target=[nan, 0.25])
PAIRS = PairRow("t", "p", [1], [2, 3], [4], chosen_mask=[1.0, 0.0])


def header(kind: Any = "tokens") -> Header:
    return Header(
        kind=kind,
        objective={"kind": "sft"},
        model_id="m",
        tokenizer_sha="s",
        versions=("v1",),
        report={},
    )


@pytest.mark.parametrize("row", [TOKENS, SCORES, PAIRS], ids=lambda r: r.kind)
def test_round_trip(tmp_path: Path, row: Row) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, header(row.kind), [row] * 3)
    again = list(read_rows(path))
    # NaN is not equal to itself.
    assert [repr(plain(r)) for r in again] == [repr(plain(row))] * 3
    assert read_header(path) == header(row.kind)


def plain(row: Row) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return {k: list(v) if isinstance(v, list | tuple) else v for k, v in values.items()}


def test_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, header(), [])
    assert list(read_rows(path)) == []


def test_what_is_left_by_an_error_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, header(), [TOKENS])
    with pytest.raises(DataError, match="row 1: ids"), RowWriter(path, header()) as writer:
        writer.add(TOKENS)
        writer.add(TokenRow("t", "p", []))
    assert len(list(read_rows(path))) == 1  # what stood there stands there still
    assert [f.name for f in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing/rows\.parquet: cannot be written"):
        RowWriter(tmp_path / "missing" / "rows.parquet", header())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (TokenRow("t", "p", [1, 2], ce=[0]), "ce: 1 numbers for 2 tokens"),
        (TokenRow("t", "p", [1, 2], ce=[0, nan]), "ce: a number that is NaN or infinite"),
        (TokenRow("t", "p", [1, 2], rl=[0, 1], advantage=[0, nan]), "advantage: a number"),
        (TokenRow("t", "p", [1, 2], logp=[nan, -inf]), "logp: a number"),
        (TokenRow("t", "p", [1, 2], rl=[1, 1]), "rl: the first token has a weight"),
        (ScoreRow("t", "p", [1], target=[1.5]), "target: allowed are 0 to 1"),
        (ScoreRow("t", "p", [1], target=[inf]), "target: a number"),
        (PairRow("t", "p", [1], [2], []), "rejected_ids: no tokens"),
        (PairRow("t", "p", [1], [2], [3], chosen_mask=[1, 1]), "chosen_mask: 2 numbers"),
        (PairRow("t", "p", [1], [2], [3], weight=0), "weight: 0"),
    ],
)
def test_bad_rows(tmp_path: Path, row: Row, complaint: str) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(DataError, match=rf"rows\.parquet row 0: {complaint}"):
        write_rows(path, header(row.kind), [row])
    assert not path.exists()


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_header(path)
    write_rows(path, header(), [TOKENS] * 9)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"rows\.parquet: not a whole Parquet file"):
        list(read_rows(path))
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="not a file of rows"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ('{"schema_version": "9"}', "rows of schema 9; this trainer reads 2"),
        ('{"schema_version": "1"}', "rows of schema 1; this trainer reads 2"),
        ('{"schema_version": "2"}', "bad metadata"),
    ],
)
def test_unknown_metadata(tmp_path: Path, metadata: str, complaint: str) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"x": [1]}).replace_schema_metadata({METADATA: metadata.encode()})
    pq.write_table(table, path)
    with pytest.raises(DataError, match=complaint):
        read_header(path)


def test_columns_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    text = header("pairs").model_dump_json().encode()
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({METADATA: text}), path)
    with pytest.raises(DataError, match="its columns are not those of pairs rows"):
        list(read_rows(path))
