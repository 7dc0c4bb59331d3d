"""Google on this machine: its APIs, a bucket, and a metadata server.

Each request is held against Google's own descriptions, the discovery documents that come with google-api-python-client:
they know each method's path, parameters and the fields of its body. The bucket is gcp-storage-emulator; the rest
answers what a test prepares.
"""

import contextlib
import functools
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import googleapiclient
from gcp_storage_emulator.server import create_server

DOCUMENTS = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
VERSIONS = {
    "aiplatform": "v1", "artifactregistry": "v1", "billingbudgets": "v1", "cloudbilling": "v1", "cloudbuild": "v1",
    "cloudfunctions": "v2", "cloudresourcemanager": "v3", "cloudscheduler": "v1", "compute": "v1", "iam": "v1",
    "logging": "v2", "monitoring": "v3", "run": "v2", "secretmanager": "v1", "serviceusage": "v1",
    "sqladmin": "v1", "storage": "v1",
}  # fmt: skip


@functools.cache
def document(api: str) -> dict:
    "How Google describes an API."
    return json.loads((DOCUMENTS / f"{api}.{VERSIONS[api]}.json").read_text(encoding="utf-8"))


def all_methods(part: dict) -> Iterator[dict]:
    "Every method of an API, whatever resource it belongs to."
    yield from part.get("methods", {}).values()
    for resource in part.get("resources", {}).values():
        yield from all_methods(resource)


def path_pattern(path: str) -> str:
    "A method's path as a regular expression."
    names = re.split(r"(\{\+?\w+\})", path)
    return "".join((r".+" if one[1] == "+" else r"[^/]+") if one.startswith("{") else re.escape(one) for one in names)


def find_method(api: str, method: str, path: str) -> dict:
    "The method that a request means. Fails if there is none."
    told = document(api)
    base, fitting = told.get("servicePath", ""), []
    for one in all_methods(told):
        paths = {base + one["path"], base + one.get("flatPath", one["path"])}
        if "mediaUpload" in one:
            paths.add(one["mediaUpload"]["protocols"]["simple"]["path"].lstrip("/"))
        if one.get("supportsMediaDownload"):
            paths |= {f"download/{path}" for path in set(paths)}
        patterns = [path_pattern(known) for known in paths] if one["httpMethod"] == method else []
        fitting += [(pattern.count("[^/]+") + 9 * pattern.count(".+"), one) for pattern in patterns
                    if re.fullmatch(pattern, path)]  # fmt: skip
    assert fitting, f"{api} has no {method} {path}"
    return min(fitting, key=lambda pair: pair[0])[1]  # The one that names most of the path


def check_value(api: str, schema: dict, value: object, where: str) -> None:
    "Fails if a value is not what the description says: an unknown field, another type, a word that isn't among them."
    if "$ref" in schema:
        schema = document(api)["schemas"][schema["$ref"]]
    kind = schema.get("type")
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    assert kind == "any" or isinstance(value, types[kind]), f"{where} must be {kind}, got {value!r}"
    if kind == "string" and "enum" in schema:
        assert value in schema["enum"], f"{where} is {value!r}, not among {schema['enum']}"
    if kind == "string" and schema.get("format") in ("int64", "uint64"):
        assert re.fullmatch(r"-?\d+", value), f"{where} must be a number as a text, got {value!r}"
    if kind == "array":
        for number, one in enumerate(value):
            check_value(api, schema["items"], one, f"{where}[{number}]")
    if kind == "object":
        known, further = schema.get("properties", {}), schema.get("additionalProperties")
        for name, one in value.items():
            assert name in known or further is not None, f"{where}.{name}: there is no such field"
            check_value(api, known.get(name, further), one, f"{where}.{name}")


def check_request(host: str, method: str, path: str, query: dict, body: object) -> None:
    "Fails unless Google would understand a request."
    api = "aiplatform" if host.endswith("-aiplatform") else host
    if "/prometheus/" in path:  # Monitoring's PromQL is Prometheus' API, not Google's
        return
    one = find_method(api, method, path)
    known = set(one.get("parameters", {})) | set(document(api)["parameters"])
    assert set(query) <= known, f"{api} {path}: no parameters {set(query) - known}"
    if body is not None:
        assert "request" in one, f"{method} {path} takes no body"
        check_value(api, one["request"], body, api)


@dataclass
class Asked:
    "A request that arrived."

    host: str
    method: str
    path: str
    query: dict
    body: object


@dataclass
class FakeGoogle:
    "All of Google that the cloud room talks to."

    attributes: dict[str, str] = field(default_factory=dict)  # Of the machine's metadata
    answers: Callable[[Asked], tuple[int, dict] | None] = lambda asked: None  # Before the usual answers
    bucket_answers: Callable[[Asked], int | None] = lambda asked: None  # A status that the bucket answers with
    is_preempted: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # What Google would not have understood
    machine: str = "card-classifier-a-run-1"

    def requests(self, host: str, method: str, part: str = "") -> list[Asked]:
        "What arrived for an API, by method and a part of the path."
        return [one for one in self.asked if one.host == host and one.method == method and part in one.path]

    def metadata(self, path: str) -> str | None:
        "What the metadata server says."
        name, _, query = path.removeprefix("/computeMetadata/v1/").partition("?")
        if name == "instance/preempted":
            if "wait_for_change" in query:
                self.is_preempted.wait(3)
            return "TRUE" if self.is_preempted.is_set() else "FALSE"
        account = {"aliases": ["default"], "email": "a@b", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        token = json.dumps({"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"})
        known = {"": "", "project/project-id": "my-cards-1", "instance/name": self.machine,
                 "instance/zone": "projects/1/zones/europe-west4-a",
                 "instance/service-accounts/default/token": token,
                 "instance/service-accounts/default/": json.dumps(account)}  # fmt: skip
        return known.get(name, self.attributes.get(name.removeprefix("instance/attributes/")))

    def usual(self, asked: Asked) -> tuple[int, dict]:
        "The answer when a test prepared none."
        if asked.host == "compute" and asked.method == "GET":
            return 200, {"items": {}}
        if asked.host == "compute":
            return 200, {"name": "operation-1", "status": "DONE"}
        return 200, {"name": "projects/my-cards-1/locations/europe-west4/operations/1", "done": True}

    @contextlib.contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        "Runs it; gives the environment in which our code finds it."
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            bucket_port = probe.getsockname()[1]
        bucket = create_server("127.0.0.1", bucket_port, in_memory=True, default_bucket="cards")
        bucket.start()
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self, f"http://127.0.0.1:{bucket_port}"))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        place = f"127.0.0.1:{server.server_port}"
        try:
            yield {"CARD_CLASSIFIER_GOOGLE_ENDPOINT": f"http://{place}", "STORAGE_EMULATOR_HOST": f"http://{place}",
                   "GCE_METADATA_HOST": place, "GCE_METADATA_IP": place, "GCE_METADATA_ROOT": place}  # fmt: skip
        finally:
            self.is_preempted.set()
            server.shutdown()
            server.server_close()
            bucket.stop()


def handler(google: FakeGoogle, bucket: str) -> type[BaseHTTPRequestHandler]:
    "Answers for one Google."

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def say(self, status: int, content: bytes, kind: str = "application/json") -> None:
            "Answers."
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Metadata-Flavor", "Google")
            self.end_headers()
            self.wfile.write(content)

        def do_any(self) -> None:
            "Takes any request."
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.startswith("/computeMetadata/") or self.path == "/":
                assert self.headers["Metadata-Flavor"] == "Google"
                told = google.metadata(self.path) if self.path != "/" else ""
                kind = "application/json" if (told or "").startswith("{") else "application/text"
                self.say(404 if told is None else 200, (told or "").encode(), kind)
                return
            parts = urlsplit(self.path)
            first, _, rest = parts.path.lstrip("/").partition("/")
            is_bucket = not first.endswith(".googleapis.com")
            host = "storage" if is_bucket else first.removesuffix(".googleapis.com")
            path = parts.path.lstrip("/") if is_bucket else rest
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            is_json = "json" in (self.headers.get("Content-Type") or "") and content
            asked = Asked(host, self.command, path, query, json.loads(content) if is_json else None)
            google.asked.append(asked)
            if self.headers.get("Authorization") != "Bearer a-token":
                google.wrong.append(f"{self.command} {self.path} has no token")
            try:
                check_request(host, self.command, path, query, asked.body)
            except AssertionError as problem:
                google.wrong.append(str(problem))
            self.answer_bucket(asked, content) if is_bucket else self.answer_api(asked)

        def answer_api(self, asked: Asked) -> None:
            "Answers for an API."
            status, told = google.answers(asked) or google.usual(asked)
            self.say(status, json.dumps(told).encode())

        def answer_bucket(self, asked: Asked, content: bytes) -> None:
            "Lets the bucket answer, unless the test has it refuse."
            refusal = google.bucket_answers(asked)
            if refusal:
                self.say(refusal, json.dumps({"error": {"code": refusal, "message": "refused by the test"}}).encode())
                return
            kind = self.headers.get("Content-Type") or "application/octet-stream"
            data = content if self.command in ("POST", "PUT") else None
            request = urllib.request.Request(bucket + self.path, data, {"Content-Type": kind}, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    self.say(response.status, response.read(), response.headers.get("Content-Type", ""))
            except urllib.error.HTTPError as error:
                self.say(error.code, error.read())

        def log_message(self, *_: object) -> None:
            "Says nothing."

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.do_any)
    return Handler


def wait_until(is_so: Callable[[], object], seconds: float = 30, what: str = "it") -> None:
    "Waits for something that takes its time on a busy machine."
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
