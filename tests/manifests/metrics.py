"""Reads scrapes of running sidecars as Prometheus would, has promtool check them, and compares them with the table
of metrics in the page *monitoring*, and with what its expressions and those of the dashboard name:

    metrics.py PROMTOOL PAGE DASHBOARD SCRAPE...

The scrapes are in the order in which they were made: the first is of a sidecar that has never seen an Envoy, the
others of one that drains.
Exits with 1 and a sentence when something differs.
"""

import json
import pathlib
import re
import subprocess
import sys
import time

from prometheus_client.parser import text_string_to_metric_families

from alerts import checked_rules, expressions

PREFIX = "envoy_shutdown_"
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
UNITS = {"s": "seconds", "bytes": "bytes", "connections": "connections"}


def table(page):
    """Returns the table's rows by name: labels, type, unit, meaning, and when it is absent."""
    rows = {}
    for line in page.splitlines():
        row = re.fullmatch(r"\| `(envoy_shutdown_\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (\w*) ?\| (.*) \| (.*?) ?\|", line)
        if row:
            name, labels, kind, unit, meaning, absent = row.groups()
            assert name not in rows, f"{name} twice"
            rows[name] = (set((labels or "").split(",")) - {""}, kind, unit, meaning, absent)
    return rows


def phases(page):
    (section,) = re.findall(r"^## Phases$(.*?)^## ", page, re.S | re.M)
    return re.findall(r"^\| `(\w+)` \|", section, re.M)


class Scrape:
    """What one scrape has: families by name, as the table has them, and their samples."""

    def __init__(self, text):
        self.families, self.samples = {}, {}
        for family in text_string_to_metric_families(text):
            # The parser takes the suffix from a counter's name.
            name = family.name + ("_total" if family.type == "counter" else "")
            assert name not in self.families, f"{name} twice"
            assert family.documentation.endswith("."), f"{name} has no help"
            self.families[name] = family.type
            self.samples[name] = family.samples
            allowed = [family.name + suffix for suffix in SUFFIXES[family.type]]
            assert {sample.name for sample in family.samples} <= set(allowed), f"samples of {name}"
            series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
            assert len(set(series)) == len(series), f"{name} has a series twice"
            if family.type == "histogram" and family.samples:
                self.check_histogram(family)

    def check_histogram(self, family):
        values = lambda suffix: [s for s in family.samples if s.name == family.name + suffix]
        buckets = sorted((float(bucket.labels["le"]), bucket.value) for bucket in values("_bucket"))
        counts = [count for _, count in buckets]
        assert counts == sorted(counts), f"{family.name}: buckets are not cumulative: {buckets}"
        (count,), (total,) = values("_count"), values("_sum")
        assert buckets[-1] == (float("inf"), count.value), f"{family.name}: the last bucket is not the count"
        assert (total.value > 0) == (count.value > 0), f"{family.name}: {total} of {count}"

    def values(self, name, label):
        return {sample.labels[label] for sample in self.samples[name] if label in sample.labels}


def check_rows(rows, scrapes):
    for name, (labels, kind, unit, meaning, absent) in rows.items():
        assert name.endswith("_total") == (kind == "counter"), f"the name of {name} does not fit a {kind}"
        ending = name.removesuffix("_total")
        if unit in UNITS and not (kind == "counter" and unit == "connections"):
            assert ending.endswith("_" + UNITS[unit]), f"{name} does not end in its unit, {UNITS[unit]}"
        for scrape in scrapes:
            assert scrape.families[name] == kind, f"{name} is a {scrape.families[name]}"
            for sample in scrape.samples[name]:
                found = sample.labels.keys() - {"le"}
                assert found == labels, f"{name} has the labels {found}, in the table {labels}"
        there = [bool(scrape.samples[name]) for scrape in scrapes]
        assert any(there), f"{name} is in no scrape"
        assert absent or all(there), f"{name} is absent from some scrape, and the table does not say when"
        assert not absent or not all(there), f"{name} is never absent, and the table says when it is: {absent}"
        # What the sidecar itself names is in the table, or the page is that has it.
        for label in labels & {"state", "outcome", "route", "kind"} if "][" not in meaning else ():
            for value in set().union(*(scrape.values(name, label) for scrape in scrapes)):
                assert f"`{value}`" in meaning, f"{name}: the table does not name {value}"


def check_values(scrapes):
    """Checks that counters count up, that one phase and one state is in force, and that times are times."""
    for scrape in scrapes:
        for name, samples in scrape.samples.items():
            for sample in samples:
                if name.endswith("_timestamp_seconds"):
                    in_force = sample.value > time.time() if "deadline" in name else sample.value <= time.time() + 1
                    assert in_force and abs(sample.value - time.time()) < 7200, f"{sample} at {time.time()}"
            if name in (PREFIX + "phase", PREFIX + "envoy_state"):
                assert sorted({sample.value for sample in samples}) == [0, 1], f"{samples}"
                assert sum(sample.value for sample in samples) == 1, f"{samples}"
    # The first is of another sidecar.
    for before, after in zip(scrapes[1:], scrapes[2:]):
        values = {(s.name, *sorted(s.labels.items())): s.value for samples in after.samples.values() for s in samples}
        for name, kind in before.families.items():
            for sample in before.samples[name] if kind != "gauge" else []:
                assert values[sample.name, *sorted(sample.labels.items())] >= sample.value, f"{sample} fell"


def names(expression):
    return set(re.findall(rf"\b{PREFIX}\w+", expression))


def check_expressions(found, rows, scrape):
    """Checks that the expressions name metrics that exist, and labels and values that they have."""
    known = {}
    for name, (labels, kind, *_) in rows.items():
        family = name.removesuffix("_total") if kind == "counter" else name
        known |= {family + suffix: (name, labels) for suffix in SUFFIXES[kind]}
    for expression in found:
        assert names(expression) <= known.keys(), f"no such metric: {names(expression) - known.keys()}"
        for series, matchers in re.findall(rf"\b({PREFIX}\w+)\{{(.*?)\}}", expression):
            name, labels = known[series]
            for label, operator, value in re.findall(r'(\w+)(=~?)"(.*?)"', matchers):
                if label in ("namespace", "pod"):
                    continue
                assert label in labels, f"{name} has no label {label}"
                values = set(value.split("|")) if operator == "=~" else {value}
                there = scrape.values(name, label)
                assert values <= there, f"{name} has no {label} {values - there}, but {there}"


def check_mappings(dashboard, rows):
    """Checks that the panels of phases and states show each number as the name that has it."""
    shown = 0
    for panel in dashboard["panels"]:
        for mapping in panel["fieldConfig"]["defaults"].get("mappings", []):
            (target,) = panel["targets"]
            factors = re.findall(r'\{\w+="(\w+)", .*?\} \* (\d)', target["expr"])
            names = {number: option["text"] for number, option in mapping["options"].items()}
            assert names == {"0": names["0"]} | {number: name for name, number in factors}, f"{panel['title']}: {names}"
            shown |= {"idle": 1, "live": 2}[names["0"]]
            if names["0"] == "idle":
                assert list(names.values()) == rows, f"{names}, but the page has {rows}"
    assert shown == 3, "the dashboard lacks the phases or the states"


def check_layout(dashboard):
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1)), "the panels' ids"
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells) and max(cells)[0] < 24, "panels overlap"


def main(promtool, page, dashboard, *files):
    page = pathlib.Path(page).read_text()
    dashboard = json.loads(pathlib.Path(dashboard).read_text())
    texts = [pathlib.Path(file).read_text() for file in files]
    for text in texts:
        run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert run.returncode == 0, f"promtool check metrics: {run.stdout}{run.stderr}\n{text}"
    scrapes = [Scrape(text) for text in texts]

    rows = table(page)
    for scrape in scrapes:
        found = scrape.families.keys()
        expected = rows.keys()
        assert found == expected, f"only in the program: {found - expected}; only in the page: {expected - found}"
    check_rows(rows, scrapes)
    check_values(scrapes)
    in_force = scrapes[-1].values(PREFIX + "phase", "phase")
    assert set(phases(page)) == in_force, f"the page has the phases {phases(page)}, the program {in_force}"

    rules = [rule["expr"] for group in checked_rules(page) for rule in group["rules"]]
    check_expressions([*rules, *expressions(page, dashboard)], rows, scrapes[-1])
    check_mappings(dashboard, phases(page))
    check_layout(dashboard)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"{error}")
