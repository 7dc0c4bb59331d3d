"""The cloud without an account: requests held against Google's descriptions, the machine's script run for real.

Docker is a script of a few lines that starts the command of the container here, and training is one that leaves
checkpoints; the start-up script, the worker, the bucket's protocol and the metadata server's are the real ones.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google_server import FakeGoogle, check_request, wait_until
from typer.testing import CliRunner

from card_classifier.cli.main import app
from card_classifier.cloud.machine import STARTUP_FILE, Job, metadata_items, read_job
from card_classifier.cloud.requests import Google
from card_classifier.cloud.storage import Bucket, get, objects, put
from card_classifier.settings import CloudSettings

ROOT = Path(__file__).resolve().parent.parent
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the script is that of a Linux machine")
DOCKER = """#!/bin/bash
# What the start-up script needs of docker: the container's command runs here.
echo "$@" >> "$PLACE/docker.log"
case $1 in
  login) cat > /dev/null ;;
  pull) [ "$3" != image:missing ] ;;
  stop) kill -TERM "$(cat "$PLACE/$4.pid")"; while kill -0 "$(cat "$PLACE/$4.pid")" 2> /dev/null; do sleep .05; done ;;
  run)
    shift
    while [ "${1#--}" != "$1" ]; do
      [ "$1" = --name ] && echo $$ > "$PLACE/$2.pid"
      [ "$1" = --rm ] && shift || shift 2
    done
    cd "$PLACE" && shift && exec card-classifier "$@" ;;
esac
"""
COMMAND = """#!/bin/bash
# card-classifier in the container; only the training itself is another one, with an epoch every few moments.
[ "$1" = train ] || exec "$PYTHON" -m card_classifier.cli.start "$@"
run=outputs/$3; mkdir -p "$run/checkpoints"
last=$(ls "$run/checkpoints" | sort | tail -n 1 | tr -dc 0-9); first=$((10#${last:-0} + 1))
[ -n "${TRAIN_CODE:-}" ] && { echo "no memory left" > "$run/metrics.json"; exit "$TRAIN_CODE"; }
for epoch in $(seq "$first" "$TRAIN_EPOCHS"); do
  draft="$run/checkpoints/.epoch-000$epoch.0123abcd.draft"
  echo half > "$draft"; sleep "$EPOCH_SECONDS"; echo "epoch $epoch" > "$draft"
  mv "$draft" "$run/checkpoints/epoch-000$epoch"
done
echo "{\\"began\\": $first}" > "$run/metrics.json"
"""


@pytest.fixture
def place(tmp_path):
    "Where the container works, with docker and its command on the path."
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"docker": DOCKER, "card-classifier": COMMAND, "shutdown": "#!/bin/sh\necho off\n"}.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    return tmp_path


def a_job(seconds: float = 120, **changes) -> Job:
    "A job with so much time left."
    settings = CloudSettings(project="my-cards-1", machine_type="e2-standard-8", zones="europe-west4-a,us-central1-a",
                             sync_seconds=0.2)  # fmt: skip
    job = Job("a-run", "my-cards-1", "cards", "image:1", settings, int(time.time() + seconds))
    return dataclasses.replace(job, **changes)


@contextlib.contextmanager
def machine(google: FakeGoogle, place: Path, environment: dict[str, str], **values: str):
    "A machine that has just been switched on; ends with everything that it started."
    names = {"PLACE": str(place), "PYTHON": sys.executable, "TRAIN_EPOCHS": "3", "EPOCH_SECONDS": "0.2", **values}
    known = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "CLOUDSDK_"))}
    path = f"{place / 'bin'}{os.pathsep}{known['PATH']}"
    log = {"CARD_CLASSIFIER_MACHINE_LOG": str(place / "machine.log"), "PYTHONPATH": str(ROOT), "PATH": path}
    values = known | names | environment | log
    with (place / "console.txt").open("w") as console:
        process = subprocess.Popen(["bash", STARTUP_FILE], cwd=place, env=values, stdout=console,
                                   stderr=console, start_new_session=True)  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def bucket_at(environment: dict[str, str], monkeypatch) -> Bucket:
    "The bucket, as a person sees it."
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLOUDSDK_AUTH_ACCESS_TOKEN", "a-token")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    return Bucket(Google(pause=0.01), "cards")


def switch_on(google: FakeGoogle, job: Job, bucket: Bucket) -> None:
    "Puts a run into the bucket, and a job into the machine's metadata."
    google.attributes = metadata_items(job)
    google.machine = job.machine
    if job.attempt == 1:
        put(bucket, "runs/a-run/settings.yaml", b"train: {}\n")


def state(bucket: Bucket) -> str:
    "What has become of the run."
    return json.loads(get(bucket, "machines/a-run/state.json") or b"{}").get("state", "")


def ended(google: FakeGoogle, process: subprocess.Popen, place: Path) -> str:
    "What the console says of a machine that had itself deleted."
    process.wait(60)
    console = (place / "console.txt").read_text()
    asked = [one.path.rpartition("/")[2] for one in google.requests("compute", "DELETE")]
    assert asked[-1:] == [google.machine], console
    assert google.wrong == [], console
    return console


@on_linux
def test_a_machine_trains_stores_everything_and_has_itself_deleted(place, monkeypatch):
    google = FakeGoogle()
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(), bucket)
        with machine(google, place, environment) as process:
            console = ended(google, process, place)
        assert state(bucket) == "finished", console
        names = {one.name for one in objects(bucket)}
        assert {"runs/a-run/metrics.json", "runs/a-run/checkpoints/epoch-0003", "machines/a-run/log-1.txt"} <= names
        assert b"training ended with code 0" in get(bucket, "machines/a-run/log-1.txt")
        assert not google.requests("compute", "POST", "/instances"), "no other machine"


@on_linux
@pytest.mark.parametrize("image", ["image:1", "image:missing"])
def test_a_machine_whose_work_fails_is_deleted_too(place, monkeypatch, image):
    google = FakeGoogle()
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(image=image), bucket)
        with machine(google, place, environment, TRAIN_CODE="3") as process:
            console = ended(google, process, place)
        assert state(bucket) == "failed", console
        reason = "the image can't be had" if image == "image:missing" else "training ended with code 3"
        assert reason in get(bucket, "machines/a-run/log-1.txt").decode()
        assert (get(bucket, "runs/a-run/metrics.json") is None) == (image == "image:missing")


@on_linux
def test_a_machine_that_is_taken_away_in_a_checkpoint_goes_on_as_another_one(place, monkeypatch):
    google, refused = FakeGoogle(), {"error": {"errors": [{"reason": "quotaExceeded"}], "message": "Quota exceeded"}}
    google.answers = lambda asked: (
        (403, refused) if asked.method == "POST" and asked.path.endswith("europe-west4-a/instances") else None
    )
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        job = a_job()
        switch_on(google, job, bucket)
        with machine(google, place, environment, EPOCH_SECONDS="1.5", TRAIN_EPOCHS="4") as process:
            wait_until(lambda: get(bucket, "runs/a-run/checkpoints/epoch-0001"), what="the first epoch")
            google.is_preempted.set()  # The second one is half written
            console = ended(google, process, place)
        assert state(bucket) == "moved", console
        stored = [one.name for one in objects(bucket, "runs/a-run/checkpoints/")]
        assert all(re.fullmatch(r".*/epoch-000\d", name) for name in stored), "no half checkpoint"
        started = google.requests("compute", "POST", "us-central1-a/instances")[-1].body
        items = {one["key"]: one["value"] for one in started["metadata"]["items"]}
        following = read_job(items["job"])
        assert (following.attempt, following.deadline) == (2, job.deadline), "the same deadline, so no higher cost"

        again = place / "again"
        again.mkdir()
        (again / "bin").symlink_to(place / "bin")
        google.is_preempted.clear()
        google.attributes, google.machine = items, following.machine
        with machine(google, again, environment, TRAIN_EPOCHS="4") as process:
            console = ended(google, process, again)
        assert state(bucket) == "finished", console
        assert json.loads(get(bucket, "runs/a-run/metrics.json"))["began"] > 1, "it went on, and did not begin anew"


@on_linux
def test_where_no_zone_has_another_machine_the_run_waits_for_a_person(place, monkeypatch):
    google, refused = FakeGoogle(), {"error": {"errors": [{"reason": "quotaExceeded"}], "message": "Quota exceeded"}}
    google.answers = lambda asked: (403, refused) if asked.path.endswith("/instances") else None
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(), bucket)
        with machine(google, place, environment, EPOCH_SECONDS="30") as process:
            wait_until(lambda: "outputs" in os.listdir(place), what="the training")
            google.is_preempted.set()
            console = ended(google, process, place)
        assert state(bucket) == "preempted", console
        assert len(google.requests("compute", "POST", "/instances")) == 2, "each zone was asked"
        assert "no quota in europe-west4-a, us-central1-a" in get(bucket, "machines/a-run/log-1.txt").decode()


@on_linux
def test_a_machine_whose_time_is_over_stores_its_epochs_and_is_deleted(place, monkeypatch):
    google = FakeGoogle()
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(8), bucket)
        with machine(google, place, environment, TRAIN_EPOCHS="9", EPOCH_SECONDS="2") as process:
            console = ended(google, process, place)
        assert state(bucket) == "timed out", console
        assert not google.requests("compute", "POST", "/instances"), "no other machine"
        assert get(bucket, "runs/a-run/metrics.json") is None


@on_linux
def test_a_machine_that_a_person_deletes_starts_no_other_one(place, monkeypatch):
    google = FakeGoogle()
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(), bucket)
        with machine(google, place, environment, EPOCH_SECONDS="30") as process:
            wait_until(lambda: "outputs" in os.listdir(place), what="the training")
            process.terminate()
            console = ended(google, process, place)
        assert state(bucket) == "stopped", console
        assert not google.requests("compute", "POST", "/instances")


@on_linux
@pytest.mark.parametrize("status", [403, 503])
def test_a_bucket_that_refuses_for_a_while_costs_nothing(place, monkeypatch, status):
    google, refusals = FakeGoogle(), []

    def refuse(asked):
        is_result = asked.method == "POST" and asked.query.get("name", "").startswith("runs/")
        if is_result and len(refusals) < 3 and get_now:
            refusals.append(asked)
            return status
        return None

    get_now = False
    google.bucket_answers = refuse
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(), bucket)
        get_now = True
        with machine(google, place, environment) as process:
            console = ended(google, process, place)
        assert len(refusals) == 3 and state(bucket) == "finished", console
        assert get(bucket, "runs/a-run/metrics.json"), console


@on_linux
def test_a_bucket_that_nobody_may_read_ends_the_machine_at_once(place, monkeypatch):
    google = FakeGoogle()
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        switch_on(google, a_job(), bucket)
        google.bucket_answers = lambda asked: 403
        with machine(google, place, environment) as process:
            console = ended(google, process, place)
        assert "you may not do this" in console and "the bucket doesn't take the state: failed" in console


# --- The commands


def typed(*words: str) -> tuple[int, str, str]:
    "Exit code and what a command prints."
    done = CliRunner().invoke(app, ["cloud", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout, done.stderr


ZONES = "cloud.zones=europe-west4-a,us-central1-a"
SMALL = ("cloud.project=my-cards-1", "cloud.bucket=cards", "cloud.image=image:1", ZONES)


def test_a_run_is_started_listed_read_brought_back_and_stopped(monkeypatch, tmp_path):
    google = FakeGoogle()
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        code, _, said = typed("train", "--experiment", "quick", *SMALL)
        assert code == 1 and "cost: at most" in said and not google.asked, "without a yes nothing is sent"
        code, told, said = typed("train", "--experiment", "quick", "--yes", *SMALL)
        assert code == 0, said
        run = told.split()[0]
        [started] = google.requests("compute", "POST", "/instances")
        label = started.body["labels"]["run"]
        assert get(bucket, f"runs/{run}/settings.yaml") and state_of(bucket, run) == "starting"
        running = {"name": started.body["name"], "zone": "x/zones/europe-west4-a", "labels": {"run": label}}
        google.answers = lambda asked: (
            (200, {"items": {"zones/europe-west4-a": {"instances": [running]}}}) if "aggregated" in asked.path
            else (200, {"contents": "x startup-script: run goes\nkernel: noise"}) if "serialPort" in asked.path
            else (200, {"customJobs": []}) if "customJobs" in asked.path else None
        )  # fmt: skip
        code, told, said = typed("runs", *SMALL[:2])
        assert code == 0 and run in told and "starting" in told, said
        code, told, said = typed("logs", run[-6:], *SMALL[:2])
        assert code == 0 and "run goes" in told and "noise" not in told, said
        code, _, said = typed("train", "--resume", run, "--yes", *SMALL)
        assert code == 2 and "is running" in said
        code, told, said = typed("stop", run, "--yes", *SMALL[:2])
        assert code == 0 and google.requests("compute", "DELETE")[-1].path.endswith(started.body["name"]), said

        google.answers = lambda asked: (200, {"items": {}}) if "aggregated" in asked.path else None
        put(bucket, f"runs/{run}/metrics.json", b"{}")
        monkeypatch.setattr("card_classifier.cli.cloud.checkout", lambda: tmp_path)
        code, told, said = typed("get", run, *SMALL[:2])
        assert code == 0 and (tmp_path / "outputs" / run / "metrics.json").read_bytes() == b"{}", said
        code, told, said = typed("train", "--resume", run, "--yes", *SMALL)
        assert code == 0 and google.requests("compute", "POST", "/instances")[-1].body["name"].endswith("-2"), said
    assert google.wrong == []


def state_of(bucket: Bucket, run: str) -> str:
    "What is written down about a run."
    return json.loads(get(bucket, f"machines/{run}/state.json"))["state"]


def test_no_quota_anywhere_is_said_in_one_line_and_nothing_is_left_on(monkeypatch):
    google, refused = FakeGoogle(), {"error": {"errors": [{"reason": "quotaExceeded"}], "message": "Quota exceeded"}}
    google.answers = lambda asked: (403, refused) if asked.path.endswith("/instances") else None
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        code, _, said = typed("train", "--experiment", "quick", "--yes", *SMALL)
        assert code == 2 and "no quota in europe-west4-a, us-central1-a" in said and "IAM & Admin, Quotas" in said
        assert said.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in said
        [name] = [one.name for one in objects(bucket, "machines/") if one.name.endswith("state.json")]
        assert state_of(bucket, name.split("/")[1]) == "not started"


LONG = "20261201-101500-adapt_reader-mobilenetv4_conv_small.e2400_r224_in1k"


def running(name: str) -> dict:
    "A machine of a run, as Compute Engine describes it."
    job = a_job(run=name)
    labels = {"app": "card-classifier", "run": job.label}
    return {"name": job.machine, "zone": "x/zones/europe-west4-a", "labels": labels}


@pytest.mark.parametrize("asked", [LONG, "e2400_r224", "adapt"])
def test_a_machine_is_stopped_by_the_name_that_is_shown_or_a_part_of_it(monkeypatch, asked):
    google, off = FakeGoogle(), {"error": {"code": 403, "message": "Vertex AI API has not been used in project 1"}}
    machines = [running(LONG), running(f"{LONG}-2")] if asked == LONG else [running(LONG)]
    google.answers = lambda asked: (
        (200, {"items": {"zones/europe-west4-a": {"instances": machines}}}) if "aggregated" in asked.path
        else (403, off) if "customJobs" in asked.path else None
    )  # fmt: skip
    with google.serving() as environment:
        bucket = bucket_at(environment, monkeypatch)
        put(bucket, f"machines/{LONG}/state.json", b'{"state": "running"}')
        code, told, said = typed("runs", *SMALL[:2])
        assert code == 0 and told.count(LONG) == 1, said
        code, told, said = typed("stop", asked, "--yes", *SMALL[:2])
        assert code == 0, said
        assert [one.path.rpartition("/")[2] for one in google.requests("compute", "DELETE")] == [running(LONG)["name"]]
    assert google.wrong == []


def test_vertex_gets_the_same_job_which_is_listed_read_and_ended(monkeypatch):
    google, jobs = FakeGoogle(), []
    refused = {"error": {"code": 429, "message": "The following quotas are exceeded: CustomModelTrainingL4GPUs"}}

    def answers(asked):
        "A quota in one region only, whose jobs stay."
        if asked.path.endswith("entries:list"):
            return 200, {"entries": [{"textPayload": "epoch 1 of 20"}]}
        if "aiplatform" in asked.host and asked.method == "GET":
            return 200, {"customJobs": [one for one in jobs if asked.host.removesuffix("-aiplatform") in one["name"]]}
        if "aiplatform" in asked.host and asked.host != "us-central1-aiplatform":
            return 429, refused
        if asked.path.endswith("customJobs"):
            told = {"name": "projects/1/locations/us-central1/customJobs/7", "createTime": "2999-01-01T00:00:00Z"}
            jobs.append({**asked.body, **told, "state": "JOB_STATE_RUNNING"})
        return None

    google.answers = answers
    monkeypatch.setattr("card_classifier.cloud.requests.LONGEST_PAUSE", 0.01)
    with google.serving() as environment:
        bucket_at(environment, monkeypatch)
        code, told, said = typed("train", "--experiment", "quick", "--on", "vertex", "--yes", *SMALL)
        assert code == 0 and "Vertex AI in us-central1" in told, said
        run, sent = told.split()[0], google.requests("us-central1-aiplatform", "POST")[-1]
        assert sent.body["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"] == ["cloud", "work"]
        code, told, said = typed("runs", *SMALL)
        assert code == 0 and re.search(rf"{run}\W+running\W+Vertex AI\W+us-central1", told) and "lost" not in told, told
        code, _, said = typed("train", "--resume", run, "--yes", *SMALL)
        assert code == 2 and "is running" in said
        code, told, said = typed("logs", run, *SMALL)
        assert code == 0 and "epoch 1 of 20" in told, said
        code, told, said = typed("stop", run, "--dry-run", *SMALL)
        assert code == 0 and "customJobs/7:cancel" in told, said
        code, told, said = typed("stop", run, "--yes", *SMALL)
        assert code == 0 and google.requests("us-central1-aiplatform", "POST", "7:cancel"), said
        jobs[0]["state"] = "JOB_STATE_SUCCEEDED"
        code, told, said = typed("runs", *SMALL)
        assert code == 0 and re.search(rf"{run}\W+finished", told), told
    assert google.wrong == []


def test_what_google_would_not_understand_is_found():
    path = "compute/v1/projects/p/zones/z/instances"
    check_request("compute", "POST", path, {"requestId": "x"}, {"name": "a", "scheduling": {"automaticRestart": False}})
    for body in ({"nam": "a"}, {"name": 1}, {"scheduling": {"instanceTerminationAction": "STAY"}}):
        with pytest.raises(AssertionError):
            check_request("compute", "POST", path, {}, body)
    with pytest.raises(AssertionError, match="no parameters"):
        check_request("compute", "POST", path, {"request": "x"}, {})
    with pytest.raises(AssertionError, match="has no"):
        check_request("compute", "POST", "compute/v1/projects/p/instances", {}, {})


# --- What the repository must not hold


SECRETS = {
    "a key of Google": r"AIza[0-9A-Za-z_-]{35}",
    "a token of Google": r"ya29\.[0-9A-Za-z_-]{20,}",
    "a secret of an OAuth client": r"GOCSPX-[0-9A-Za-z_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\\?n?[A-Za-z0-9+/]{20}",
    "a key of a service account": r"\"private_key_id\": *\"[0-9a-f]{40}",
    "a token of GitHub": r"gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{40,}",
    "a token of Hugging Face": r"\bhf_[0-9A-Za-z]{30,}",
    "a key of W&B": r"(?i:wandb)[\w ]{0,20}[\"']? *[=:] *[\"']?(?:[0-9a-f]{40}\b|wandb_v\d_\w{20,})",
    "a key of Kaggle": r"\"key\": *\"[0-9a-f]{32}\"|KAGGLE_KEY *= *[\"']?[0-9a-f]{32}\b",
    "a key of Amazon": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of PyPI": r"\bpypi-AgE[0-9A-Za-z_-]{50,}",
    "a token of Slack": r"\bxox[abprs]-[0-9A-Za-z-]{20,}|hooks\.slack\.com/services/T\w{6,}",
    "a key of a language model": r"\bsk-(?:ant-|proj-)?[0-9A-Za-z_-]{32,}",
    "a password in an address": r"\b(?:postgres(?:ql)?|mysql|redis)(?:\+\w+)?://\w+:(?!SECRET|PASSWORD)[0-9A-Za-z]{16,}@",
    "a project's number": r"(?:projects/|gcp-sa-\S*service-|project_?number\W{1,4}|service-)\d{11,13}\b"
                          r"|\b\d{11,13}(?:-compute@developer|@cloudservices)\.gserviceaccount\.com"
                          r"|\b\d{11,13}(?:-\w+\.apps\.googleusercontent\.com|\.[a-z]+-[a-z]+\d\.run\.app)",
    "a billing account": r"\b[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}\b",
    # my-project and my-cards-1 stand for a project in examples
    "a service account": r"\b[a-z][a-z0-9-]+@(?!my-project\.|my-cards-1\.)[a-z][a-z0-9-]+\.iam\.gserviceaccount\.com",
    "a person's account": r"\b[a-z0-9.]+@(gmail|googlemail)\.com",
}


def secrets_in(text: str) -> list[str]:
    "Which kinds of secrets and names of accounts a text holds."
    return [kind for kind, pattern in SECRETS.items() if re.search(pattern, text)]


def test_no_key_no_project_number_and_no_account_is_in_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".onnx", ".webp", ".jpg", ".png", ".lock"):
            kinds = secrets_in(path.read_text(encoding="utf-8", errors="replace"))
            found |= {name: kinds} if kinds else {}
    assert found == {}


def test_what_must_not_be_there_would_be_found():
    planted = ["AI" + "za" + "b" * 35, "projects/" + "1" * 12, "0" * 6 + "-ABCDEF-" + "1" * 6, "trainer@my-cards.iam" +
               ".gserviceaccount.com", "somebody@" + "gmail.com", "gh" + "p_" + "a" * 36,
               "1" * 12 + "-compute@developer.gserviceaccount.com", "sk-ant-" + "b" * 40,
               "https://cards-" + "1" * 12 + ".europe-west4.run.app", "1" * 12 + "-abc.apps.googleusercontent.com",
               "WANDB_API_KEY=" + "a1" * 20, '{"username": "a", "key": "' + "0f" * 16 + '"}', "AKIA" + "B" * 16,
               '"private_key_id": "' + "ab" * 20 + '"', "pypi-AgE" + "x" * 60, "xoxb-" + "1a" * 12,
               "github_pat_" + "c" * 50, "postgresql://cards:" + "d" * 20 + "@db/cards"]  # fmt: skip
    assert all(secrets_in(f"x = {text}\n") for text in planted)
    assert secrets_in("trainer@${PROJECT}.iam.gserviceaccount.com projects/${NUMBER}") == []
