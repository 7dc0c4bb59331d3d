"Alerts: each has its runbook and its place to go, and each comes and goes for the right reason."

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from docs_check import anchor_of
from typer.testing import CliRunner

from card_classifier.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
AMTOOL = shutil.which("amtool")
needs_amtool = pytest.mark.skipif(not AMTOOL, reason="needs amtool: apt-get install prometheus-alertmanager")
ROUTES = DEPLOY / "alertmanager" / "alertmanager.yaml"


def alerts() -> list[dict]:
    "The alerting rules."
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def sections() -> dict[str, str]:
    "The runbooks, by the anchor of their heading."
    page = json.loads((ROOT / "nbs" / "guides" / "22_runbooks.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown"]
    return {anchor_of(text.splitlines()[0][3:]): text for text in texts if text.startswith("## ")}


def test_every_alert_has_its_runbook_and_every_runbook_its_alert():
    address = "https://card-classifier.github.io/card_classifier/guides/22_runbooks.html#"
    found = sections()
    for rule in alerts():
        told = rule["annotations"]
        assert told.keys() == {"summary", "description", "runbook_url"} and all(told.values()), rule["alert"]
        assert told["runbook_url"] == address + rule["alert"].lower()
        text = found[rule["alert"].lower()]
        parts = ("What it means", "What users see", "First look", "Mend", "It is over when")
        assert [part for part in parts if f"**{part}" not in text] == []
        assert rule["labels"]["severity"] in ("page", "ticket")
    assert found.keys() == {rule["alert"].lower() for rule in alerts()}


def test_runbooks_name_commands_settings_and_metrics_that_there_are():
    text = "\n".join(sections().values())
    commands = set(re.findall(r"card-classifier ((?:[a-z]+ )*[a-z]+)(?=[ `\n])", text))
    assert len(commands) > 6
    for command in commands - {"version"}:
        known = CliRunner().invoke(app, [*command.split(), "--help"])
        assert known.exit_code == 0, f"{command}: {known.output}"
    helped = CliRunner().invoke(app, ["serve", "--help"], terminal_width=300, env={"COLUMNS": "300"}).output
    for option in re.findall(r"`(--(?:workers|ready|no-sync|drift)[a-z-]*)", text):
        assert option in helped, option
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "card_classifier").rglob("*.py"))
    for event in re.findall(r"grep ['\"]\"?([a-z][a-z ']+)\"?['\"] ?[|\n]", text):
        assert event in code, f"no event of the log says {event!r}"


@needs_amtool
def test_every_alert_has_somewhere_to_go():
    checked = subprocess.run([AMTOOL, "check-config", ROUTES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for severity, receiver in (("page", "on-call"), ("ticket", "tickets")):
        labels = [f"severity={severity}", "alertname=CardClassifierAvailability", "job=card-classifier"]
        command = [AMTOOL, "config", "routes", "test", "--config.file", ROUTES, *labels]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.strip() == receiver
    broken = ROUTES.read_text().replace("receiver: on-call", "receiver: nobody")
    command = [AMTOOL, "check-config", "/dev/stdin"]
    refused = subprocess.run(command, input=broken, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
