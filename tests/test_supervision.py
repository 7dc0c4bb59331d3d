"The service under signals at every moment, workers that hang, killed services, and databases in trouble."

import base64
import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from test_api import COMMAND, encoded, events, numbers, serving, wait_for

from card_classifier.serving.supervision import PREFIX, is_abandoned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def workers_of(process):
    "The worker processes of a service."
    workers = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):  # It ends at this moment
            workers += [child] * ("spawn_main" in " ".join(child.cmdline()))
    return workers


def left_behind():
    "What services have made in memory and on disk and nobody owns any more; those of other tests go on."
    left = set()
    for place in ("/dev/shm", "/tmp"):
        for folder in Path(place).glob(PREFIX + "*"):
            with contextlib.suppress(FileNotFoundError):  # Its service removes it at this moment
                left |= {folder} if is_abandoned(folder) else set()
    return left


def test_a_stopped_worker_and_a_dead_one_are_replaced_and_the_service_ends_in_time(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", workers=2) as (address, process, folder):
        stopped, dead = workers_of(process)
        stopped.suspend()
        dead.kill()
        wait_for(lambda: sum(event["event"] == "ready" for event in events(folder)) == 4)
        told = {event["event"] for event in events(folder) if event["event"].startswith("worker ")}
        assert told == {"worker died", "worker hung"}
        assert not {stopped.pid, dead.pid} & {worker.pid for worker in workers_of(process)}
        assert httpx.post(address + "/v1/predict", content=encoded(1)).status_code == 200
        found = numbers(address)
        assert found['card_classifier_workers_replaced_total{reason="hung"}'] == 1
        assert found['card_classifier_workers_replaced_total{reason="died"}'] == 1
        suspended = workers_of(process)[0]
        suspended.suspend()
        started = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - started < 25  # On a busy machine; else one
        assert suspended.pid in [event["pid"] for event in events(folder) if event["event"] == "stopped"]


def test_a_signal_at_any_moment_of_the_start_ends_it_with_one_line(tiny_bundle, tmp_path):
    before = left_behind()
    arguments = ["--port", "0", "--bundle", str(tiny_bundle), "--database", "none", "--workers"]
    moments = ((1, signal.SIGINT, 0.1), (2, signal.SIGTERM, 0.0), (2, signal.SIGINT, 1.0))
    for n_workers, number, seconds in moments:
        process = subprocess.Popen(
            [COMMAND, "serve", *arguments, str(n_workers), "--no-demo", "--logs", "json"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert "serving at" in process.stderr.readline()
        time.sleep(seconds)
        os.killpg(process.pid, number)  # As a terminal does: the workers get it, too
        started = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - started < 25
        assert "Traceback" not in err + out, err + out
        assert err.splitlines()[-1] == "stopped" and len(err.splitlines()) <= 2, err
        assert process.returncode == 0
    assert left_behind() <= before


def test_what_a_killed_service_has_left_is_removed_by_the_next(tiny_bundle, tmp_path):
    before = left_behind()
    with serving(tmp_path / "first", tiny_bundle, "--no-demo") as (_, process, _):
        process.kill()
        process.wait()
    left = left_behind() - before
    assert len(left) == 2
    with serving(tmp_path / "second", tiny_bundle, "--no-demo"):
        assert not left & left_behind()


def said(client):
    "What a connection is answered, to the end of its JSON."
    answer = b""
    client.settimeout(30)
    with client:
        while not answer.endswith(b"}"):
            data = client.recv(65536)
            if not data:
                break
            answer += data
    return answer


def test_trouble_with_the_database_delays_no_answer_and_is_told(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", database="sqlite:///records.sqlite") as (address, _, folder):
        file = folder / "records.sqlite"
        assert {path.stat().st_mode & 0o777 for path in folder.glob("records.sqlite*")} == {0o600}
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other, httpx.Client() as client:
            other.execute("BEGIN IMMEDIATE")
            host, port = re.search(r"//(.*):(\d+)", address).groups()
            waiting = [socket.create_connection((host, int(port))) for _ in range(6)]
            photo = encoded(3)
            head = b"POST /v1/predict?record=wait HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(photo)
            for one in waiting:
                one.sendall(head + photo)
            told = b'{"request_id": "%s", "card": "joker"}' % (b"0" * 32)
            head = (
                b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            )
            telling = [
                socket.create_connection((host, int(port))) for _ in range(60)
            ]  # More than threads that could wait
            for one in telling:
                one.sendall(head % len(told) + told)
            ended, times, as_text = time.monotonic() + 3, [], base64.b64encode(photo)  # Unwrapped in a thread
            while time.monotonic() < ended:
                started = time.monotonic()
                assert client.post(address + "/v1/predict", content=as_text).status_code == 200
                assert client.get(address + "/metrics").status_code == 200
                times.append(time.monotonic() - started)
            assert sorted(times)[len(times) // 2] < 1
            assert all(b"records-away" in said(one) for one in telling)
            assert all(b'"recorded":"queued"' in said(one) for one in waiting)
            wait_for(lambda: client.get(address + "/health/ready").status_code == 503)
            assert client.get(address + "/health/live").status_code == 200
            trouble = client.get(address + "/health/ready").json()
            assert trouble["type"].endswith("records-away") and "not recorded" in trouble["detail"]
            other.execute("ROLLBACK")
            wait_for(lambda: client.get(address + "/health/ready").status_code == 200)
            answer = client.post(address + "/v1/predict?record=wait", content=photo, timeout=30).json()
            assert answer["recorded"] == "written"


def test_records_that_can_not_be_kept_are_told_at_the_start(tiny_bundle, tmp_path):
    (tmp_path / "a file").write_text("Where a folder should be.")
    with serving(
        tmp_path / "service",
        tiny_bundle,
        "--no-demo",
        "--ready-unrecorded",
        database=f"sqlite:///{tmp_path}/a file/records.sqlite",
    ) as (address, process, folder):
        assert httpx.post(address + "/v1/predict", content=encoded(1)).json()["recorded"] == "queued"
        assert any(event["event"] == "answers can't be recorded" for event in events(folder))
        process.terminate()
        assert "NOT recorded" in process.stderr.read()


def test_keys_without_a_key_and_other_wrong_starts_are_one_line(tiny_bundle, tmp_path):
    arguments = [COMMAND, "serve", "--database", "none", "--bundle", str(tiny_bundle)]
    for keys in (",", " "):
        run = subprocess.run(
            arguments,
            cwd=tmp_path,
            env={**os.environ, "CARD_CLASSIFIER_API_KEYS": keys},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == 2 and "holds no key" in run.stderr and run.stderr.count("\n") == 1, run.stderr
