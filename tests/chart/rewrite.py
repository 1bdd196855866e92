"""`make chart-golden`: the README's table and the golden files anew, from the chart as it is."""

from __future__ import annotations

from scripts import chart_readme
from tests.chart.rendering import EVERY, text
from tests.chart.test_rendered import GOLDEN


def main() -> None:
    chart_readme.main()
    GOLDEN.mkdir(exist_ok=True)
    for stale in GOLDEN.iterdir():
        stale.unlink()
    for shape in EVERY:
        (GOLDEN / f"{shape}.yaml").write_text(text(shape))


if __name__ == "__main__":
    main()
