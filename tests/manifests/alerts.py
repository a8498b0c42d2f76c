"""Checks the alerts of the page *monitoring* with promtool, on what Prometheus scrapes in the lives of pods in
`alerts.yaml`, and all other expressions of the page and of the dashboard for their syntax:

    alerts.py PROMTOOL FOLDER PAGE DASHBOARD

The files for promtool are written into FOLDER. Exits with 1 and promtool's words when something is wrong.
"""

import json
import pathlib
import re
import subprocess
import sys

import yaml

from read import blocks, load

# Seconds, where a life has no others.
SCRAPE, EVALUATE, EVERY = 15, 15, 5
TARGET = {"namespace": "projectcontour", "pod": "envoy-x7k2p", "container": "shutdown-manager", "job": "envoy"}
PHASES = "idle awaiting_envoy_hook drain_delay failing_health_checks check_delay waiting_for_connections ended".split()
STATES = "live draining starting not_responding never_seen".split()
KINDS = "refused timeout status protocol too_long content other".split()
# Prometheus marks the series of a target that is gone after two more intervals, and shows them until then.
INTERVALS_UNTIL_STALE = 2
# How long a test goes on after the end of a pod.
AFTERWARDS = 180


def promtool(program, *arguments):
    run = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, f"promtool {' '.join(map(str, arguments))}:\n{run.stdout}{run.stderr}"
    return run.stdout + run.stderr


def one(names, name):
    return {value: int(value == name) for value in names}


class Life:
    """A pod's life, second by second."""

    def __init__(self, changes, poll_interval):
        self.changes, self.poll_interval = changes, poll_interval
        self.now = {}
        self.reset()

    def reset(self):
        self.polls, self.errors, self.last_poll = 0, dict.fromkeys(KINDS, 0), None

    def pass_second(self, second):
        self.now |= {"restarted": False} | self.changes.get(second, {})
        if self.now["restarted"]:
            self.reset()
        kind = self.now["polls"]
        if kind == "none" or second % self.poll_interval:
            return
        self.polls += 1
        if kind == "ok":
            self.last_poll = second
        else:
            self.errors[kind] += 1

    def metrics(self):
        """Returns what a scrape finds: values by name and label, without what is absent."""
        now = self.now
        metrics = {("phase", "phase", name): value for name, value in one(PHASES, now["phase"]).items()}
        metrics |= {("envoy_state", "state", name): value for name, value in one(STATES, now["state"]).items()}
        metrics |= {("poll_errors_total", "kind", kind): count for kind, count in self.errors.items()}
        plain = {
            "polls_total": self.polls,
            "open_connections": now.get("open"),
            "holding": now.get("open"),
            "threshold_connections": now["threshold"],
            "drain_start_timestamp_seconds": now.get("start"),
            "drain_deadline_timestamp_seconds": now.get("deadline"),
            "last_poll_timestamp_seconds": self.last_poll,
        }
        return metrics | {(name, "", ""): value for name, value in plain.items() if value is not None}


def is_gone(changes):
    return any(change.get("gone") for change in changes.values())


def scrapes(changes, interval, poll_interval):
    """Returns each series with its values, one an interval, in promtool's notation."""
    gone = is_gone(changes)
    pod = Life(changes, poll_interval)
    found = []
    for second in range(max(changes) + 1):
        pod.pass_second(second)
        if second % interval == 0:
            found.append({} if pod.now.get("gone") else pod.metrics())
    if gone:
        found += [{}] * INTERVALS_UNTIL_STALE
    series = {}
    for key in dict.fromkeys(key for scrape in found for key in scrape):
        values = []
        for index, scrape in enumerate(found):
            # What a scrape no longer has is stale at once; what is not scraped is stale later.
            lost = index and key in found[index - 1] and scrape
            values.append(scrape.get(key, "stale" if lost else "_"))
        if gone:
            values.append("stale")
        series[selector(key)] = " ".join(map(str, values))
    return series


def selector(key):
    name, label, value = key
    labels = TARGET | ({label: value} if label else {})
    return f"envoy_shutdown_{name}" + labels_of(labels)


def labels_of(labels):
    return "{" + ", ".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def rendered(life, rule, second):
    """Returns how promtool expects the alert in this life: with its labels, and what they make of its annotations."""
    labels = TARGET | rule["labels"]
    if "$labels.state" in str(rule["annotations"]):
        labels["state"] = [change["state"] for at, change in life["life"].items() if at <= second and "state" in change][-1]
    fill = lambda text: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
    annotations = {name: fill(text) for name, text in rule["annotations"].items()}
    alert = {"exp_labels": labels, "exp_annotations": annotations}
    return {"eval_time": f"{second}s", "alertname": rule["alert"], "exp_alerts": [alert]}


def tests(life, rules):
    """Returns promtool's tests of one life: at each evaluation, the alerts that fire."""
    step = life.get("evaluate", EVALUATE)
    fires = life.get("fires", {})
    assert fires.keys() <= {rule["alert"] for rule in rules}, f"{life['name']}: no such alert"
    end = max([*life["life"], *(last for _, last in fires.values())])
    end += AFTERWARDS if is_gone(life["life"]) else 0
    firing = []
    for second in range(0, end + 1, step):
        alerts = [alert for alert, (first, last) in sorted(fires.items()) if first <= second <= last]
        firing.append({
            "expr": 'count by (alertname, pod) (ALERTS{alertstate="firing"})',
            "eval_time": f"{second}s",
            "exp_samples": [
                {"labels": labels_of({"alertname": alert, "pod": TARGET["pod"]}), "value": 1} for alert in alerts
            ],
        })
    scrape = life.get("scrape", SCRAPE)
    series = scrapes(life["life"], scrape, life.get("every", EVERY))
    test = {
        "name": life["name"],
        "interval": f"{scrape}s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": firing,
        "alert_rule_test": [
            rendered(life, rule, fires[rule["alert"]][0]) for rule in rules if rule["alert"] in fires
        ],
    }
    return {"rule_files": ["rules.yaml"], "evaluation_interval": f"{step}s", "tests": [test]}


def checked_rules(page):
    """Returns the groups of the page's PrometheusRule."""
    manifests = [manifest for language, block in blocks(page) if language == "yaml" for manifest in load(block)]
    (manifest,) = [one for one in manifests if isinstance(one, dict) and one.get("kind") == "PrometheusRule"]
    return manifest["spec"]["groups"]


def expressions(page, dashboard):
    """Returns the page's other expressions, and those of the dashboard."""
    yield from (block for language, block in blocks(page) if language == "promql")
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def plain(expression):
    """Puts values for Grafana's variables."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h")


def main(program, folder, page, dashboard):
    folder = pathlib.Path(folder)
    page = pathlib.Path(page).read_text()
    dashboard = json.loads(pathlib.Path(dashboard).read_text())
    write = lambda name, content: (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))

    groups = checked_rules(page)
    rules = [rule for group in groups for rule in group["rules"]]
    write("rules.yaml", {"groups": groups})
    promtool(program, "check", "rules", "--lint=all", "--lint-fatal", folder / "rules.yaml")

    recorded = [{"record": f"expression:{n}", "expr": plain(e)} for n, e in enumerate(expressions(page, dashboard))]
    assert len(recorded) >= 7, f"{len(recorded)} expressions"
    write("expressions.yaml", {"groups": [{"name": "expressions", "rules": recorded}]})
    promtool(program, "check", "rules", "--lint=all", "--lint-fatal", folder / "expressions.yaml")

    lives = yaml.safe_load(pathlib.Path(__file__).with_name("alerts.yaml").read_text())
    fired = {alert for life in lives for alert in life.get("fires", {})}
    assert fired == {rule["alert"] for rule in rules}, f"only {fired} fire in a test"
    files = []
    for life in lives:
        files.append(folder / (re.sub(r"\W+", "-", life["name"]) + ".yaml"))
        write(files[-1].name, tests(life, rules))
    promtool(program, "test", "rules", *files)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"{error}")
