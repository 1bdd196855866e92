"""Every value is described, and the README's table is true."""

from __future__ import annotations

import json
import tomllib

import yaml

from scripts.chart_readme import comments, readme, uncommented
from tests.chart.rendering import CHART, ROOT, SHAPES, Object

VALUES = (CHART / "values.yaml").read_text()


def test_every_value_has_a_comment() -> None:
    known = {path for path, _ in comments(VALUES)}
    assert uncommented(yaml.safe_load(VALUES), known) == []


def test_the_readme_s_table_is_true() -> None:
    """`make chart-golden` writes it anew."""
    text = (CHART / "README.md").read_text()
    assert text == readme(text, VALUES)


def test_the_readme_names_every_shape() -> None:
    text = (CHART / "README.md").read_text()
    assert [shape for shape in SHAPES if f"values/{shape}.yaml" not in text] == []


def test_the_schema_has_the_values_and_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert keys(schema, schema) == keys_of(yaml.safe_load(VALUES), schema, schema)


def resolved(node: Object, schema: Object) -> Object:
    if "$ref" not in node:
        return node
    found: Object = schema["definitions"][node["$ref"].rpartition("/")[2]]
    return found


def keys(node: Object, schema: Object, above: str = "") -> set[str]:
    """Of what the schema lists, where it takes nothing else."""
    node = resolved(node, schema)
    if "probe" in above.lower() or above.endswith((".resources", ".strategy")):
        return {above}  # Kubernetes' own: fewer are given
    if node.get("additionalProperties") is not False:
        return {above}
    below = node["properties"].items()
    return {found for key, inner in below for found in keys(inner, schema, f"{above}.{key}")}


def keys_of(values: object, node: Object, schema: Object, above: str = "") -> set[str]:
    """Of the values, as deep as the schema lists them."""
    node = resolved(node, schema)
    if above in keys(node, schema, above) or not isinstance(values, dict):
        return {above}
    return {
        found
        for key, inner in values.items()
        for found in keys_of(inner, node["properties"].get(key, {}), schema, f"{above}.{key}")
    }


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
