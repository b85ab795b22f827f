"""The alert rules against recordings of drills: each fires in its own, and is silent in all others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus.drills import DRILLS, RECORDED, ROOT, RULES
from tests.support.pages import anchors
from tests.support.tables import names, tables

PROMTOOL = shutil.which("promtool")
RULE_LIST: list[dict[str, Any]] = [r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]]
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def replay(path: Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True, timeout=60)


@needs_promtool
@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_fires_its_alerts_and_no_other(name: str) -> None:
    file = RECORDED / f"{name}.yaml"
    (test,) = yaml.safe_load(file.read_text())["tests"]
    assert len(test["input_series"]) > 20
    (query,) = test["promql_expr_test"]
    expected = [sample["labels"] for sample in query["exp_samples"]]
    assert expected == [f'{{alertname="{alert}"}}' for alert in sorted(DRILLS[name].alerts)]
    run = replay(file)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_a_replay_can_fail(tmp_path: Path) -> None:
    text = (RECORDED / "broken.yaml").read_text().replace("../../../deploy/prometheus/alerts.yaml", str(RULES))
    (tmp_path / "as-it-is.yaml").write_text(text)
    (tmp_path / "another.yaml").write_text(text.replace('alertname="PkgErrors"', 'alertname="PkgTimeouts"'))
    assert replay(tmp_path / "as-it-is.yaml").returncode == 0
    failed = replay(tmp_path / "another.yaml")
    assert failed.returncode == 1 and 'got: {alertname="PkgErrors"}' in failed.stdout + failed.stderr


def test_each_alert_has_a_drill() -> None:
    assert {rule["alert"] for rule in RULE_LIST} == frozenset().union(*(drill.alerts for drill in DRILLS.values()))
    assert {path.stem for path in RECORDED.iterdir()} == set(DRILLS)


def test_the_page_lists_them() -> None:
    listed = [names(row["alert"])[0] for row in tables("logs-and-metrics.md", "alert", "fires if")]
    assert listed == [rule["alert"] for rule in RULE_LIST]


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: str(rule["alert"]))
def test_a_rule_tells_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors(ROOT / page)
    known = json.loads((ROOT / "docs" / "compatibility.json").read_text())["metrics"]
    named = re.findall(r"\b(?:pkg|http|db|process)_\w+", re.sub(r"\{[^}]*\}", "", rule["expr"]))
    named = [name for name in named if not name.startswith("db_client_connection_pool_name")]
    assert named and all(re.sub(r"_(total|bucket|count|sum)$", "", name) in base(known) for name in named)


def base(known: dict[str, Any]) -> set[str]:
    """The names of the families, without what time series have after them."""
    return {re.sub(r"_total$", "", name) for name in known}
