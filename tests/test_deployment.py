"The files of `deploy/`: schemas of Kubernetes and Compose, Prometheus' own checks, and only metrics that there are."

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from card_classifier.serving.telemetry import Metrics, SupervisorMetrics
from card_classifier.settings import ServeSettings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="needs promtool: apt-get install prometheus")
VARIABLES = {"CARD_CLASSIFIER_API_KEYS"} | {one.metadata["variable"] for one in dataclasses.fields(ServeSettings)}


def documents() -> dict[str, dict]:
    "What the manifests describe, by kind and name."
    found = [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]
    own = [one for one in found if not one["apiVersion"].startswith("ray.io/")]  # Its operator brings the schema
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in own}


@pytest.mark.parametrize("name", documents())
def test_manifests_are_what_kubernetes_takes(name):
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    document = documents()[name]
    validate.validate(document, validate.latest_version(), strict=True)
    misspelt = json.loads(json.dumps(document).replace('"spec"', '"spek"', 1))
    with pytest.raises(validate.ValidationError):
        validate.validate(misspelt, validate.latest_version(), strict=True)


def test_containers_can_write_nothing_but_their_volumes_and_are_probed():
    pods = [one["spec"]["template"]["spec"] for one in documents().values() if "template" in one["spec"]]
    assert len(pods) == 2
    for pod in pods:
        [container] = pod["containers"]
        guarded = container["securityContext"]
        assert guarded["readOnlyRootFilesystem"] and not guarded["allowPrivilegeEscalation"]
        assert guarded["capabilities"] == {"drop": ["ALL"]} and pod["securityContext"]["runAsNonRoot"]
        assert {"startupProbe", "readinessProbe"} <= container.keys()
    [serve] = [container for pod in pods for container in pod["containers"] if container["name"] == "serve"]
    assert pods[0]["terminationGracePeriodSeconds"] > ServeSettings().grace_seconds
    assert serve["livenessProbe"]["httpGet"]["path"] == "/health/live", "readiness is no reason to restart"
    assert {one["name"] for one in serve["env"]} <= VARIABLES


@pytest.mark.parametrize("name", ["compose.yaml", "compose.monitoring.yaml"])
def test_the_compose_files_are_what_compose_takes_and_as_closed(name):
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", DEPLOY / name]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    services = yaml.safe_load((DEPLOY / name).read_text())["services"]
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["healthcheck"]["test"]
        files = [one.split(":")[0] for one in service["volumes"] if one.startswith("./")]
        assert all((DEPLOY / file).exists() for file in files)
    if "serve" in services:
        assert set(services["serve"]["environment"]) <= VARIABLES


def queries() -> dict[str, str]:
    "Every query of the dashboard and of the alerts, by its title."
    board = json.loads((DEPLOY / "grafana" / "card-classifier.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    for annotation in board["annotations"]["list"]:
        found[f"annotation {annotation['name']}"] = annotation["expr"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    for number, rule in enumerate(rule for group in rules for rule in group["rules"]):
        found[f"{number} {rule.get('alert') or rule['record']}"] = rule["expr"]
    return found


def test_queries_name_only_metrics_and_labels_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("CARD_CLASSIFIER_SUPERVISOR_METRICS", str(tmp_path / "supervisor.prom"))
    SupervisorMetrics().publish()
    metrics, labels = {"card_classifier_metrics_files_damaged"}, {"job", "instance", "pid", "slo", "window"}
    for family in text_string_to_metric_families(Metrics().exposition().decode()):
        name = {"counter": f"{family.name}_total"}.get(family.type, family.name)
        metrics |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if family.type == "histogram" else {name}
    labels |= {"route", "status", "reason", "result", "le", "version", "stage", "card", "statistic", "task"}
    labels |= {"alertname", "alertstate", "severity"}
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    metrics |= {rule["record"] for group in rules for rule in group["rules"] if "record" in rule}
    for title, query in queries().items():
        named = set(re.findall(r"\bcard_classifier[_:][\w:]+", query))
        assert named <= metrics, f"{title}: {named - metrics}"
        assert named or re.match(r"up\{|absent\(up\{|vector|(count by .*)?ALERTS", query), title
        asked = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", query))
        for group in re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", query):
            asked |= {label.strip() for label in group.split(",")}
        assert asked <= labels, f"{title}: {asked - labels}"


@needs_promtool
def test_queries_and_alerts_are_what_prometheus_takes(tmp_path):
    plain = {"$__rate_interval": "5m", "$__range": "3h", "$job": "card-classifier", "$instance": ".*"}
    rules = []
    for number, query in enumerate(queries().values()):
        expression = functools.reduce(lambda text, pair: text.replace(*pair), plain.items(), query)
        rules.append({"record": f"dashboard:query_{number}", "expr": expression})
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for command in (
        ["check", "rules", tmp_path / "queries.yaml"],
        ["check", "config", DEPLOY / "prometheus" / "prometheus.yaml"],
        ["test", "rules", DEPLOY / "prometheus" / "rules_test.yaml", DEPLOY / "prometheus" / "rules_day_test.yaml"],
    ):
        checked = subprocess.run([PROMTOOL, *command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_the_guide_tells_operators_to_look_at_is_on_the_dashboard():
    guide = json.loads((ROOT / "nbs" / "guides" / "10_watch.ipynb").read_text(encoding="utf-8"))
    words = "\n".join("".join(cell["source"]) for cell in guide["cells"] if cell["cell_type"] == "markdown")
    named, shown = set(re.findall(r"`(card_classifier_\w+)", words)), " ".join(queries().values())
    assert len(named) > 8
    assert {name for name in named if name not in shown} == set()
