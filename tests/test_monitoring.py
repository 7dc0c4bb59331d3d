"Alerts: each has its runbook and its place to go, and each comes and goes for the right reason."

import contextlib
import http.server
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml
from alerting import PROGRAMS, shortened, watching
from postgres import free_port, postgres_programs, running_postgres
from test_api import encoded, numbers, serving, wait_for
from test_watching import coloured, watched_bundle  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from card_classifier.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
AMTOOL = shutil.which("amtool")
needs_amtool = pytest.mark.skipif(not AMTOOL, reason="needs amtool: apt-get install prometheus-alertmanager")
needs_both = pytest.mark.skipif(
    None in PROGRAMS, reason="needs both: apt-get install --no-install-recommends prometheus prometheus-alertmanager"
)
ROUTES = DEPLOY / "alertmanager" / "alertmanager.yaml"


def alerts() -> list[dict]:
    "The alerting rules."
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def sections() -> dict[str, str]:
    "The runbooks, by the anchor of their heading."
    page = json.loads((ROOT / "nbs" / "guides" / "17_runbooks.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown"]
    return {text.splitlines()[0][3:].lower(): text for text in texts if text.startswith("## ")}


def test_every_alert_has_its_runbook_and_every_runbook_its_alert():
    address = "https://card-classifier.github.io/card_classifier/guides/17_runbooks.html#"
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


CLOUD = DEPLOY / "cloud" / "monitoring"
FILES = sorted(str(path.relative_to(CLOUD)) for path in CLOUD.rglob("*.json"))


def google_class(name):
    "The class of Google's that a file of Cloud Monitoring has to fit."
    monitoring = pytest.importorskip("google.cloud.monitoring_v3")
    kinds = {
        "dashboard": pytest.importorskip("google.cloud.monitoring_dashboard_v1").Dashboard,
        "uptime": monitoring.UptimeCheckConfig,
        "channel": monitoring.NotificationChannel,
    }
    return kinds.get(name.split("-")[0].removesuffix(".json"), monitoring.AlertPolicy)


def parsed(kind, content):
    "A file as Google's class has it; raises for fields that there are not."
    from google.protobuf.json_format import ParseDict

    return kind(ParseDict(content, kind.pb()(), ignore_unknown_fields=False))


@pytest.mark.parametrize("name", FILES)
def test_files_for_google_cloud_are_what_its_classes_take(name):
    from google.protobuf.json_format import ParseError

    kind, content = google_class(name), json.loads((CLOUD / name).read_text())
    made = parsed(kind, content)
    assert made.display_name
    with pytest.raises(ParseError):
        parsed(kind, content | {"displayNames": ""})
    if name.startswith("policies/"):
        [condition] = made.conditions
        assert made.documentation.links[0].url.rpartition("#")[2] in sections()
        assert condition.condition_threshold.filter or condition.condition_prometheus_query_language.query
        assert list(made.notification_channels) in (["${ON_CALL_CHANNEL}"], ["${TICKET_CHANNEL}"])


def test_every_alert_is_a_policy_of_google_cloud_and_the_files_are_fresh():
    made = runpy.run_path(str(CLOUD / "make.py"))["files"]()
    written = {name: json.loads((CLOUD / name).read_text()) for name in made}
    assert written == made, "run deploy/cloud/monitoring/make.py"
    assert set(FILES) == set(made) | {"uptime.json", "channel-on-call.json", "channel-tickets.json"}
    told = {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}
    told |= {("CardClassifierDriftJob", "ticket"), ("CardClassifierRetentionJob", "ticket")}
    assert {tuple(made[name]["displayName"].rstrip(")").split(" (")) for name in made if "policies" in name} == told


def test_every_scheduled_job_that_fails_is_told():
    schedules = (DEPLOY / "cloud" / "infrastructure" / "schedules.tf").read_text()
    jobs = re.findall(r'^    (\w+) += "[\d*]', schedules, re.MULTILINE)
    assert jobs
    for job in jobs:
        made = json.loads((CLOUD / "policies" / f"{job}-job-ticket.json").read_text())
        [condition] = made["conditions"]
        assert f'"card-classifier-{job}"' in condition["conditionThreshold"]["filter"]


def test_the_collector_of_cloud_run_names_the_job_that_the_queries_ask_for():
    collector = yaml.safe_load((DEPLOY / "cloud" / "collector.yaml").read_text())
    assert collector["metadata"]["name"] == "card-classifier"  # It becomes the label `job`
    [port] = re.findall(r"containerPort: (\d+)", (DEPLOY / "cloud" / "service.yaml").read_text())
    assert [(str(one["port"]), one["path"]) for one in collector["spec"]["endpoints"]] == [(port, "/metrics")]
    asked = {job for name in FILES for job in re.findall(r'job=\\"([\w-]+)', (CLOUD / name).read_text())}
    assert asked == {collector["metadata"]["name"]}


def queries_in(content):
    "The PromQL in a file's content, however deep."
    if isinstance(content, list):
        return [query for one in content for query in queries_in(one)]
    if not isinstance(content, dict):
        return []
    own = [value for key, value in content.items() if key in ("query", "prometheusQuery")]
    return own + queries_in(list(content.values()))


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool: apt-get install prometheus")
def test_queries_for_google_cloud_are_promql_without_recorded_series(tmp_path):
    queries = [query for name in FILES for query in queries_in(json.loads((CLOUD / name).read_text()))]
    assert len(queries) > 40
    assert [query for query in queries if "$" in query or "card_classifier:" in query] == []
    rules = [{"record": f"cloud:query_{at}", "expr": query} for at, query in enumerate(queries)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "cloud", "rules": rules}]}))
    command = ["promtool", "check", "rules", tmp_path / "queries.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_sent_to_google_cloud_names_channels_and_check():
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PROJECT": "a-project", "HOST": "cards.example.org",
                   "ON_CALL_ADDRESS": 'on"call@example.org', "TICKET_ADDRESS": "tickets@example.org"}  # fmt: skip
    done = subprocess.run([CLOUD / "apply.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    start, *requests = done.stderr.split("POST https://monitoring.googleapis.com/")
    bodies = [json.loads(request.split("\n", 1)[1]) for request in requests]
    assert start == "" and len(bodies) == len(FILES)
    assert bodies[0]["labels"] == {"email_address": 'on"call@example.org'}
    assert bodies[4]["notificationChannels"][0].startswith("projects/a-project/")
    assert set(re.findall(r"\$\{([\w.]+)", done.stderr)) <= {"metric_or_resource.labels.instance",
        "metric_or_resource.labels.job", "metric_or_resource.labels.task", *re.findall(r"labels\.\w+", done.stderr)}
    environment = {"PATH": os.environ["PATH"]}
    refused = subprocess.run([CLOUD / "apply.sh"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "PROJECT" in refused.stderr


class Cutting(http.server.BaseHTTPRequestHandler):
    "A proxy for the page of metrics, which passes on as much of it as `server.cut` says."

    def do_GET(self):
        try:
            with urllib.request.urlopen(self.server.upstream + self.path, timeout=30) as answer:
                page = answer.read()
        except OSError:
            return  # And so does the connection end
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        if self.server.tells_length:
            self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(self.server.cut(page))

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def cutting(upstream):
    "Such a proxy."
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cutting) as proxy:
        proxy.upstream, proxy.cut, proxy.tells_length = upstream, bytes, False
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


@needs_both
def test_a_page_that_is_cut_and_a_service_that_is_killed_are_told(tiny_bundle, tmp_path):
    with contextlib.ExitStack() as stack:
        address, process, _ = stack.enter_context(serving(tmp_path / "service", tiny_bundle, "--no-demo"))
        proxy = stack.enter_context(cutting(address))
        watch = stack.enter_context(watching(tmp_path / "watch", f"127.0.0.1:{proxy.server_port}", 60, 2))
        watch.comes("card_classifier_metrics_complete")
        proxy.cut = lambda page: page[: page.index(b"# HELP card_classifier_records_connected")]
        watch.hears("firing", "CardClassifierMetricsCut")
        assert watch.ask("up == 1") and not watch.ask("card_classifier_records_connected")
        proxy.cut = bytes
        watch.hears("resolved", "CardClassifierMetricsCut")
        proxy.cut = lambda page: page.removesuffix(b" 1.0\n")  # Within a line
        watch.hears("firing", "CardClassifierAway")
        proxy.cut, proxy.tells_length = lambda page: page[: page.rindex(b"# HELP")], True  # Shorter than it says
        watch.comes("timestamp(up) > " + str(watch.ask("timestamp(up)")[0]["value"][1]))
        assert watch.ask("up == 0")
        proxy.cut = bytes
        watch.hears("resolved", "CardClassifierAway")
        process.kill()
        watch.hears("firing", "CardClassifierAway")
        both = [(status, name) for name in ("MetricsCut", "Away") for status in ("firing", "resolved")]
        said = [("on-call", status, f"CardClassifier{name}") for status, name in [*both, ("firing", "Away")]]
        assert watch.heard == said


def test_minutes_become_seconds_and_nothing_else_changes():
    text = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    before, after = (yaml.safe_load(one)["groups"] for one in (text, shortened(text, 60)))
    for old, new in zip(before, after, strict=True):
        for one, other in zip(old["rules"], new["rules"], strict=True):
            assert re.findall(r"\[(?!\d+ms\])", other["expr"]) == [] and other.get("for", "1ms").endswith("ms")
            timeless = [re.sub(r"(\[|offset )\w+", r"\1", rule["expr"]) for rule in (one, other)]
            assert timeless[0] == timeless[1]
            kept = [{key: rule[key] for key in rule.keys() - {"expr", "for"}} for rule in (one, other)]
            assert kept[0] == kept[1]
    assert "rate(x[5000ms])" in shortened("rate(x[5m])", 60) and shortened("for: 10m", 60) == "for: 10000ms"


class Clients:
    "Send one kind of request after the other, in the background."

    def __init__(self, address):
        self.client = httpx.Client(base_url=address, timeout=30, trust_env=False)
        self.numbers, self.shade, self.is_waiting, self.is_paging = itertools.count(1000), 1.0, False, False
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.go_on, args=(at,), daemon=True) for at in range(4)]
        for thread in self.threads:
            thread.start()

    def go_on(self, at):
        "The first always sends, the others while something is to be broken."
        while not self.ended.wait(0.4):
            with contextlib.suppress(httpx.TransportError):
                if self.is_paging:
                    self.client.get("/")
                elif at == 0 or self.is_waiting:
                    self.send(4)

    def send(self, n):
        "Pictures in one request."
        files = [("files", (f"{number}.png", coloured(number, self.shade)))
                 for number in itertools.islice(self.numbers, n)]  # fmt: skip
        self.client.post("/v1/predict" + "?record=wait" * self.is_waiting, files=files)

    def end(self):
        "Sends nothing more."
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
        self.client.close()


@contextlib.contextmanager
def locked(url):
    "The table of records is locked for more than a second, again and again."
    ended = threading.Event()

    def lock():
        with psycopg.connect(url) as connection:
            while not ended.is_set():
                connection.execute("LOCK TABLE predictions IN EXCLUSIVE MODE")
                ended.wait(1.5)
                connection.rollback()
                ended.wait(0.1)

    thread = threading.Thread(target=lock, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


@pytest.mark.slow
@needs_both
@pytest.mark.skipif(postgres_programs() is None, reason="needs PostgreSQL: apt-get install postgresql")
def test_what_breaks_is_told_and_nothing_else(watched_bundle, tmp_path):  # noqa: F811
    port, broken = free_port(), tmp_path / "broken"
    broken.mkdir()
    (broken / "gradio.py").write_text("import no_such_library_of_pages\n")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(broken), os.environ.get("PYTHONPATH", ""))))}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_postgres(postgres_programs()))

        def start():
            options = ("--port", str(port), "--drift-minutes", "0.05")
            url = server.url()
            return serving(tmp_path / "service", watched_bundle, *options, environment=environment, database=url)

        address, process, _ = stack.enter_context(start())
        clients = Clients(address)
        stack.callback(clients.end)
        for _ in range(4):
            clients.send(20)
        watch = stack.enter_context(watching(tmp_path / "watch", f"127.0.0.1:{port}", 60))
        is_well = 'card_classifier_drift_pictures >= 50 and on (job) card_classifier:slo_error_ratio{window="5m"} == 0'
        watch.comes(is_well)

        with locked(server.url()):  # Slow
            clients.is_waiting = True
            watch.hears("firing", "CardClassifierLatency")
        clients.is_waiting = False
        watch.hears("resolved", "CardClassifierLatency")

        server.stop()  # The database gone
        watch.hears("firing", "CardClassifierRecordsAway")
        server.start()
        watch.hears("resolved", "CardClassifierRecordsAway")

        clients.is_paging = True  # Full of errors
        watch.hears("firing", "CardClassifierAvailability")
        clients.is_paging = False
        watch.hears("resolved", "CardClassifierAvailability")

        for clients.shade, status in ((0.6, "firing"), (1.0, "resolved")):  # Drifting
            for _ in range(11):
                clients.send(20)
            watch.hears(status, "CardClassifierDrift")

        process.kill()  # Killed
        watch.hears("firing", "CardClassifierAway")
        stack.enter_context(start())
        watch.hears("resolved", "CardClassifierAway")
        broke = {"Latency": "on-call", "RecordsAway": "on-call", "Availability": "on-call", "Drift": "tickets",
                 "Away": "on-call"}  # fmt: skip
        assert watch.heard == [
            (receiver, status, f"CardClassifier{name}")
            for name, receiver in broke.items()
            for status in ("firing", "resolved")
        ]


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="needs a clock that can be set: apt-get install libfaketime")
def test_a_clock_that_jumps_changes_no_duration_and_is_seen(tiny_bundle, tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                   "FAKETIME_DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    options = {"environment": environment, "database": "sqlite:///records.sqlite"}
    with serving(tmp_path / "service", tiny_bundle, "--no-demo", **options) as (address, _, _):

        def ahead():
            return numbers(address)["card_classifier_clock_timestamp_seconds"] - time.time()

        for offset in (0, 86400, -86400, 0):
            clock.write_text(f"{offset:+d}")
            wait_for(lambda offset=offset: abs(ahead() - offset) < 60)
            answer = httpx.post(address + "/v1/predict?record=wait", content=encoded(3), timeout=60)
            assert answer.json()["recorded"] == "written"
        found = numbers(address)
        route = '{route="/v1/predict"}'
        assert found[f"card_classifier_request_duration_seconds_count{route}"] == 4
        assert 0 < found[f"card_classifier_request_duration_seconds_sum{route}"] < 240
        assert found["card_classifier_records_written_total"] == 4 and found["card_classifier_records_connected"] == 1
