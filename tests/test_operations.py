"What operators read: metrics after Prometheus' conventions, and a log of which every line is JSON."

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest
from test_api import encoded, events, numbers, serving, wait_for

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="needs promtool: apt-get install prometheus")


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    "A service with two workers, records and the demo, whose Gradio is a broken one."
    folder = tmp_path_factory.mktemp("operations")
    broken = folder / "broken"
    broken.mkdir()
    (broken / "gradio.py").write_text("import no_such_library_of_pages\n")
    path = os.pathsep.join(filter(None, (str(broken), os.environ.get("PYTHONPATH", ""))))
    environment = {"PYTHONPATH": path}
    with serving(
        folder, tiny_bundle, "--max-files", "3", environment=environment, workers=2, database="sqlite:///r.sqlite"
    ) as running:
        yield running


@needs_promtool
def test_metrics_follow_the_conventions_of_prometheus(service):
    address, _, _ = service
    httpx.post(address + "/v1/predict?record=wait", content=encoded(3))
    httpx.post(address + "/v1/predict", content=b"no picture")
    text = httpx.get(address + "/metrics").text
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    kinds = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    assert {name for name, kind in kinds.items() if (kind == "counter") != name.endswith("_total")} == set()
    assert kinds["card_classifier_request_duration_seconds"] == "histogram"
    assert 'card_classifier_model_info{version="colours-1"} 1.0' in text


def test_counters_of_readings_grow_over_all_workers(service):
    address, _, folder = service
    for _ in range(10):
        assert httpx.post(address + "/v1/predict?record=wait", content=encoded(5)).json()["recorded"] == "written"

    def n_records() -> int:
        "What the database holds: other tests asked this service too, and may be written or counted later."
        with contextlib.closing(sqlite3.connect(folder / "r.sqlite")) as database:
            return database.execute("select count(*) from predictions").fetchone()[0]

    assert n_records() >= 10
    wait_for(lambda: numbers(address)["card_classifier_records_written_total"] == n_records())
    assert numbers(address)["card_classifier_process_cpu_seconds_total"] > 0


def test_a_file_that_no_worker_can_read_is_left_out_and_told(service):
    address, process, _ = service
    httpx.post(address + "/v1/predict", content=encoded(3))
    workers = psutil.Process(process.pid).children(recursive=True)
    [folder] = {one.environ().get("PROMETHEUS_MULTIPROC_DIR") for one in workers} - {None}
    before = numbers(address)
    assert before["card_classifier_metrics_files_damaged"] == 0
    damaged = Path(folder) / "counter_1.db"
    damaged.write_bytes(min(Path(folder).glob("counter_*.db")).read_bytes()[:30])
    after = numbers(address)
    damaged.unlink()
    assert after["card_classifier_metrics_files_damaged"] == 1 and after["card_classifier_metrics_complete"] == 1
    name = 'card_classifier_requests_total{route="/v1/predict",status="200"}'
    assert after[name] == before[name] > 0
    assert numbers(address)["card_classifier_metrics_files_damaged"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/", b""), ("POST", "/demo/answer", bytes(200_000)), ("GET", "/assets/" + "a" * 5000 + ".js", b"")],
)
def test_a_page_whose_library_is_broken_is_a_problem_document_and_in_the_log_under_its_id(service, method, path, body):
    address, _, folder = service
    answer = httpx.request(method, address + path, content=body, timeout=60)
    said = answer.json()
    assert answer.status_code == 500 and answer.headers["content-type"] == "application/problem+json"

    def logged():
        return [event for event in events(folder) if event.get("request_id") == said["request_id"]]

    wait_for(lambda: len(logged()) == 2, 10)
    found = logged()
    assert [event["event"] for event in found] == ["unexpected error", "request"]
    assert any("no_such_library_of_pages" in event.get("exception", "") for event in found)
    assert [(event["status"], event["reason"]) for event in found if event["event"] == "request"] == [(500, "internal")]
    assert numbers(address)['card_classifier_errors_total{reason="internal"}'] >= 1


def test_every_refusal_is_in_the_log_with_its_reason(service):
    address, _, folder = service
    asked = {
        "not-an-image": httpx.post(address + "/v1/predict", content=b"no picture"),
        "missing-file": httpx.post(address + "/v1/predict", content=b""),
        "too-many-files": httpx.post(address + "/v1/predict", files=[("files", ("a", encoded(1)))] * 4),
        "invalid-parameter": httpx.post(address + "/v1/predict?top_k=99", content=encoded(1)),
        "method-not-allowed": httpx.get(address + "/v1/predict"),
        "not-found": httpx.get(address + "/v1/nothing"),
        "unknown-request": httpx.post(address + "/v1/feedback", json={"request_id": "f" * 32, "card": "10h"}),
    }

    def logged():
        found = {event.get("request_id"): event for event in events(folder) if event["event"] == "request"}
        return {name: found.get(answer.headers["x-request-id"], {}).get("reason") for name, answer in asked.items()}

    wait_for(lambda: all(logged().values()), 10)
    assert logged() == {name: name for name in asked}
    [line] = [one for one in events(folder) if one.get("request_id") == asked["not-found"].headers["x-request-id"]]
    assert line["detail"] == asked["not-found"].json()["detail"] and line["client"] == "127.0.0.1"


def test_every_line_of_the_log_is_json(service):
    _, _, folder = service
    lines = (folder / "log").read_text().splitlines()
    assert lines and all(isinstance(json.loads(line), dict) for line in lines)


def test_files_of_the_page_and_probes_do_not_fill_the_log(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, environment={"ALL_PROXY": "socks5://127.0.0.1:9"}) as (address, _, folder):
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            assert client.get("/").status_code == 200, "a proxy that is not there is none of the page's business"
            assert client.get("/examples/joker.webp").status_code == 200
            assert client.get("/static-offline-docs/swagger-ui.css").status_code == 200
            lost = client.get("/examples/" + "a" * 5000 + ".webp")
            wrong = client.put("/")
        assert (lost.status_code, lost.json()["type"]) == (404, "urn:card-classifier:problem:not-found")
        assert (wrong.status_code, wrong.json()["type"]) == (405, "urn:card-classifier:problem:method-not-allowed")
        assert lost.json()["request_id"] == lost.headers["x-request-id"]

        def logged():
            return [event for event in events(folder) if event["event"] == "request"]

        wait_for(lambda: len(logged()) >= 3, 10)
        assert [event["status"] for event in logged()] == [200, 404, 405]
