"""What became of the traces that rows were to be made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from trainer.rows import Row
from trainer.tree import Tree


@dataclass
class Report:
    read: int = 0  # traces
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # traces, by the reason
    passed_over: Counter[str] = field(default_factory=Counter)  # what the objective had no use for
    versions: dict[str, None] = field(default_factory=dict)  # of the policies
    _used: set[str] = field(default_factory=set)

    def take(self, tree: Tree) -> None:
        spans = (s for n in tree.nodes for s in n.record.policy_version_spans if s.end > s.start)
        self.versions |= dict.fromkeys(s.version for s in spans)

    def add(self, row: Row) -> None:
        self.rows += 1
        self._used.add(row.trace_id)

    def as_dict(self) -> dict[str, Any]:
        return {
            "traces": self.read,
            "used": len(self._used),
            "rows": self.rows,
            "left_out": dict(sorted((+self.left_out).items())),
            "passed_over": dict(sorted((+self.passed_over).items())),
        }

    def nothing(self, locations: Sequence[str]) -> str:
        """What to say where no row was made."""
        where = ", ".join(locations)
        if not self.read:
            return f"{where}: no traces"
        why = [f"{n} x {reason}" for reason, n in (self.left_out + self.passed_over).items()]
        return f"{where}: no rows of {self.read} traces: {'; '.join(why) or 'nothing to learn'}"

    def table(self, out: Path) -> Table:
        table = Table(title=str(out), show_header=False, title_justify="left")
        table.add_column()
        table.add_column(justify="right")
        table.add_row("traces read", str(self.read))
        for reason, n in sorted((+self.left_out).items()):
            table.add_row(f"  left out: {reason}", str(n))
        table.add_row("traces used", str(len(self._used)))
        for reason, n in sorted((+self.passed_over).items()):
            table.add_row(f"  passed over: {reason}", str(n))
        table.add_row("rows", str(self.rows))
        return table
