"Whatever is sent, in whatever header, name or parameter, is answered in one shape and stops nothing."

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_api import encoded, events, serving, wait_for

from card_classifier.bundle import BUNDLE_FILE, BundleError, load_bundle
from card_classifier.cards import CARDS

EXAMPLES = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
PICTURE = encoded(7)
PROBLEM = re.compile(r"urn:card-classifier:problem:[a-z-]+")


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    "A service with everything: records, the page, one worker. Afterwards nothing went wrong in it unseen."
    folder = tmp_path_factory.mktemp("fuzzed")
    live = shutil.copytree(tiny_bundle, folder / "live")
    with serving(folder / "service", live, "--watch-seconds", "0", database="sqlite:///r.sqlite") as (address, *rest):
        ask(address, raw("GET", "/"))  # The page is built when it is first asked for
        yield address, *rest, live
    wrong = [event for event in events(folder / "service") if event.get("level") in ("error", "critical")]
    assert {event["event"] for event in wrong} <= {"new bundle refused"}, wrong


def raw(method: str, target: bytes | str, headers=(), body: bytes = b"") -> bytes:
    "A request as it goes over the wire, whole and with its length."
    target = target if isinstance(target, bytes) else target.encode("latin-1")
    lines = [method.encode("latin-1") + b" " + target + b" HTTP/1.1", b"host: cards.example", b"connection: close"]
    lines += [b"content-length: %d" % len(body)] * (method not in ("GET", "HEAD") or bool(body))
    return b"\r\n".join([*lines, *(name + b": " + value for name, value in headers), b"", body])


def ask(address: str, request: bytes, is_all: bool = False) -> tuple[int, dict[str, str], bytes]:
    "Status, headers and body of the answer to a request; status 0 if there is none."
    host, port = re.fullmatch(r"http://(.*):(\d+)", address).groups()
    with socket.create_connection((host, int(port)), timeout=60) as client:
        with contextlib.suppress(ConnectionError):  # It has heard enough, and its answer is there
            client.sendall(request)
            if is_all:
                client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65536):
                answer += piece
    if not answer:
        return 0, {}, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    said = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split(" ")[1]), said, body[: int(said.get("content-length", len(body)))]  # The first answer's


def check(service, request: bytes, is_all: bool = False) -> tuple[int, bytes]:
    "Asks, and looks at the shape of the answer."
    status, headers, body = ask(service[0], request, is_all)
    assert status < 500, body
    if status >= 400 and not request.startswith(b"HEAD "):
        said = json.loads(body)
        assert headers["content-type"] == "application/problem+json", headers
        assert PROBLEM.fullmatch(said["type"]) and said["status"] == status and said["title"] and said["detail"]
        assert said["request_id"] == headers["x-request-id"]
    return status, body


# What a header may hold at all: no line ends
line_bytes = st.binary(max_size=60).map(lambda value: value.translate(None, b"\r\n"))
odd_texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40).map(str.encode)
odd_values = st.one_of(
    line_bytes,
    odd_texts,
    st.sampled_from([b"", b" ", b"*", b"0", b"-1", b"9" * 400, b"\xff\xfe", b"null", b"..", b";" * 2000, b"," * 2000]),
)
NAMES = (
    b"accept accept-encoding accept-language access-control-request-headers access-control-request-method "
    b"authorization cache-control content-encoding content-type cookie expect forwarded if-modified-since "
    b"if-none-match origin pragma proxy-authorization range referer sec-fetch-mode te traceparent upgrade "
    b"user-agent via x-api-key x-forwarded-for x-forwarded-host x-forwarded-prefix x-forwarded-proto "
    b"x-real-ip x-request-id"
).split()
TYPES = (
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
    b'multipart/form-data; boundary="',
    b"multipart/form-data; boundary*=undefined''x",
    b"multipart/form-data; boundary*0=a; boundary*99999999999999999999=b",
    b"application/json; charset=unicode_escape",
    b"application/json; charset=utf-7",
    b"application/x-www-form-urlencoded; charset=undefined",
    b"text/plain; charset*=idna''%ff",
)
headers = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NAMES), odd_values), st.tuples(st.just(b"content-type"), st.sampled_from(TYPES))
    ),
    max_size=4,
)
PATHS = (
    "/ /v1/predict /v1/feedback /v1/model /v1/drift /health/live /health/ready /metrics /openapi.json /docs "
    "/nowhere /assets/index.js /static/x /examples/joker.webp /theme.css /gradio_api/app_id /gradio_api/run/predict "
    "/demo/answer /demo/look /demo/correction /static-offline-docs/x"
).split()
METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@EXAMPLES
@given(st.sampled_from(METHODS), st.sampled_from(PATHS), headers)
def test_any_header_on_any_address(service, method, path, headers):
    check(service, raw(method, path, headers, PICTURE if method == "POST" else b""))


def escaped(value: bytes) -> str:
    "Bytes as an address holds them."
    return "".join(f"%{one:02x}" for one in value)


pieces = st.one_of(
    st.binary(max_size=20).map(escaped),
    st.text(max_size=20).map(lambda text: escaped(text.encode("utf-8", "surrogatepass"))),
    st.sampled_from(
        ["..", "%2e%2e", "%00", "%2f", "//", "\\", "%", "%zz", "x" * 5000, "x" * 255, "%0d%0aset-cookie:%20a"]
    ),
)
names = st.one_of(st.sampled_from(["top_k", "record", "last", "since", "until", "one_deck", "picture"]), pieces)
queries = st.lists(st.tuples(names, pieces), max_size=3).map(lambda pairs: "&".join("=".join(pair) for pair in pairs))


@EXAMPLES
@given(st.sampled_from(["GET", "POST"]), st.sampled_from(PATHS), st.lists(pieces, max_size=2), queries)
@example("GET", "/assets/index.js", ["x" * 5000], "")
@example("GET", "/", ["", ""], "")
@example("POST", "/v1/predict", [], "top_k=" + "9" * 5000)
@example("GET", "/v1/drift", [], "since=9999-12-31T23:59:59-23:59&until=0001-01-01T00:00:00%2b23:59")
def test_any_name_and_any_parameter(service, method, path, more, query):
    target = "/".join([path.rstrip("/"), *more]) + (f"?{query}" if query else "")
    body = PICTURE if method == "POST" else b""
    check(service, raw(method, target.replace(" ", "%20") or "/", [], body))


CHUNKED = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED += b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (PICTURE[:40], PICTURE[40:])) + b"0\r\nx: y\r\n\r\n"
WIRE = (CHUNKED, raw("POST", "/v1/predict", [], PICTURE), raw("GET", "/v1/model"), raw("GET", "/health/ready"))
FRAMES = (
    b"\r\n",
    b"\n",
    b"\0",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"fffffffff\r\n",
)


@EXAMPLES
@given(
    st.sampled_from(WIRE),
    st.lists(
        st.tuples(st.integers(0, 250), st.integers(0, 9), st.sampled_from(FRAMES) | st.binary(max_size=9)), max_size=4
    ),
)
def test_any_bytes_on_the_wire(service, request, changes):
    for start, length, other in changes:
        request = request[:start] + other + request[start + length :]
    check(service, request, is_all=True)
    assert ask(service[0], raw("GET", "/health/live"))[0] == 200


DISPOSITIONS = (
    b"filename*=undefined''x",
    b"filename*=unicode_escape''%5Cud800",
    b"filename*=utf-7''%2BAGEAYg-",
    b"filename*=utf-8''%00.png",
    b'filename="a\x00b.png"',
    b"filename*=''''",
    b"filename*=rot13''nqzva",
    b"filename*=idna''%ff",
    b"filename*=punycode''%ff%ff",
    b"filename*0*=utf-16''%d8; filename*1*=%00",
    b"filename*99999999999999999999=x",
    b"filename*=utf-8''" + b"%f0%9f%82%a1" * 60,
    b'filename="\xed\xa0\x80"',
    b'filename="' + b"\\" * 200,
    b"filename=",
)
dispositions = st.one_of(
    st.sampled_from(DISPOSITIONS),
    st.builds(
        lambda codec, text: b"filename*=" + codec + b"''" + text,
        st.one_of(st.sampled_from([b"undefined", b"unicode_escape", b"utf-7", b"hex", b"zlib", b"mbcs"]), line_bytes),
        st.one_of(st.binary(max_size=12).map(escaped).map(str.encode), line_bytes),
    ),
    odd_values,
)


def form(disposition: bytes, *others: bytes) -> bytes:
    "A form with one picture, whose file is named like this."
    first = b"content-disposition: form-data; name=files; " + disposition
    return b"\r\n".join([b"--edge", first, *others, b"", PICTURE, b"--edge--", b""])


FORM = [(b"content-type", b"multipart/form-data; boundary=edge")]


@pytest.mark.parametrize("disposition", DISPOSITIONS)
def test_a_picture_is_answered_whatever_it_is_called(service, disposition):
    status, body = check(service, raw("POST", "/v1/predict?record=wait", FORM, form(disposition)))
    answer = json.loads(body)
    assert (status, answer["recorded"]) == (200, "written")
    assert [one["card"] for one in answer["predictions"]] == [CARDS[7].class_name]
    assert len(answer["predictions"][0]["file"]) <= 255


@EXAMPLES
@given(dispositions, st.lists(st.tuples(st.sampled_from([b"content-type", b"x", b"Content-Disposition"]), odd_values)))
def test_any_header_of_a_part(service, disposition, others):
    lines = [name + b": " + value for name, value in others[:3]]
    status, _ = check(service, raw("POST", "/v1/predict", FORM, form(disposition, *lines)))
    assert status in (200, 400, 415, 422)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1e308, "\ud800", "\0", "x" * 300, 224.0, "0" * 32]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
FEEDBACK = ("request_id", "card", "index", "number", "corners", "right", "other")
CORRECTION = {"request_id": "0" * 32, "index": 0, "card": "joker", "right": "joker", "number": 0}


@EXAMPLES
@given(
    st.sampled_from(["/v1/feedback", "/demo/correction", "/gradio_api/run/predict", "/v1/predict"]),
    st.one_of(json_values, st.dictionaries(st.sampled_from(FEEDBACK), json_values).map(lambda some: CORRECTION | some)),
    st.sampled_from([b"application/json", b"text/plain", b""]),
)
@example("/v1/feedback", CORRECTION | {"card": "\ud800"}, b"application/json")
@example("/v1/feedback", CORRECTION | {"number": 10**400}, b"application/json")
def test_any_json(service, path, value, kind):
    check(service, raw("POST", path, [(b"content-type", kind)], json.dumps(value).encode("utf-8", "surrogatepass")))


def places_in(value, place=()):
    "Every place in a JSON document, as the keys that lead there."
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places_in(one, (*place, key))


def changed(document, place, value):
    "The document with another value at a place."
    if not place:
        return value
    copy = document.copy()
    copy[place[0]] = changed(document[place[0]], place[1:], value)
    return copy


DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 5000


@pytest.fixture(scope="module")
def description(tiny_bundle):
    "What `bundle.json` of the tiny bundle holds."
    return json.loads((tiny_bundle / BUNDLE_FILE).read_text())


@EXAMPLES
@given(st.data())
def test_any_description_of_a_bundle_is_taken_or_refused_in_a_sentence(tiny_bundle, description, data):
    place = data.draw(st.sampled_from(list(places_in(description))))
    text = json.dumps(changed(description, place, "HERE"), ensure_ascii=False)
    values = st.one_of(
        json_values.map(json.dumps), st.sampled_from([DEEP, HUGE, "NaN", "-Infinity", "224.0", '"\\ud800"'])
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(tiny_bundle, Path(folder) / "bundle")
        (copy / BUNDLE_FILE).write_text(text.replace('"HERE"', data.draw(values)))
        try:
            info, _ = load_bundle(copy)
        except BundleError as error:
            assert str(error).isprintable() and 10 < len(str(error)) < 2000
        else:
            assert info.class_names == description["class_names"]


BROKEN = ["", "[]", "null", DEEP, HUGE, "{" * 50, "\0", '{"networks": 224.0}']


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_no_bundle_stops_the_watcher(service, description):
    _, process, folder, live = service
    values = {"input_size": "224.0", "temperature": "9" * 401, "std": "[NaN, 1e999, 0]", "thresholds": DEEP}
    place = ("networks", "classifier")
    texts = BROKEN + [
        json.dumps(changed(description, (*place, name), "HERE")).replace('"HERE"', value)
        for name, value in values.items()
    ]
    good = (live / BUNDLE_FILE).read_text()

    def count(event: str) -> int:
        return sum(one["event"] == event for one in events(folder))

    def put(text: str, event: str) -> None:
        before, draft = count(event), live.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, live / BUNDLE_FILE)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: count(event) > before)

    for text in texts:
        put(text, "new bundle refused")
    put(good.replace("colours-1", "colours-2"), "new bundle in service")
    put(good, "new bundle in service")
