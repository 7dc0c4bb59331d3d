"Pictures as real clients send them, and mistakes as people make them."

import base64
import gzip
import json
import shutil
import subprocess
import urllib.parse
import zlib

import httpx
import pytest
from test_api import encoded, serving

from card_classifier.cards import CARDS

CURL = shutil.which("curl")
PICTURE, OTHER = encoded(7), encoded(9)
WORD = base64.b64encode(PICTURE).decode()
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    "A service that takes 3 files of 200 kB together."
    options = ("--no-demo", "--max-files", "3", "--max-body", "200000")
    with serving(tmp_path_factory.mktemp("inputs"), tiny_bundle, *options, database="sqlite:///r.sqlite") as running:
        yield running


def post(service, path="/v1/predict", **request):
    "The answer to a POST request."
    return httpx.post(service[0] + path, timeout=30, **request)


TAKEN = {
    "base64": {"content": WORD},
    "base64 with line ends": {"content": base64.encodebytes(PICTURE)},
    "a data URL": {"content": f"data:image/png;base64,{WORD}"},
    "JSON": {"json": {"image": WORD}},
    "JSON with a data URL, deep inside": {"json": {"inputs": [{"b64_json": f"data:image/png;base64,{WORD}"}]}},
    "a form in the address's way": {"data": {"image": WORD, "comment": "hello"}},
    "bytes in the address's way": {"content": "file=" + urllib.parse.quote_from_bytes(PICTURE), "headers": FORM},
    "a picture with a form's content type": {"content": PICTURE, "headers": FORM},
    "another field name": {"files": {"image": ("a.png", PICTURE)}},
    "base64 in a form": {"files": {"files": ("a.txt", WORD)}},
    "gzip": {"content": gzip.compress(PICTURE), "headers": {"content-encoding": "gzip"}},
    "deflate": {"content": zlib.compress(PICTURE), "headers": {"content-encoding": "deflate"}},
    "deflate without its head": {"content": zlib.compress(PICTURE)[2:-4], "headers": {"content-encoding": "deflate"}},
    "JSON as gzip": {
        "content": gzip.compress(json.dumps([WORD]).encode()),
        "headers": {"content-encoding": "gzip", "content-type": "application/json"},
    },
}


@pytest.mark.parametrize("what", TAKEN)
def test_a_picture_is_taken_however_it_is_wrapped(service, what):
    answer = post(service, **TAKEN[what])
    assert answer.status_code == 200, answer.text
    assert [one["card"] for one in answer.json()["predictions"]] == [CARDS[7].class_name]


def test_a_second_file_under_another_name_is_answered_too(service):
    answer = post(service, files=[("files", ("a.png", PICTURE)), ("photo", ("b.png", OTHER))]).json()
    assert [one["card"] for one in answer["predictions"]] == [CARDS[7].class_name, CARDS[9].class_name]
    several = post(service, json={"images": [WORD, WORD, base64.b64encode(OTHER).decode()]}).json()["predictions"]
    assert [one["card"] for one in several] == [CARDS[number].class_name for number in (7, 7, 9)]


MISTAKES = {
    "a forgotten @": ({"content": "photo.jpg", "headers": FORM}, 415, "forgotten `@`"),
    "a forgotten @ in a form": ({"files": {"files": (None, "photo.jpg")}}, 415, "forgotten `@`"),
    "curl -d": ({"content": PICTURE.translate(None, b"\r\n\0"), "headers": FORM}, 422, "--data-binary"),
    "an address": ({"content": "https://example.org/card.jpg"}, 415, "nothing is fetched"),
    "an address in JSON": ({"json": {"url": "https://example.org/card.jpg"}}, 415, "nothing is fetched"),
    "a name in JSON": ({"json": {"images": ["my photos/card.jpg"]}}, 415, "forgotten `@`? With curl write"),
    "JSON of something else": ({"json": {"pixels": [[1, 2], [3, 4]]}}, 415, "JSON without a picture"),
    "half of JSON": ({"content": '{"image": "iVBOR'}, 415, "begins like JSON and is none"),
    "a parameter in JSON": ({"json": {"image": WORD, "top_k": 1}}, 422, "/v1/predict?top_k="),
    "a parameter in the address's way": ({"data": {"image": WORD, "one-deck": "1"}}, 422, "/v1/predict?one_deck="),
    "a packed file": ({"content": gzip.compress(PICTURE)}, 415, "`Content-Encoding: gzip`"),
    "too many in JSON": ({"json": [WORD] * 4}, 413, "at most 3 files"),
    "a misspelt parameter": ({"content": PICTURE, "params": {"topk": "1"}}, 422, "did you mean `top_k`?"),
    "an unknown parameter": ({"content": PICTURE, "params": {"colour": "1"}}, 422, "query.colour"),
    "a parameter twice": ({"content": PICTURE, "params": [("top_k", "1"), ("top_k", "2")]}, 422, "2 times"),
    "a parameter in the form": (
        {"files": {"files": ("a", PICTURE)}, "data": {"top_k": "1"}},
        422,
        "/v1/predict?top_k=",
    ),
    "one deck in the form": (
        {"files": {"files": ("a", PICTURE)}, "data": {"one_deck": "1"}},
        422,
        "/v1/predict?one_deck=",
    ),
    "no gzip": ({"content": PICTURE, "headers": {"content-encoding": "gzip"}}, 400, "not gzip"),
    "half a gzip": ({"content": gzip.compress(PICTURE)[:-20], "headers": {"content-encoding": "gzip"}}, 400, "ends"),
    "brotli": ({"content": PICTURE, "headers": {"content-encoding": "br"}}, 415, "'br'"),
    "a bomb": ({"content": gzip.compress(bytes(90_000_000)), "headers": {"content-encoding": "gzip"}}, 413, "unpacked"),
    "an archive": ({"content": b"PK\x03\x04" + bytes(60)}, 415, "zip archive"),
    "deep JSON": ({"content": "[" * 60_000}, 415, "JSON"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_named(service, what):
    request, status, words = MISTAKES[what]
    answer = post(service, **request)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json" and words in answer.json()["detail"]


def test_what_has_no_effect_is_said(service):
    answer = post(service, files={"files": ("a", PICTURE)}, data={"comment": "hello"})
    assert answer.json()["ignored"] == ["comment"]
    assert post(service, content=PICTURE).json()["ignored"] == []
    assert post(service, json={"image": WORD, "user": {"name": "Ann"}}).json()["ignored"] == ["user"]
    assert post(service, data={"image": WORD, "comment": "hello"}).json()["ignored"] == ["comment"]
    assert httpx.get(service[0] + "/v1/model?verbose=1").status_code == 422


def test_a_mistake_among_good_files_is_named_in_its_own_answer(service):
    stripped = PICTURE.translate(None, b"\r\n\0")
    sent = [("a", ("a.png", PICTURE)), ("b", ("b.txt", b"photo.jpg")), ("c", ("c.png", stripped))]
    good, name, damaged = post(service, files=sent).json()["predictions"]
    assert good["card"] == CARDS[7].class_name and not good["error"]
    assert name["error"]["status"] == 415 and "forgotten `@`? With curl write `--data-binary" in name["error"]["detail"]
    assert damaged["error"]["status"] == 422 and "-F files=@photo.jpg" in damaged["error"]["detail"]


@pytest.mark.parametrize(
    "request_, words",
    [
        ({"json": {"request_id": "0" * 32, "card": "AS", "numbr": 1}}, "body.numbr: there is no such field here; did"),
        ({"json": {"request_id": "0" * 32, "card": "AS", "colour": 1}}, "there are `card`, `corners`, `index`"),
        ({"data": {"request_id": "0" * 32, "card": "AS"}}, "`Content-Type: application/json`"),
        ({"files": {"card": (None, "AS")}}, "`Content-Type: application/json`"),
        ({"content": "{broken", "headers": {"content-type": "application/json"}}, "this is no JSON object"),
        ({"json": ["AS"]}, "this is no JSON object"),
        ({}, "this is no JSON object"),
    ],
)
def test_feedback_that_can_not_be_read_says_how_it_is_sent(service, request_, words):
    answer = post(service, "/v1/feedback", **request_)
    assert answer.status_code == 422 and words in answer.json()["detail"], answer.text


def test_feedback_may_be_packed(service):
    asked = post(service, "/v1/predict?record=wait", content=PICTURE).json()["request_id"]
    packed = gzip.compress(json.dumps({"request_id": asked, "card": "10h"}).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    assert post(service, "/v1/feedback", content=packed, headers=headers).status_code == 200


@pytest.mark.skipif(not CURL, reason="curl is not installed")
@pytest.mark.parametrize("offer", [["--http2"], ["--http1.1", "-H", "Connection: upgrade", "-H", "Upgrade: websocket"]])
@pytest.mark.parametrize("size", [(64, 48), (1200, 900)])
def test_a_client_that_offers_another_protocol_keeps_its_body(service, tmp_path, offer, size):
    (tmp_path / "card.png").write_bytes(encoded(7, size))
    body = [CURL, "--silent", *offer, "--data-binary", f"@{tmp_path}/card.png", f"{service[0]}/v1/predict"]
    sent = subprocess.run(body, capture_output=True, check=True)
    assert json.loads(sent.stdout)["predictions"][0]["card"] == CARDS[7].class_name, sent.stdout
    form = [CURL, "--silent", *offer, "-F", f"files=@{tmp_path}/card.png", f"{service[0]}/v1/predict?top_k=1"]
    sent = subprocess.run(form, capture_output=True, check=True)
    assert len(json.loads(sent.stdout)["predictions"][0]["top"]) == 1
