"""Deployment on Cloud Run: the files as Google's own classes take them, and the way from an image to all traffic.

Cloud Run is a stand-in that keeps one service and its revisions; every request to it is held against Google's
description. The revision that is tested at its address is a real service.
"""

import base64
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml
from google.cloud.devtools.cloudbuild_v1 import Build
from google.cloud.run_v2 import Job, Service
from google.protobuf.json_format import ParseDict, ParseError
from google_server import Asked, FakeGoogle, wait_until
from test_api import serving
from typer.testing import CliRunner

from card_classifier.cli.cloud_service import ask_revision
from card_classifier.cli.main import app
from card_classifier.cloud.deploy import JOBS, filled, names_of
from card_classifier.cloud.prices import WARM_CPUS, WARM_GIB
from card_classifier.settings import CloudSettings, DeploySettings, ServeSettings

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "deploy" / "cloud"
SETTINGS = DeploySettings(project="my-cards-1", bucket="my-cards-1-card-classifier")
NAMES = names_of(SETTINGS, "europe-west4-docker.pkg.dev/my-cards-1/card-classifier/card-classifier:abc")
HERE = ("cloud.project=my-cards-1", "cloud.image=image:1", "cloud.canary_minutes=0")


@pytest.mark.parametrize(("name", "kind"), [("service", Service), *((f"job-{job}", Job) for job in JOBS)])
def test_the_files_are_what_cloud_run_takes(name, kind):
    body = filled(FILES / f"{name}.yaml", NAMES)
    ParseDict(body, kind.pb()(), ignore_unknown_fields=False)
    with pytest.raises(ParseError):
        ParseDict({**body, "templat": {}}, kind.pb()(), ignore_unknown_fields=False)
    assert "${" not in json.dumps(body)


def test_the_service_is_bounded_probed_and_keeps_its_secrets_elsewhere():
    service = filled(FILES / "service.yaml", NAMES)
    template = service["template"]
    serve, collector = template["containers"]
    assert service["invokerIamDisabled"], "else nobody who is not logged in gets an answer"
    amounts = [one["resources"]["limits"] for one in (serve, collector)]
    assert sum(int(one["cpu"]) for one in amounts) == WARM_CPUS, "what an instance costs"
    assert sum({"1Gi": 1, "512Mi": 0.5}[one["memory"]] for one in amounts) == WARM_GIB
    assert serve["resources"]["cpuIdle"] is False, "it is paid for as long as it lives"
    assert template["scaling"]["maxInstanceCount"] == SETTINGS.max_instances
    assert serve["startupProbe"]["httpGet"]["path"] == "/health/ready"
    assert serve["livenessProbe"]["httpGet"]["path"] == "/health/live", "readiness is no reason to restart"
    assert serve["resources"]["startupCpuBoost"] and collector["dependsOn"] == [serve["name"]]
    variable = ServeSettings.__dataclass_fields__["database"].metadata["variable"]
    database = next(one for one in serve["env"] if one["name"] == variable)
    assert "value" not in database and database["valueSource"]["secretKeyRef"]
    mounted = {one["name"] for container in template["containers"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in template["volumes"]}
    collects = yaml.safe_load((FILES / "collector.yaml").read_text())
    assert collects["spec"]["endpoints"][0]["port"] == serve["ports"][0]["containerPort"]


def test_what_the_jobs_run_are_commands_that_there_are():
    for job in JOBS:
        words = filled(FILES / f"job-{job}.yaml", NAMES)["template"]["template"]["containers"][0]["args"]
        named = [word for word in words if re.fullmatch("[a-z]+", word)]
        said = CliRunner().invoke(app, [*named, "--help"])
        assert said.exit_code == 0, said.output
        assert all(word in said.output for word in words if word.startswith("--"))


class CloudRun:
    "One service with its revisions, and what Cloud Monitoring counts of them."

    def __init__(self, address: str, errors: int = 0, requests: int = 500):
        self.address, self.errors, self.requests = address, errors, requests
        self.service: dict | None = None
        self.revisions: list[str] = []
        self.jobs: list[str] = []
        self.shares: list[dict] = []

    def __call__(self, asked: Asked) -> tuple[int, dict] | None:
        "Answers a request."
        done = {"name": "projects/my-cards-1/locations/europe-west4/operations/1", "done": True}
        if asked.host == "monitoring":
            return 200, {"data": {"result": self.figures(asked.query["query"])}}
        if "/jobs" in asked.path:
            self.jobs.append(f"{asked.method} {asked.path.rpartition('/')[2]} {asked.query.get('jobId', '')}".strip())
            return (404, {"error": {"code": 404, "message": "not found"}}) if asked.method == "GET" else (200, done)
        if asked.path.endswith("/revisions"):
            ready = [{"type": "Ready", "state": "CONDITION_SUCCEEDED"}]
            return 200, {"revisions": [{"name": f"x/{name}", "createTime": f"{number:04d}", "conditions": ready}
                                       for number, name in enumerate(self.revisions)]}  # fmt: skip
        if asked.method == "GET":
            missing = {"error": {"code": 404, "message": "not found"}}
            latest = {"latestReadyRevision": f"x/revisions/{self.revisions[-1]}"} if self.revisions else {}
            return (404, missing) if self.service is None else (200, {**self.service, **latest})
        self.take(asked.body)
        return 200, done

    def figures(self, query: str) -> list[dict]:
        "What Cloud Monitoring counts."
        if "revision_name" not in query:
            return []
        count = {"5xx": self.errors, "latencies": 100}
        value = next((number for word, number in count.items() if word in query), self.requests)
        values = {name: value if name == self.revisions[-1] or "5xx" not in query else 0 for name in self.revisions}
        return [{"metric": {"revision_name": name}, "value": [0, str(one)]} for name, one in values.items()]

    def take(self, body: dict) -> None:
        "Makes a revision, or distributes traffic."
        if "template" in body:
            self.revisions.append(body["template"]["revision"])
        told = body["traffic"]
        statuses = [{**one, **({"uri": self.address} if one.get("tag") else {})} for one in told]
        self.service = {"uri": self.address, "trafficStatuses": statuses}
        newest = self.revisions[-1]
        self.shares.append({one.get("revision", newest): one["percent"] for one in told if one.get("percent")})


@pytest.fixture(scope="module")
def address(tiny_bundle, tmp_path_factory):
    "A service that is there."
    with serving(tmp_path_factory.mktemp("service"), tiny_bundle, "--no-demo") as (address, *_):
        yield address


def typed(monkeypatch, google: FakeGoogle, *words: str):
    "What a command does, with a Google on this machine."
    with google.serving() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CLOUDSDK_AUTH_ACCESS_TOKEN", "a-token")
        done = CliRunner().invoke(app, ["cloud", *words])
    assert google.wrong == [], google.wrong
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def test_an_image_gets_traffic_step_by_step_and_goes_back_when_it_is_worse(monkeypatch, address):
    run = CloudRun(address)
    google = FakeGoogle(answers=run)
    first = typed(monkeypatch, google, "deploy", "--yes", *HERE)
    assert first.exit_code == 0 and run.shares == [{run.revisions[0]: 100}], first.output
    assert run.jobs[-1] == "POST card-classifier-migrate:run", "the tables are ready before a revision"
    assert "revision" not in run.service["trafficStatuses"][0], "Cloud Run only says that the latest one serves"
    run.revisions[0] = "card-classifier-20260101-000000"

    second = typed(monkeypatch, google, "deploy", "--yes", *HERE)
    old, new = run.revisions
    assert run.shares[1:] == [{old: 100}, {old: 90, new: 10}, {new: 100}], second.output
    run.revisions[1] = run.service["trafficStatuses"][0]["revision"] = "card-classifier-20260102-000000"

    run.errors = 60
    third = typed(monkeypatch, google, "deploy", "--yes", *HERE)
    assert third.exit_code == 1 and "errors: 60 of 500" in third.output
    assert run.shares[-1] == {"card-classifier-20260102-000000": 100}

    run.errors, run.requests = 0, 20
    fourth = typed(monkeypatch, google, "deploy", "--yes", *HERE)
    assert fourth.exit_code == 1 and "too few to tell" in fourth.output

    told = typed(monkeypatch, google, "status", *HERE[:1])
    assert told.exit_code == 0 and "100 %" in told.stdout
    back = typed(monkeypatch, google, "rollback", "--yes", *HERE[:1])
    assert back.exit_code == 0 and run.shares[-1] == {"card-classifier-20260101-000000": 100}, back.output


def test_a_revision_that_fails_its_tests_gets_no_visitor(monkeypatch):
    run = CloudRun("http://127.0.0.1:9")
    everything = {"revision": "card-classifier-20260101-000000", "percent": 100}
    run.take({"template": {"revision": everything["revision"]}, "traffic": [everything]})
    done = typed(monkeypatch, FakeGoogle(answers=run), "deploy", "--yes", *HERE)
    assert done.exit_code == 2 and "all traffic stays with card-classifier-20260101-000000" in done.output
    assert all(share == {"card-classifier-20260101-000000": 100} for share in run.shares), run.shares


def test_a_service_whose_first_revision_never_started_is_deployed_again(monkeypatch, address):
    run = CloudRun(address)
    run.service = {"uri": address, "trafficStatuses": []}
    google = FakeGoogle(answers=run)
    done = typed(monkeypatch, google, "deploy", "--yes", *HERE)
    assert done.exit_code == 0 and run.shares == [{run.revisions[0]: 100}], done.output
    assert not google.requests("run", "POST", "/services"), "a service that is there is not made"


def test_what_google_refuses_is_said_in_one_line(monkeypatch):
    refused = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "Permission 'run.services.get' denied"}}
    done = typed(monkeypatch, FakeGoogle(answers=lambda asked: (403, refused)), "deploy", "--yes", *HERE)
    assert done.exit_code == 2 and "you may not do this in this project" in done.output
    nobody = typed(monkeypatch, FakeGoogle(answers=CloudRun("")), "status", *HERE[:1])
    assert nobody.exit_code == 2 and "there is no service card-classifier" in nobody.output




# --- What is made once


INFRASTRUCTURE = FILES / "infrastructure"
TERRAFORM = shutil.which("tofu") or shutil.which("terraform")


@pytest.mark.skipif(not TERRAFORM, reason="needs OpenTofu or Terraform")
def test_the_infrastructure_is_well_formed(tmp_path):
    "Formatted and parsed; what needs the provider, `tofu validate`, runs where a registry of providers answers."
    command = [TERRAFORM, "fmt", "-check", "-recursive", INFRASTRUCTURE]
    checked = subprocess.run(command, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "bad.tf").write_text('resource "google_storage_bucket" {\n', encoding="utf-8")
    bad = subprocess.run([TERRAFORM, "fmt", "-check", tmp_path], capture_output=True, check=False)
    assert bad.returncode != 0


def test_what_the_infrastructure_refers_to_is_made_once():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(INFRASTRUCTURE.glob("*.tf")))
    made = re.findall(r'^(?:resource|data) "(\w+)" "(\w+)"', text, re.MULTILINE)
    assert len(made) == len(set(made)) > 20
    assert set(re.findall(r"\b((?:google|archive)_\w+)\.(\w+)\b(?!\.tf)", text)) <= set(made)
    accounts = set(re.findall(r'^    ([\w-]+) += "[A-Z]', text, re.MULTILINE))
    assert set(re.findall(r'google_service_account\.all\["([\w-]+)"\]', text)) <= accounts
    named = set(re.findall(r"\b(?:var|local)\.(\w+)", text))
    blocks = "\n".join(re.findall(r"^locals \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    known = {*re.findall(r'^variable "(\w+)"', text, re.MULTILINE), *re.findall(r"^  (\w+) += ", blocks, re.MULTILINE)}
    assert named <= known, named - known


def test_infrastructure_and_settings_name_the_same_things():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(INFRASTRUCTURE.glob("*.tf")))
    machine = CloudSettings(project="my-cards-1")
    for account in (machine.training_account, machine.serving_account):
        assert re.search(rf'^    {account.removeprefix("card-classifier-")} += "', text, re.MULTILINE), account
    assert 'account_id   = "card-classifier-${each.key}"' in text
    assert f'default     = "{machine.region}"' in text and f"default     = {machine.budget:.0f}" in text
    assert 'bucket = "${var.project}-card-classifier"' in text
    secrets = set(re.findall(r"secret: (card-classifier-\w+)", (FILES / "service.yaml").read_text()))
    made = dict(re.findall(r'^    (database|collector|wandb) += "(\w+)"', text, re.MULTILINE))
    assert secrets == {f"card-classifier-{name}" for name, reader in made.items() if reader == "serving"}
    assert made["wandb"] == "training", "a machine may read the key of W&B that cloud.wandb_secret names"
    schedules = set(re.findall(r'^    (\w+) += "[\d*]+ [\d*]+ \* \* \*"$', text, re.MULTILINE))
    assert schedules and schedules <= set(JOBS)
    given = dict(re.findall(r'account = "([\w-]+)", role = "([\w./]+)"', text))
    assert given.keys() == {"serving", "deploying", "scheduler", "kill-switch"}
    public = filled(FILES / "service.yaml", NAMES)["invokerIamDisabled"]
    assert public == ("run.services.setIamPolicy" in text), "who deploys may open the service"
    assert "roles/aiplatform.user" in text and "roles/logging.viewer" in text, "what --on vertex and its logs need"
    assert "roles/owner" not in text and "roles/editor" not in text and "service_account_key" not in text


def test_the_kill_switch_acts_once_too_much_was_spent_and_not_before(monkeypatch):
    google = FakeGoogle()

    class Message:
        def __init__(self, content: object):
            self.content = json.dumps({"message": {"data": base64.b64encode(json.dumps(content).encode()).decode()}})

        def get_data(self) -> bytes:
            return self.content.encode()

    monkeypatch.setenv("PROJECT", "my-cards-1")
    monkeypatch.setenv("RATIO", "1.5")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with google.serving() as environment:
        place = environment["CARD_CLASSIFIER_GOOGLE_ENDPOINT"]
        monkeypatch.setenv("BILLING_ENDPOINT", f"{place}/cloudbilling.googleapis.com")
        switch = runpy.run_path(str(FILES / "kill_switch" / "main.py"))
        session = requests.Session()
        session.headers["Authorization"] = "Bearer a-token"
        monkeypatch.setattr("google.auth.default", lambda scopes: (None, "my-cards-1"))
        switch["hear_budget"].__globals__["AuthorizedSession"] = lambda credentials: session
        for spent in ({"costAmount": 74.9, "budgetAmount": 50}, {"costAmount": 90}, ["nonsense"], {"costAmount": "x"}):
            assert switch["hear_budget"](Message(spent))[1] == 200
        assert google.asked == []
        said, status = switch["hear_budget"](Message({"costAmount": 75, "budgetAmount": 50, "currencyCode": "EUR"}))
        assert status == 200 and "taken away" in said
    [asked] = google.asked
    assert asked.body == {"billingAccountName": ""} and asked.path == "v1/projects/my-cards-1/billingInfo"
    assert google.wrong == []


def test_a_check_only_looks_and_says_what_it_cannot_see(monkeypatch):
    missing = (404, {"error": {"code": 404, "message": "not found"}})

    def answers(asked: Asked) -> tuple[int, dict] | None:
        "A project with one forgotten machine, in which some things may not be seen."
        if asked.host == "secretmanager":
            return 403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "denied"}}
        if asked.path.endswith("aggregated/instances"):
            ours = {"name": "card-classifier-forgotten-1", "zone": "x/zones/europe-west4-a",
                    "labels": {"app": "card-classifier", "run": "forgotten"}}
            others = {"name": "somebodys", "zone": "x/zones/us-east1-b", "machineType": "x/machineTypes/n1-standard-8",
                      "guestAccelerators": [{"acceleratorType": "x/nvidia-tesla-v100", "acceleratorCount": 1}]}
            return 200, {"items": {"zones/europe-west4-a": {"instances": [ours, others]}}}
        if "aiplatform" in asked.host:
            return 403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "denied"}}
        if asked.path.endswith(":getIamPolicy"):
            return 200, {"bindings": [{"role": "roles/storage.objectAdmin", "members": ["user:b@example.org"]}]}
        if asked.path.endswith("/iam"):
            return 200, {"bindings": []}
        lists = ("aggregated/disks", "aggregated/addresses", "uptimeCheckConfigs", "/services", "/jobs")
        return (200, {}) if asked.path.endswith(lists) else missing

    google = FakeGoogle(answers=answers)
    team = ("--team", "user:a@example.org", "--team", "user:b@example.org")
    done = typed(monkeypatch, google, "check", *team, "cloud.project=my-cards-1", "cloud.bucket=cards")
    assert done.exit_code == 1
    assert "left on: machine card-classifier-forgotten-1" in done.stdout, done.output
    assert "left on: machine somebodys in us-east1-b" in done.stdout, "whoever started it"
    assert re.search(r"what is left on +unknown", done.stdout), "custom jobs can't be seen, which hides no machine"
    assert "access: user:a@example.org has no access" in done.stdout and "access: user:b" not in done.stdout
    assert re.search(r"secret card-classifier-database +unknown +.*you may not", done.stdout)
    assert re.search(r"project +missing", done.stdout) and "0.00" in done.stdout
    assert {asked.method for asked in google.asked if not asked.path.endswith(":getIamPolicy")} == {"GET"}


# --- Images and the Space


def test_the_build_is_what_cloud_build_takes():
    body = yaml.safe_load((FILES / "cloudbuild.yaml").read_text())
    ParseDict(body, Build.pb()(), ignore_unknown_fields=False)
    targets = [step["args"][step["args"].index("--target") + 1] for step in body["steps"] if "--target" in step["args"]]
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(targets) <= set(stages), "of the same Dockerfile"


def test_the_machine_has_a_driver_that_the_image_can_use():
    "The first release of NVIDIA's driver for each CUDA; with an older one torch finds no GPU."
    drivers = {"12": 525, "13": 580}
    lock, told = (ROOT / "requirements.lock").read_text(), (FILES / "cloudbuild.yaml").read_text()
    [runtime] = re.findall(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)", lock, re.MULTILINE)
    assert int(CloudSettings().system.rpartition("-")[2]) >= drivers[runtime]
    assert f"CUDA {runtime}." in told and str(drivers[runtime]) in told


def is_ready(port: int) -> bool:
    "Whether a service answers."
    try:
        return requests.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def test_the_space_starts_as_it_would_there_and_its_versions_are_those_of_the_lock(tmp_path):
    for name in ("settings.ini", "requirements.lock", "deploy/space", ".github/scripts/space.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, ".github/scripts/space.py", "make"], cwd=tmp_path, check=True, capture_output=True)
    space = tmp_path / "outputs" / "space"
    lines = (space / "requirements.txt").read_text().splitlines()
    for line in lines[1:]:
        name, _, version = line.partition("==")
        assert importlib.metadata.version(name.partition("[")[0]) == version, line
    card = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["sdk_version"] == importlib.metadata.version("gradio") and (space / card["app_file"]).is_file()
    assert "${" not in (space / "README.md").read_text(encoding="utf-8")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, card["app_file"]], cwd=space, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_until(lambda: is_ready(port), 90, "the start of the Space")
        page = requests.get(f"http://127.0.0.1:{port}/", timeout=60)
        assert page.status_code == 200 and "gradio" in page.text.lower()
        assert ask_revision(f"http://127.0.0.1:{port}", 60) == "ace of spades"
        assert [path.name for path in space.iterdir()].count("records.sqlite") == 0, "nothing is kept"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.skipif(sys.platform == "win32", reason="the tunnel's stand-in is a script of a shell")
def test_a_shared_service_says_loudly_who_may_ask(tiny_bundle, tmp_path):
    "Gradio's own code opens the tunnel; its program, which it would download, is a stand-in that names an address."
    from gradio.tunneling import BINARY_FILENAME

    program = tmp_path / "hub" / "gradio" / "frpc" / BINARY_FILENAME
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho start proxy success: https://abc.example\nexec sleep 600\n", encoding="utf-8")
    program.chmod(0o755)
    known = {"HF_HOME": str(tmp_path / "hub"), "GRADIO_SHARE_SERVER_ADDRESS": "127.0.0.1:7000"}
    options = ("--no-demo", "--share")
    with serving(tmp_path / "service", tiny_bundle, *options, environment=known.items()) as (address, process, _):
        said = next(line for line in process.stderr if "https://abc.example" in line or "NO public" in line)
        assert "PUBLIC for 60 minutes: https://abc.example - EVERYONE" in said
        assert requests.get(f"{address}/health/ready", timeout=30).status_code == 200
