"The service as its clients and its operator meet it: real processes, sockets and signals."

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import types
from pathlib import Path

import httpx
import jsonschema
import psutil
import pytest
from PIL import Image
from conftest import colour_network, colour_picture

from card_classifier.bundle import released_bundle, write_bundle
from card_classifier.cards import CARDS
from card_classifier.demo.backend import EXAMPLES

COMMAND = str(Path(sys.executable).with_name("card-classifier"))


def encoded(index, size=(64, 48), file_format="PNG"):
    "The picture of a card of the tiny bundle as a file."
    buffer = io.BytesIO()
    colour_picture(index, size=size).save(buffer, file_format)
    return buffer.getvalue()


@contextlib.contextmanager
def serving(folder, bundle, *options, environment=(), workers=1, database="none"):
    "A running `card-classifier serve` and its address; ended, and its log shown, at the end."
    folder.mkdir(parents=True, exist_ok=True)
    log = open(folder / "log", "ab")
    arguments = [
        "--port",
        "0",
        "--workers",
        str(workers),
        "--bundle",
        str(bundle),
        "--database",
        database,
        "--logs",
        "json",
        *options,
    ]
    process = subprocess.Popen(
        [COMMAND, "serve", *arguments],
        cwd=folder,
        stdout=log,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict(environment)},
    )
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found, line + process.stderr.read()
        address = found[0]
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(address + "/health/ready", timeout=5).status_code == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        else:
            raise AssertionError("not ready: " + (folder / "log").read_text())
        wait_for(lambda: sum(event["event"] == "ready" for event in events(folder)) >= workers, 60)
        yield address, process, folder
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            log.close()
            print((folder / "log").read_text()[-5000:])


def events(folder):
    "The service's log, one dictionary a line."
    return [json.loads(line) for line in (folder / "log").read_text().split("\n") if line.startswith("{")]


def wait_for(condition, seconds=60):
    "Waits until `condition()` holds."
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"did not happen within {seconds} s: {condition}")


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    "A service with two workers and records, for the tests that leave it as it was."
    with serving(
        tmp_path_factory.mktemp("service"),
        tiny_bundle,
        "--no-demo",
        "--max-body",
        "3000000",
        "--max-files",
        "8",
        workers=2,
        database="sqlite:///records.sqlite",
    ) as running:
        yield running


def test_one_image_as_the_body(service):
    address, _, _ = service
    answer = httpx.post(address + "/v1/predict?top_k=3", content=encoded(31))
    said = answer.json()
    assert answer.status_code == 200 and answer.headers["x-request-id"] == said["request_id"]
    [prediction] = said["predictions"]
    assert (prediction["card"], len(prediction["top"]), prediction["error"], said["recorded"]) == (
        CARDS[31].class_name,
        3,
        None,
        "queued",
    )
    assert {"receive", "wait", "decode", "detect", "classify", "total"} == said["timings"].keys()
    assert said["timings"]["total"] >= said["timings"]["classify"] > 0


def strict(schema):
    "The same schema, which refuses what it does not name."
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(one) for name, one in schema.items()}
    return closed | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else closed


def is_described(document, method, path, answer):
    "Fails unless an answer is one of those that the OpenAPI document announces, to the last field."
    responses = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, f"{method} {path}: {answer.status_code} is not announced"
    content = responses[str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].split(";")[0]
    assert kind in content, f"{method} {path}: {answer.status_code} is announced as {list(content)}, and is {kind}"
    if kind == "text/plain":
        return
    schema = {**content[kind]["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(strict(schema)).validate(answer.json())


def test_real_answers_are_what_the_openapi_document_says(tmp_path):
    white = io.BytesIO()
    Image.new("RGB", (300, 400), "white").save(white, "PNG")
    hand, page = (EXAMPLES / "three-cards.webp").read_bytes(), (Path(__file__).parent / "test_api.py").read_bytes()
    options = ("--no-demo", "--max-files", "3", "--max-body", "3000000")
    with serving(tmp_path, released_bundle(), *options, database="sqlite:///records.sqlite") as (address, _, _):
        document = httpx.get(address + "/openapi.json").json()
        for schema in document["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)

        def ask(method, path, status, **request):
            answer = httpx.request(method, address + path, timeout=30, **request)
            assert answer.status_code == status, answer.text
            is_described(document, method.lower(), path, answer)
            return answer.json() if path != "/metrics" else answer.text

        three = ask("POST", "/v1/predict", 200, content=hand, params={"record": "wait"})
        assert len(three["predictions"][0]["cards"]) == 3
        assert three["predictions"][0]["cards"][0]["corners"]
        assert ask("POST", "/v1/predict", 200, content=white.getvalue())["predictions"][0]["is_rejected"]
        mixed = [("files", (name, content)) for name, content in (("a", hand), ("b", page), ("c", white.getvalue()))]
        assert ask("POST", "/v1/predict", 200, files=mixed)["predictions"][1]["error"]["status"] == 415
        for request, status, _ in BAD.values():
            if not isinstance(request.get("content"), types.GeneratorType) and status != 413:
                ask("POST", "/v1/predict", status, **request)
        ask("POST", "/v1/predict", 413, files=[*mixed, *mixed])
        ask("POST", "/v1/predict", 413, content=bytes(3_000_001))
        right = {"request_id": three["request_id"], "card": "10h"}
        assert ask("POST", "/v1/feedback", 200, json=right)["card"] == "ten of hearts"
        ask("POST", "/v1/feedback", 404, json=right | {"index": 7})
        ask("POST", "/v1/feedback", 422, json=right | {"card": "ace of clovers"})
        ask("POST", "/v1/feedback", 422, json={"card": "10h"})
        kinds = {"classifier", "detector", "index_detector", "index_reader"}
        assert set(ask("GET", "/v1/model", 200)["networks"]) == kinds
        for path in ("/health/live", "/health/ready", "/metrics"):
            ask("GET", path, 200)


def test_an_answer_that_is_not_described_is_noticed():
    document = {
        "paths": {
            "/x": {
                "get": {
                    "responses": {
                        "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}}}
                    }
                }
            }
        },
        "components": {"schemas": {"Answer": {"type": "object", "properties": {"card": {"type": "string"}}}}},
    }
    is_described(document, "get", "/x", httpx.Response(200, json={"card": "joker"}))
    for wrong in ({"card": 7}, {"card": "joker", "colour": "red"}):
        with pytest.raises(jsonschema.ValidationError):
            is_described(document, "get", "/x", httpx.Response(200, json=wrong))
    with pytest.raises(AssertionError, match="418 is not announced"):
        is_described(document, "get", "/x", httpx.Response(418, json={}))


def test_every_card_of_a_photo_is_answered_and_the_largest_is_recorded(tmp_path):
    with serving(tmp_path, released_bundle(), "--no-demo", database="sqlite:///records.sqlite") as (address, _, folder):
        answer = httpx.post(
            address + "/v1/predict", content=(EXAMPLES / "three-cards.webp").read_bytes(), timeout=30
        ).json()
        [prediction] = answer["predictions"]
        assert {card["card"] for card in prediction["cards"]} == {
            "seven of clubs",
            "queen of diamonds",
            "ace of hearts",
        }
        for card in prediction["cards"]:
            assert len(card["corners"]) == 4 and all(
                -0.1 < value < 1.1 for corner in card["corners"] for value in corner
            )
            assert card["probability"] > 0.5 and not card["is_rejected"]
        assert prediction["cards"][0]["card"] == prediction["card"]

        def recorded():
            with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(folder / "records.sqlite") as database:
                return database.execute("select count(*) from predictions").fetchone()[0] == 1

        wait_for(recorded)
        ace, twice, file = Image.open(EXAMPLES / "ace-of-spades.webp"), Image.new("RGB", (960, 480)), io.BytesIO()
        for left in (0, 480):
            twice.paste(ace.resize((480, 480)), (left, 0))
        twice.save(file, "PNG")
        named = []
        for one_deck in ("false", "true"):
            asked = httpx.post(f"{address}/v1/predict?one_deck={one_deck}", content=file.getvalue(), timeout=30).json()
            named.append([card["card"] for card in asked["predictions"][0]["cards"] if not card["is_rejected"]])
        assert named[0] == ["ace of spades"] * 2 and named[1].count("ace of spades") == 1
        with sqlite3.connect(folder / "records.sqlite") as database:
            [(cards,)] = database.execute("select cards from predictions order by time limit 1")
        assert [card["seen"] for card in json.loads(cards)] == ["card"] * 3


def test_the_keys_are_those_of_the_command_line(service, tiny_bundle, tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(3))
    said = subprocess.run(
        [COMMAND, "predict", "--json", "--bundle", str(tiny_bundle), "one.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    [prediction] = httpx.post(service[0] + "/v1/predict", content=encoded(3)).json()["predictions"]
    from_command = json.loads(said.stdout)
    assert prediction.keys() == from_command.keys()
    assert prediction["probability"] == pytest.approx(from_command["probability"], abs=1e-6)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_are_recognised_by_content(service, file_format):
    answer = httpx.post(
        service[0] + "/v1/predict", files={"files": ("photo.txt", encoded(7, file_format=file_format), "text/plain")}
    )
    assert answer.json()["predictions"][0]["card"] == CARDS[7].class_name


def test_a_bad_file_among_good_ones_spoils_nothing(service):
    contents = [encoded(1), b"this is text", encoded(2), b"", encoded(3)[:60], encoded(4)]
    answer = httpx.post(
        service[0] + "/v1/predict",
        files=[("files", (f"{place}.png", content)) for place, content in enumerate(contents)],
    )
    predictions = answer.json()["predictions"]
    assert answer.status_code == 200
    assert [one["card"] for one in predictions] == [
        CARDS[1].class_name,
        None,
        CARDS[2].class_name,
        None,
        None,
        CARDS[4].class_name,
    ]
    assert [one["error"] and one["error"]["status"] for one in predictions] == [None, 415, None, 422, 422, None]
    assert [one["file"] for one in predictions] == [f"{place}.png" for place in range(6)]


BAD = {
    "no body": (dict(content=b""), 422, "missing-file"),
    "a form without files": (dict(files={"comment": (None, b"hello")}), 422, "missing-file"),
    "text": (dict(content=b"hello"), 415, "not-an-image"),
    "json": (dict(json={"image": "base64"}), 415, "not-an-image"),
    "an empty file": (dict(files={"files": ("a.png", b"")}), 422, "empty-image"),
    "half an image": (dict(content=encoded(1)[:60]), 422, "broken-image"),
    "a wrong number": (dict(content=encoded(1), params={"top_k": "0"}), 422, "invalid-parameter"),
    "a word for a number": (dict(content=encoded(1), params={"top_k": "many"}), 422, "invalid-parameter"),
    "a broken form": (
        dict(content=b"--edge\r\nhello", headers={"content-type": "multipart/form-data; boundary=edge"}),
        400,
        "malformed-request",
    ),
    "a form without a boundary": (
        dict(content=b"x", headers={"content-type": "multipart/form-data"}),
        400,
        "malformed-request",
    ),
    "an endless file name": (dict(files={"files": ("x" * 1_000_000, encoded(1))}), 400, "malformed-request"),
    "too many files": (
        dict(files=[("files", (f"{place}.png", encoded(1))) for place in range(9)]),
        413,
        "too-many-files",
    ),
    "a large body": (dict(content=bytes(3_000_001)), 413, "body-too-large"),
    "a large body in pieces": (dict(content=(bytes(100_000) for _ in range(60))), 413, "body-too-large"),
}


@pytest.mark.parametrize("what", BAD)
def test_every_refusal_is_a_problem_document_with_its_own_status(service, what):
    request, status, reason = BAD[what]
    request = {**request, "content": (bytes(100_000) for _ in range(60))} if what.endswith("pieces") else request
    answer = httpx.post(service[0] + "/v1/predict", **request, timeout=20)
    said = answer.json()
    assert (answer.status_code, said["status"], said["type"]) == (
        status,
        status,
        f"urn:card-classifier:problem:{reason}",
    )
    assert (
        answer.headers["content-type"] == "application/problem+json"
        and said["request_id"] == answer.headers["x-request-id"]
    )
    assert {"title", "detail"} <= said.keys() and "/" + "tmp" not in answer.text and "Traceback" not in answer.text


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "a\\b\\c.png", "nul\x00name.png", 'name".png', "🂡.png", "x" * 300, ""]
)
def test_a_file_name_is_a_label(service, name):
    answer = httpx.post(service[0] + "/v1/predict", files=[("files", (name or "a", encoded(5)))])
    assert answer.json()["predictions"][0]["card"] == CARDS[5].class_name


def test_other_addresses_and_methods(service):
    address = service[0]
    asked = {
        "/nowhere": 404,
        "/v1/predict": 405,
        "/v1/nothing": 404,
        "/health/live": 200,
        "/v1/model": 200,
        "/openapi.json": 200,
        "/docs": 200,
    }
    for path, status in asked.items():
        answer = httpx.get(address + path)
        assert answer.status_code == status, path
        assert answer.headers["x-content-type-options"] == "nosniff" and len(answer.headers["x-request-id"]) == 32
    assert (
        httpx.options(
            address + "/v1/predict", headers={"origin": "http://elsewhere", "access-control-request-method": "POST"}
        ).headers.get("access-control-allow-origin")
        is None
    )
    page = httpx.get(address + "/docs").text
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page), "the description page asks other hosts"


def test_the_model_says_what_it_is_and_no_path(service, tiny_bundle):
    said = httpx.get(service[0] + "/v1/model").json()
    assert said["model_version"] and len(said["class_names"]) == 53
    assert str(tiny_bundle) not in json.dumps(said) and "data.source" not in json.dumps(said)


def test_concurrent_callers_get_their_own_answers(service):
    def ask(number):
        index = number * 7 % 53
        with httpx.Client() as client:
            if number % 3:
                answers = [
                    client.post(service[0] + "/v1/predict", content=encoded(index)).json()["predictions"][0]["card"]
                ]
            else:
                asked = [(index + step) % 53 for step in range(4)]
                found = client.post(
                    service[0] + "/v1/predict", files=[("files", ("a", encoded(one))) for one in asked]
                ).json()["predictions"]
                return [one["card"] for one in found] == [CARDS[one].class_name for one in asked]
        return answers == [CARDS[index].class_name]

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(600)))


def test_feedback_reaches_the_records(service):
    address, _, folder = service
    asked = httpx.post(
        address + "/v1/predict?record=wait", files=[("files", ("a", encoded(9))), ("files", ("b", encoded(10)))]
    ).json()
    assert asked["recorded"] == "written"
    kept = httpx.post(address + "/v1/feedback", json={"request_id": asked["request_id"], "index": 1, "card": "10h"})
    assert (kept.status_code, kept.json()["card"]) == (200, "ten of hearts")
    with sqlite3.connect(folder / "records.sqlite") as database:
        tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        stored = "".join(str(database.execute(f"select * from {table}").fetchall()) for table in tables)
    assert asked["request_id"] in stored and "ten of hearts" in stored
    wrong = {"request_id": asked["request_id"], "index": 7, "card": "10h"}
    assert httpx.post(address + "/v1/feedback", json=wrong).status_code == 404
    assert httpx.post(address + "/v1/feedback", json={**wrong, "request_id": "f" * 32}).status_code == 404
    for bad in (
        {},
        {**wrong, "card": "ace of clovers"},
        {**wrong, "request_id": "1"},
        {**wrong, "index": -1},
        [1],
        "text",
    ):
        assert httpx.post(address + "/v1/feedback", json=bad).status_code == 422
    assert httpx.post(
        address + "/v1/feedback", content=b"{\xff", headers={"content-type": "application/json"}
    ).status_code in (400, 422)


def test_retention_is_applied_while_the_service_runs(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", "--keep-images", database="sqlite:///records.sqlite") as (
        address,
        _,
        folder,
    ):
        assert httpx.post(address + "/v1/predict?record=wait", content=encoded(9)).json()["recorded"] == "written"

    def counts():
        with contextlib.closing(sqlite3.connect(folder / "records.sqlite")) as database:
            return [
                database.execute(f"select count(*) from {table}").fetchone()[0] for table in ("predictions", "images")
            ]

    assert counts() == [1, 1]
    limits = ("--image-days", "0.000001", "--record-days", "0")
    with serving(tmp_path, tiny_bundle, "--no-demo", *limits, database="sqlite:///records.sqlite") as (address, _, _):
        wait_for(lambda: "retention refused" in [event["event"] for event in events(folder)], 20)
        assert counts() == [1, 1]
        wait_for(lambda: numbers(address)['card_classifier_retention_rounds_total{result="refused"}'] == 1)
        clean = [COMMAND, "records", "clean", "--image-days", "0", "--database", "sqlite:///records.sqlite"]
        for options, status, left in (((), 2, [1, 1]), (("--confirm",), 0, [1, 0])):
            run = subprocess.run([*clean, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert (run.returncode, counts()) == (status, left), run.stderr
        with contextlib.closing(sqlite3.connect(folder / "records.sqlite")) as database:
            database.execute("create temp table copy as select * from predictions")
            for number in range(20):
                database.execute("update copy set request_id = printf('%032x', ?)", (number,))
                database.execute("insert into predictions select * from copy")
            database.execute("update predictions set time = '2020-01-01 00:00:00' where request_id = ?", ("0" * 32,))
            database.commit()
    with serving(tmp_path, tiny_bundle, "--no-demo", "--record-days", "30", database="sqlite:///records.sqlite"):
        wait_for(lambda: counts() == [20, 0], 20)
    assert "retention applied" in [event["event"] for event in events(folder)]


def numbers(address):
    "The metrics as a dictionary."
    lines = httpx.get(address + "/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and not line.startswith("#")
    }


def test_metrics_add_up_over_the_workers(service):
    address = service[0]
    before = numbers(address)
    for _ in range(40):
        httpx.post(address + "/v1/predict", content=encoded(12))
    httpx.post(address + "/v1/predict", content=b"text")
    after = numbers(address)

    def grown(name):
        return after.get(name, 0) - before.get(name, 0)

    assert grown(f'card_classifier_cards_total{{card="{CARDS[12].class_name}"}}') == 40
    assert grown('card_classifier_requests_total{route="/v1/predict",status="200"}') == 40
    assert grown('card_classifier_errors_total{reason="not-an-image"}') == 1
    assert grown('card_classifier_prediction_stage_duration_seconds_count{stage="classify"}') == 41
    assert after["card_classifier_waiting_requests"] == 0
    assert len([name for name in after if name.startswith("card_classifier_process_resident_memory_bytes")]) == 2


def test_an_api_key_is_asked_for_and_never_logged(tiny_bundle, tmp_path):
    with serving(
        tmp_path, tiny_bundle, "--no-demo", environment={"CARD_CLASSIFIER_API_KEYS": "first-key, second-key"}
    ) as (address, _, folder):

        def status(headers):
            return httpx.post(address + "/v1/predict", content=encoded(1), headers=headers).status_code

        assert [
            status({}),
            status({"x-api-key": "wrong"}),
            status({"authorization": "Bearer first-ke"}),
            status({"x-api-key": ""}),
        ] == [401] * 4
        assert [status({"x-api-key": "second-key"}), status({"authorization": "Bearer first-key"})] == [200, 200]
        assert (
            httpx.get(address + "/metrics").status_code == 401
            and httpx.get(address + "/health/ready").status_code == 200
        )
        assert "first-key" not in (folder / "log").read_text() and "second-key" not in (folder / "log").read_text()


def test_cors_is_open_only_for_those_named(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", "--cors-origins", "https://cards.example") as (address, _, _):

        def allowed(origin):
            return httpx.post(address + "/v1/predict", content=encoded(1), headers={"origin": origin}).headers.get(
                "access-control-allow-origin"
            )

        assert (allowed("https://cards.example"), allowed("https://evil.example")) == ("https://cards.example", None)


def test_slow_clients_are_sent_away_and_keep_nobody_waiting(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", "--body-seconds", "3") as (address, _, folder):
        host, port = re.search(r"//(.*):(\d+)", address).groups()
        slow = [socket.create_connection((host, int(port))) for _ in range(200)]
        for place, one in enumerate(slow):
            one.sendall(
                b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n"
                + (b"content-length: 1000\r\n\r\nx" if place % 2 else b"x-slow: ")
            )
        times, ended = [], time.monotonic() + 14
        while time.monotonic() < ended:
            started = time.monotonic()
            assert (
                httpx.post(address + "/v1/predict", content=encoded(20), timeout=5).json()["predictions"][0]["card"]
                == "joker"
            )
            times.append(time.monotonic() - started)
            for one in slow:
                with contextlib.suppress(OSError):
                    one.send(b"y")
            time.sleep(0.5)
        answers, ended = [], time.monotonic() + 5
        for one in slow:
            one.settimeout(max(0.01, ended - time.monotonic()))
            with contextlib.suppress(OSError):
                answers.append(one.recv(100)[:12])
            one.close()
        assert answers.count(b"HTTP/1.1 408") >= 195, answers[:5]
        assert max(times) < 2
        assert sum(event.get("reason") == "body-too-slow" for event in events(folder)) >= 195


def test_slow_clients_take_no_place_and_too_many_waiting_are_sent_away_with_a_hint(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", "--max-waiting", "2") as (address, _, _):
        host, port = re.search(r"//(.*):(\d+)", address).groups()
        held = [socket.create_connection((host, int(port))) for _ in range(20)]
        for one in held:
            one.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
        assert [httpx.post(address + "/v1/predict", content=encoded(1)).status_code for _ in range(3)] == [200] * 3
        for one in held:
            one.close()
        large, answers = encoded(1, size=(2000, 2000)), []
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            while not any(answer.status_code == 503 for answer in answers):
                answers += pool.map(lambda _: httpx.post(address + "/v1/predict", content=large, timeout=60), range(16))
        assert {answer.status_code for answer in answers} == {200, 503}
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}


def test_five_hundred_connections_at_once(service):
    address = service[0]
    with (
        httpx.Client(limits=httpx.Limits(max_connections=500, max_keepalive_connections=500), timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(500) as pool,
    ):
        answers = list(
            pool.map(lambda number: client.post(address + "/v1/predict", content=encoded(number % 53)), range(500))
        )
    assert {answer.status_code for answer in answers} <= {200, 503}
    for number, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["predictions"][0]["card"] == CARDS[number % 53].class_name
    assert sum(answer.status_code == 200 for answer in answers) > 250


def test_a_new_bundle_is_taken_and_a_bad_one_refused_without_losing_a_request(tiny_bundle, tiny_info, tmp_path):
    live = shutil.copytree(tiny_bundle, tmp_path / "live")
    newer = write_bundle(
        tmp_path / "newer", dataclasses.replace(tiny_info, model_version="tiny-2"), {"classifier": colour_network()}
    )
    with serving(tmp_path / "service", live, "--no-demo", "--watch-seconds", "0.2", workers=2) as (address, _, folder):
        stop, seen, failures = time.monotonic() + 12, [], []

        def keep_asking():
            with httpx.Client() as client:
                while time.monotonic() < stop:
                    answer = client.post(address + "/v1/predict", content=encoded(8))
                    (
                        seen
                        if answer.status_code == 200 and answer.json()["predictions"][0]["card"] == CARDS[8].class_name
                        else failures
                    ).append(answer.json().get("model_version"))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking) for _ in range(4)]
            (live / "classifier.onnx").write_bytes(b"broken")
            wait_for(lambda: sum(event["event"] == "new bundle refused" for event in events(folder)) >= 2)
            assert httpx.get(address + "/v1/model").json()["model_version"] != "tiny-2"
            for name in ("classifier.onnx", "bundle.json"):
                shutil.copy(newer / name, live / name)
            wait_for(lambda: sum(event["event"] == "new bundle in service" for event in events(folder)) >= 2)
            for one in asking:
                one.result()
        assert not failures and set(seen[:5]) != {"tiny-2"} and set(seen[-5:]) == {"tiny-2"}


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_sighup_makes_all_workers_look(tiny_bundle, tiny_info, tmp_path):
    live = shutil.copytree(tiny_bundle, tmp_path / "live")
    with serving(tmp_path / "service", live, "--no-demo", "--watch-seconds", "0", workers=2) as (
        address,
        process,
        folder,
    ):
        shutil.rmtree(live)
        write_bundle(live, dataclasses.replace(tiny_info, model_version="tiny-3"), {"classifier": colour_network()})
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: sum(event["event"] == "new bundle in service" for event in events(folder)) == 2)
        assert {httpx.get(address + "/v1/model").json()["model_version"] for _ in range(10)} == {"tiny-3"}


def test_a_killed_worker_is_replaced(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", workers=2) as (address, process, folder):
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2
        workers[0].kill()
        wait_for(lambda: sum(event["event"] == "ready" for event in events(folder)) == 3, seconds=120)
        for _ in range(20):
            assert httpx.post(address + "/v1/predict", content=encoded(1)).status_code == 200
        wait_for(
            lambda: (
                sum(name.startswith("card_classifier_process_resident_memory_bytes") for name in numbers(address)) == 2
            )
        )


def test_a_worker_that_starts_beside_a_bad_bundle_serves_the_latest_good_one(tiny_bundle, tiny_info, tmp_path):
    live = shutil.copytree(tiny_bundle, tmp_path / "live")
    newer = write_bundle(
        tmp_path / "newer", dataclasses.replace(tiny_info, model_version="tiny-4"), {"classifier": colour_network()}
    )
    with serving(tmp_path / "service", live, "--no-demo", "--watch-seconds", "0.2", workers=2) as (
        address,
        process,
        folder,
    ):
        for name in ("classifier.onnx", "bundle.json"):
            shutil.copy(newer / name, live / name)
        wait_for(lambda: sum(event["event"] == "new bundle in service" for event in events(folder)) >= 2)
        (live / "classifier.onnx").write_bytes(b"broken")
        next(
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ).kill()
        wait_for(lambda: sum(event["event"] == "ready" for event in events(folder)) == 3, seconds=120)
        assert {httpx.get(address + "/v1/model").json()["model_version"] for _ in range(20)} == {"tiny-4"}
        assert any("the latest good one goes on" in event["event"] for event in events(folder))


def test_workers_do_not_outlive_a_killed_supervisor(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", workers=2) as (_, process, _):
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        process.kill()
        assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=30)[1]


def test_stopping_finishes_what_was_accepted_and_writes_it_down(tiny_bundle, tmp_path):
    with serving(tmp_path, tiny_bundle, "--no-demo", workers=2, database="sqlite:///records.sqlite") as (
        address,
        process,
        folder,
    ):

        def ask(_):
            try:
                return httpx.post(address + "/v1/predict", content=encoded(1), timeout=20).json()["request_id"]
            except httpx.TransportError:
                return None

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, number) for number in range(400)]
            while sum(one.done() for one in asked) < 100:
                time.sleep(0.01)
            process.terminate()
            assert process.wait(20) == 0
            answered = {one.result() for one in asked} - {None}
        with sqlite3.connect(folder / "records.sqlite") as database:
            dump = "\n".join(database.iterdump())
        assert len(answered) >= 100 and all(request_id in dump for request_id in answered)


def test_a_wrong_start_is_one_line(tiny_bundle, tmp_path):
    def started(*options):
        return subprocess.run(
            [COMMAND, "serve", "--database", "none", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    with socket.create_server(("127.0.0.1", 0)) as taken:
        runs = [
            started("--bundle", str(tmp_path)),
            started("--bundle", str(tiny_bundle), "--port", str(taken.getsockname()[1])),
            started("--bundle", str(tiny_bundle), "--engine", "abacus"),
            started("--bundle", str(tiny_bundle), "--database", "nonsense"),
        ]
    for run in runs:
        assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
        assert run.stderr.count("\n") <= 2, run.stderr
