"""What deploy/ and docker-compose.yml name is there: settings and metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "seqserve.json"
# What a counter and a histogram are called by in a query.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def metric_names() -> set[str]:
    return {
        family.name + suffix
        for family in Metrics().registry.collect()
        for suffix in SUFFIXES.get(family.type, ("",))
    }


def test_every_setting_that_the_deployment_names_is_one() -> None:
    files = [ROOT / "docker-compose.yml", *(p for p in (ROOT / "deploy").rglob("*") if p.is_file())]
    named = {
        name.lower()
        for path in files
        for name in re.findall(rf"{PREFIX}([A-Z][A-Z_]*)", path.read_text())
    }
    assert named
    assert named - set(Settings.__slots__) == set()


def test_every_panel_asks_for_metrics_that_are_there() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    known = metric_names()
    for panel in panels:
        for target in panel["targets"]:
            asked = set(re.findall(r"\b(?:seqserve|process)_\w+", target["expr"]))
            assert asked, panel["title"]
            assert asked - known == set(), panel["title"]


def test_every_metric_that_the_deployment_speaks_of_is_there() -> None:
    spoken = set(re.findall(r"\bseqserve_\w+", (ROOT / "deploy" / "README.md").read_text()))
    assert spoken - metric_names() == set()
