"""What the records of a loop's stages say of where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.published import KINDS, Kind
from trainer.loop.schedule import phase
from trainer.loop.state import Record
from trainer.passing import PASS

BASE, GATE = "0/base", "0/gate"


@dataclass(frozen=True, slots=True)
class Standing:
    stages: Mapping[str, Record]

    def base(self, kind: Kind) -> str:
        """The folder that served at first."""
        return str(self.stages[BASE][kind]["folder"])

    def now(self) -> dict[Kind, str]:
        """The folders of what serves: as promoted last, else the base."""
        serving: dict[Kind, str] = {k: self.base(k) for k in KINDS if k in self.stages[BASE]}
        for name, record in self.stages.items():
            if name.endswith("/publish"):
                serving |= {k: str(record[k]["folder"]) for k in KINDS if k in record}
        return serving

    def held(self) -> dict[str, Record]:
        """What the gate measured of what serves (the candidate accepted last, else the base), and
        of the base: rounds that are each worse within chance must not add up."""
        base = self.stages[GATE]
        accepted = [
            record["candidate"]
            for name, record in self.stages.items()
            if name.endswith("/gate") and record.get("accepted")
        ]
        return {"serving": accepted[-1], "base": base} if accepted else {"serving": base}

    def risen(self, rounds: int) -> list[float]:
        """pass@1 of the base and after each of so many rounds, as the gate measured it; where
        nothing was promoted it is what it was. Without a gate, as it was measured at last."""
        if GATE not in self.stages:
            return [self.stages[f"{n}/evaluation"][PASS] for n in range(rounds + 1)]
        figures = [self.stages[GATE][PASS]]
        for n in range(1, rounds + 1):
            verdict = self.stages[f"{n}/gate"]
            figures.append(verdict["candidate"][PASS] if verdict["accepted"] else figures[-1])
        return figures

    def phase(self, number: int, plateau: float, phases: int) -> int:
        """Of round `number`, from 1 on."""
        return phase(self.risen(number - 1), plateau, phases)
