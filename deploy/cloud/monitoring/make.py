"""Makes the files of this folder for Google Cloud Monitoring from those for Prometheus and Grafana.

    python deploy/cloud/monitoring/make.py

Cloud Monitoring evaluates PromQL itself and records nothing, so recorded series are written out. Alerts on a window of
three days are left out: a policy looks back a day.
"""

import json
import re
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parent.parent
JOB = 'job="card-classifier"'  # The name of the collector's RunMonitoring
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = {
    (rule["record"], rule.get("labels", {}).get("slo", "")): rule["expr"] for rule in RULES if "record" in rule
}
UNCHECKED = RECORDED["card_classifier:drift_unchecked", ""]
FAST = ((14.4, "1h", "5m"), (6, "6h", "30m"))
SLOW = ((3, "1d", "2h"),)


def rate(slo: str, kind: str, window: str) -> str:
    "Bad or all requests a second over a window; for what is a matter of time, the part of it."
    expression = RECORDED[f"card_classifier:slo_{kind}:rate5m", slo]
    expression = expression.replace("card_classifier:drift_unchecked", UNCHECKED)
    if slo in ("availability", "latency"):
        return "(" + expression.replace("[5m]", f"[{window}]") + ")"
    return f"avg_over_time(({expression})[{window}:1m])"


def ratio(slo: str, window: str) -> str:
    "The part that was bad in a window."
    return f"{rate(slo, 'bad', window)} / {rate(slo, 'total', window)}"


def burns(slo: str, pairs: tuple) -> str:
    "Whether the budget burns too fast, in one of the pairs of windows."
    budget = float(RECORDED["card_classifier:slo_budget", slo].removeprefix("vector(").removesuffix(")"))
    conditions = [
        f"({ratio(slo, long)} > {times * budget:.4g} and {ratio(slo, short)} > {times * budget:.4g})"
        for times, long, short in pairs
    ]
    return "(" + " or ".join(conditions) + ")"


def written_out(expression: str) -> str:
    "An expression without recorded series."

    def burning(found: re.Match) -> str:
        return burns(found[2], FAST if found[1] == "fast" else SLOW)

    def averaged(found: re.Match) -> str:
        return rate(found[1], "bad", found[2])

    expression = re.sub(
        r'avg_over_time\(card_classifier:slo_bad:rate5m\{slo="(\w+)"\}\[(\w+)\]\)', averaged, expression)  # fmt: skip
    expression = re.sub(r'card_classifier:slo_burns_(fast|slowly)\{slo="(\w+)"\}', burning, expression)
    expression = re.sub(r'card_classifier:slo_(?:bad|total):rate5m\{slo="(\w+)"\}', r"\1", expression)
    expression = re.sub(
        r'card_classifier:slo_burn_rate\{[^}]*slo="(\w+)",window="(\w+)"\} > ([\d.]+)',
        lambda found: f"{ratio(found[1], found[2])} > {float(found[3]) * 0.005:.4g}", expression)  # fmt: skip
    return expression.replace("card_classifier:drift_unchecked", f"({UNCHECKED})")


def policy(rule: dict) -> dict:
    "An alerting rule as an alert policy."
    told, severity = rule["annotations"], rule["labels"]["severity"]
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"${metric_or_resource.labels.\1}", told["summary"])
    content = re.sub(r"\{\{ printf [^}]* \}\} times too fast", "too fast", told["description"])
    content = re.sub(r"\{\{ \$value \}\} ", "", content)
    query = written_out(rule["expr"])
    if rule["alert"] == "CardClassifierClock":
        query = query.replace("> 60", "> 600")  # Samples arrive late there, and the last one counts for five minutes
    condition = {
        "query": query,
        "duration": seconds(rule.get("for", "0s")),
        "evaluationInterval": "60s",
        "alertRule": rule["alert"],
        "ruleGroup": "card-classifier",
        "labels": {"severity": severity},
        "disableMetricValidation": True,  # The service may send its first metrics later
    }
    return {
        "displayName": f"{rule['alert']} ({severity})",
        "combiner": "OR",
        "severity": "CRITICAL" if severity == "page" else "WARNING",
        "userLabels": {"app": "card-classifier", "severity": severity},
        "conditions": [{"displayName": rule["alert"], "conditionPrometheusQueryLanguage": condition}],
        "documentation": {
            "subject": f"{rule['alert']}: card-classifier",
            "content": f"{summary}\n\n{content}",
            "mimeType": "text/markdown",
            "links": [{"displayName": "Runbook", "url": told["runbook_url"]}],
        },
        "alertStrategy": {"autoClose": "1800s"},
        "notificationChannels": ["${ON_CALL_CHANNEL}" if severity == "page" else "${TICKET_CHANNEL}"],
    }


def uptime_policy() -> dict:
    "Nobody answers from outside: three regions of the uptime check fail."
    found = policy(next(rule for rule in RULES if rule.get("alert") == "CardClassifierAway"))
    found["conditions"] = [{
        "displayName": "CardClassifierAway",
        "conditionThreshold": {
            "filter": 'metric.type = "monitoring.googleapis.com/uptime_check/check_passed" AND '
            'resource.type = "uptime_url" AND metric.labels.check_id = "${UPTIME_CHECK}"',
            "aggregations": [{
                "alignmentPeriod": "120s", "perSeriesAligner": "ALIGN_NEXT_OLDER",
                "crossSeriesReducer": "REDUCE_COUNT_FALSE", "groupByFields": ["resource.label.host"],
            }],
            "comparison": "COMPARISON_GT", "thresholdValue": 2, "duration": "120s", "trigger": {"count": 1},
        },
    }]  # fmt: skip
    found["documentation"]["content"] = "The service does not answer from three regions or more."
    return found


JOBS = {"CardClassifierDrift": "drift", "CardClassifierRetention": "retention"}  # Alerts that a failed job is, too


def job_policy(name: str, job: str) -> dict:
    "A job of Cloud Run failed: a policy of its own beside the alert of that cause, since one with PromQL stands alone."
    found = policy(next(rule for rule in RULES if rule.get("alert") == name))
    found["displayName"] = f"{name}Job (ticket)"
    found["conditions"] = [{
        "displayName": f"{name}Job",
        "conditionThreshold": {
            "filter": 'metric.type = "run.googleapis.com/job/completed_execution_count" AND '
            'resource.type = "cloud_run_job" AND metric.labels.result = "failed" AND '
            f'resource.labels.job_name = "card-classifier-{job}"',
            "aggregations": [{"alignmentPeriod": "300s", "perSeriesAligner": "ALIGN_DELTA"}],
            "comparison": "COMPARISON_GT", "thresholdValue": 0, "duration": "0s", "trigger": {"count": 1},
        },
    }]  # fmt: skip
    what = "found drift, or could not look for it" if job == "drift" else "could not remove what is past its days"
    content = f"The job card-classifier-{job} {what}: gcloud run jobs executions list --job card-classifier-{job}"
    found["documentation"] |= {"subject": f"{name}: the job failed", "content": content}
    return found


def seconds(duration: str) -> str:
    "A duration of Prometheus as Google Cloud writes it."
    return f"{int(duration[:-1]) * {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[duration[-1]]}s"


def charted(expression: str) -> str:
    "A query of the Grafana dashboard without its variables and without recorded series."
    plain = {'job="$job"': JOB, ',instance=~"$instance"': "", "$__rate_interval": "5m", "$__range": "1h"}
    for old, new in plain.items():
        expression = expression.replace(old, new)
    expression = re.sub(r"card_classifier:drift_unchecked\{[^}]*\}", f"({UNCHECKED})", expression)
    return expression


def chart(panel: dict) -> dict | None:
    "A panel as a widget; None for one on recorded series, or on alerts, which Cloud Monitoring shows itself."
    queries = [(charted(target["expr"]), target["legendFormat"]) for target in panel["targets"]]
    if any(re.search(r"card_classifier:|ALERTS", query) for query, _ in queries):
        return None
    sets = [
        {"timeSeriesQuery": {"prometheusQuery": query}, "plotType": "LINE",
         "legendTemplate": re.sub(r"\{\{(\w+)\}\}", r"${labels.\1}", legend)}
        for query, legend in queries
    ]  # fmt: skip
    return {"title": panel["title"], "xyChart": {"dataSets": sets}}


def objective_charts() -> list[dict]:
    "Error ratios of the last hour, each beside the one from which on somebody is paged."
    made = []
    for (name, slo), expression in RECORDED.items():
        if name == "card_classifier:slo_budget":
            budget = float(expression.removeprefix("vector(").removesuffix(")"))
            query = {"timeSeriesQuery": {"prometheusQuery": ratio(slo, "1h")}, "plotType": "LINE"}
            lines = [{"label": "page", "value": round(14.4 * budget, 4)}, {"label": "objective", "value": budget}]
            made.append({"title": f"Objective: {slo}", "xyChart": {"dataSets": [query], "thresholds": lines}})
    return made


def dashboard() -> dict:
    "The Grafana dashboard as one of Cloud Monitoring."
    board = json.loads((DEPLOY / "grafana" / "card-classifier.json").read_text())
    widgets = objective_charts() + [found for panel in board["panels"] if (found := chart(panel))]
    tiles = [
        {"xPos": 24 * (at % 2), "yPos": 14 * (at // 2), "width": 24, "height": 14, "widget": widget}
        for at, widget in enumerate(widgets)
    ]
    return {"displayName": "Card classifier", "mosaicLayout": {"columns": 48, "tiles": tiles}}


def files() -> dict[str, dict]:
    "What lies in this folder, by name."
    made = {}
    for rule in RULES:
        if "alert" in rule:
            name = re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"].removeprefix("CardClassifier")).lower()
            is_away = rule["alert"] == "CardClassifierAway"
            made[f"policies/{name}-{rule['labels']['severity']}.json"] = uptime_policy() if is_away else policy(rule)
    jobs = {f"policies/{job}-job-ticket.json": job_policy(name, job) for name, job in JOBS.items()}
    return made | jobs | {"dashboard.json": dashboard()}


if __name__ == "__main__":
    for old in (HERE / "policies").glob("*.json"):
        old.unlink()
    for name, content in files().items():
        (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
