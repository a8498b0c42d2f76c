"""Runs the log rules of the page *monitoring* on the log of a sidecar, and prints which of them fire:

    logs.py PAGE LOG

Of LogQL it knows what the page uses. The page's pipe to grep is run too: it must print a line if and only if
a rule fires. Exits with 1 and a sentence when something is wrong.
"""

import pathlib
import re
import subprocess
import sys

from read import blocks, load

EXPRESSION = re.compile(
    r"sum by \(namespace, pod\) \(count_over_time\("
    r'\{container="shutdown-manager"\}((?: \|~ `[^`]+`)+) \[\d+m\]\)\) > 0\n'
)


def rules(page):
    """Returns the regular expressions that a line must match, by alert."""
    documents = [document for language, block in blocks(page) if language == "yaml" for document in load(block)]
    (groups,) = [document["groups"] for document in documents if isinstance(document, dict) and "groups" in document]
    found = {}
    for rule in (rule for group in groups for rule in group["rules"]):
        assert rule.keys() == {"alert", "expr", "labels", "annotations"}, f"{rule.keys()}"
        expression = EXPRESSION.fullmatch(rule["expr"])
        assert expression, f"this test cannot read {rule['expr']}"
        found[rule["alert"]] = [re.compile(part) for part in re.findall(r"`([^`]+)`", expression[1])]
    return found


def pattern(page):
    """Returns what the page gives to grep."""
    (found,) = [grep for language, block in blocks(page) for grep in re.findall(r"grep -E '([^']+)'", block)]
    return found


def main(page, log):
    page = pathlib.Path(page).read_text()
    lines = pathlib.Path(log).read_text().splitlines()
    assert lines, "an empty log"
    fired = {}
    for alert, parts in rules(page).items():
        fired[alert] = [line for line in lines if all(part.search(line) for part in parts)]
    expected = [line for line in lines if any(line in matched for matched in fired.values())]
    grep = subprocess.run(["grep", "-E", pattern(page), log], capture_output=True, text=True)
    assert grep.stdout.splitlines() == expected, f"grep prints {grep.stdout}, and the rules match {expected}"
    for alert, matched in sorted(fired.items()):
        if matched:
            print(alert, len(matched))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"{error}")
