"Small requests that would take much, clients that don't read, and operators' mistakes: the service goes on."

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import quote

import httpx
import prometheus_client
import psutil
import pytest
from PIL import Image
from test_api import COMMAND, encoded, events, serving, wait_for
from test_decoding import encoded as written
from test_decoding import run_length_bitmap
from test_supervision import workers_of

from card_classifier.serving.supervision import MOST_FAILURES, Supervisor, supervise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MAX_BODY = 8_000_000
LISTS = b"[" + b"[]," * (MAX_BODY // 3 - 10) + b"[]]"
GZIP = {"content-encoding": "gzip"}
JSON = {"content-type": "application/json"}
BODIES = {
    "millions of empty lists": ("/v1/predict", LISTS, {}, 415),
    "the same as feedback": ("/v1/feedback", LISTS, JSON, 413),
    "the same as feedback, packed": ("/v1/feedback", gzip.compress(LISTS), JSON | GZIP, 413),
    "lists in lists": ("/v1/predict", b"[" * (MAX_BODY - 10), {}, 415),
    "zeros, packed": ("/v1/predict", gzip.compress(bytes(MAX_BODY - 10)), GZIP, 413),
    "a form with millions of escapes": ("/v1/predict", b"a=" + b"%41" * (MAX_BODY // 3 - 10), {}, 415),
    "a data URL with millions of escapes": ("/v1/predict", b"data:," + b"%41" * (MAX_BODY // 3 - 10), {}, 415),
}


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    "A service with records, one worker, that takes bodies of 8 MB."
    folder, options = tmp_path_factory.mktemp("hostile"), ("--no-demo", "--max-body", str(MAX_BODY))
    with serving(folder, tiny_bundle, *options, database="sqlite:///r.sqlite") as running:
        yield running


def peak(process):
    "The most memory that a process has had, in bytes."
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


@pytest.mark.parametrize("what", BODIES)
def test_a_body_that_would_grow_when_it_is_read_is_refused(service, what):
    address, process, _ = service
    path, content, headers, status = BODIES[what]
    before, started = peak(process), psutil.Process(process.pid).cpu_times().user
    answer = httpx.post(address + path, content=content, headers=headers, timeout=60)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert peak(process) - before < 60_000_000  # Lists of lists took 200 MB, escapes 600 MB
    assert psutil.Process(process.pid).cpu_times().user - started < 1.5


def test_who_does_not_read_an_answer_is_cut_off(service):
    address, process, folder = service
    host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
    clients = []
    for _ in range(10):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        # Twenty ahead: the system's buffers hold one or two
        client.sendall(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
        clients.append(client)

    def left():
        ports = {client.getsockname()[1] for client in clients}
        open_ones = psutil.Process(process.pid).net_connections("tcp")
        return [one for one in open_ones if one.raddr and one.raddr.port in ports and one.status == "ESTABLISHED"]

    wait_for(left)
    wait_for(lambda: not left(), 30)
    assert not [event for event in events(folder) if event.get("level") == "error"]
    for client in clients:
        client.close()


def test_the_log_can_not_be_forged_by_any_letter(service):
    address, _, folder = service
    forged = '\u2028{"event": "forged"}\x85\x9b31m\u202e\u200b\U000e0041\x7f\n'
    httpx.get(address + "/v1/" + quote(forged))
    wait_for(lambda: any("forged" in str(event.get("path")) for event in events(folder)))
    for line in (folder / "log").read_text().splitlines():  # Where Python, too, ends a line at U+2028
        assert line.isprintable() and "event" in json.loads(line)
    assert any(event.get("path") == "/v1/" + forged for event in events(folder))


def test_pictures_of_the_camera_wait_like_others_and_keep_no_service_from_stopping(tiny_bundle, tmp_path):
    slow = run_length_bitmap(3000)
    with serving(tmp_path, tiny_bundle, "--grace-seconds", "3") as (address, process, _):
        host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
        httpx.get(address + "/", timeout=60)
        clients = []
        for path in (b"/demo/look", b"/demo/look", b"/demo/answer", b"/demo/answer"):
            clients.append(socket.create_connection((host, int(port))))
            clients[-1].sendall(b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(slow))
            clients[-1].sendall(slow)
        time.sleep(2)
        assert httpx.post(address + "/v1/predict", content=encoded(1), timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # 1 if it had to be killed
        for client in clients:
            client.close()


def test_who_clears_up_temporary_files_does_no_harm(tiny_bundle, tmp_path):
    large = written(Image.new("RGB", (8000, 4000), (200, 30, 40)), "JPEG")
    with serving(tmp_path, tiny_bundle, "--no-demo", workers=2) as (address, process, folder):
        worker = workers_of(process)[0]
        variables = worker.environ()
        for name in (
            Path(variables["PROMETHEUS_MULTIPROC_DIR"]),
            Path(variables["CARD_CLASSIFIER_SPARE_BUNDLE"]).parent,
        ):
            shutil.rmtree(name)
        assert httpx.post(address + "/v1/predict", content=large, timeout=60).status_code == 200
        for worker in workers_of(process):
            worker.kill()
        wait_for(lambda: sum(event["event"] == "ready" for event in events(folder)) == 4)
        assert httpx.get(address + "/metrics").text.endswith("card_classifier_metrics_complete 1.0\n")
        assert Path(variables["CARD_CLASSIFIER_SPARE_BUNDLE"], "bundle.json").exists()


def test_a_log_that_can_not_be_written_stops_nothing(tiny_bundle, tmp_path):
    arguments = ["--port", "0", "--workers", "2", "--bundle", tiny_bundle, "--database", "none", "--logs", "json"]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [COMMAND, "serve", "--no-demo", *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    try:
        address = re.search(r"http://\S+:\d+", process.stderr.readline())[0]

        def is_ready():
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(address + "/health/ready", timeout=5).status_code == 200

        wait_for(is_ready)
        assert httpx.post(address + "/v1/predict", content=encoded(1), timeout=30).status_code == 200
        dead = workers_of(process)[0]
        dead.kill()
        wait_for(lambda: len({one.pid for one in workers_of(process)} - {dead.pid}) == 2)
        assert httpx.post(address + "/v1/predict", content=encoded(1), timeout=30).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_worker_that_can_not_be_started_is_started_later():
    counter = prometheus_client.Counter("replaced", "", ["reason"], registry=None)
    tries = []

    def start():
        tries.append(time.monotonic())
        raise BlockingIOError(11, os.strerror(11))

    supervisor = Supervisor(start, 2, 1, counter)
    with pytest.raises(ChildProcessError, match="no worker starts"):
        supervise(supervisor, deque(), [])
    assert len(tries) == MOST_FAILURES
