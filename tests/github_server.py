"""Loopback servers with what our scripts ask of GitHub, of a container registry and of a vulnerability database."""

import hashlib
import io
import json
import re
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@contextmanager
def listening(handler: type):
    "A server on a free port of 127.0.0.1; its address."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    "Answers without a log."

    protocol_version = "HTTP/1.1"

    def log_message(self, *words): ...

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


def zipped(content: bytes, name: str = "report.json") -> bytes:
    "A zip file with one file."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


class FakeGitHub:
    "A repository with one pull request, one run with or without an artifact, and comments."

    def __init__(self, archive: bytes | None, pull_request: dict, comments: list[dict] | None = None):
        self.archive, self.pull_request, self.comments = archive, pull_request, comments or []
        self.size, self.leaked, self.asked = len(archive or b""), [], []

    @contextmanager
    def serving(self):
        "The address of its API; the artifact lies on another host, as GitHub's do."
        github = self

        class Storage(Quiet):
            def do_GET(self):
                github.leaked.append(self.headers.get("Authorization"))
                self.answer(200, github.archive)

        with listening(Storage) as storage:

            class Api(Quiet):
                def reply(self, value, status=200):
                    self.answer(status, json.dumps(value).encode())

                def handle_one(self):
                    path, body = urlsplit(self.path).path.removeprefix("/repos/cards/cards/"), self.content()
                    github.asked.append((self.command, path))
                    if self.headers.get("Authorization") != "Bearer secret":
                        return self.reply({"message": "Bad credentials"}, 401)
                    if path == "actions/runs/77/artifacts":
                        artifacts = [{"id": 5, "size_in_bytes": github.size}] if github.archive is not None else []
                        return self.reply({"artifacts": artifacts})
                    if path == "actions/artifacts/5/zip":
                        return self.answer(302, Location=f"{storage}/artifact")
                    if path == f"pulls/{github.pull_request['number']}":
                        return self.reply(github.pull_request)
                    if path == f"issues/{github.pull_request['number']}/comments" and self.command == "GET":
                        page = int(parse_qs(urlsplit(self.path).query)["page"][0])
                        return self.reply(github.comments[100 * (page - 1):100 * page])
                    if path == f"issues/{github.pull_request['number']}/comments" and self.command == "POST":
                        bot = {"login": "github-actions[bot]", "type": "Bot"}
                        number = len(github.comments) + 1
                        github.comments.append({"id": number, "user": bot, "body": json.loads(body)["body"]})
                        return self.reply(github.comments[-1], 201)
                    found = re.fullmatch(r"issues/comments/(\d+)", path)
                    if found and self.command == "PATCH":
                        (comment,) = [one for one in github.comments if one["id"] == int(found[1])]
                        comment["body"] = json.loads(body)["body"]
                        return self.reply(comment)
                    return self.reply({"message": "Not Found"}, 404)

                do_GET = do_POST = do_PATCH = handle_one

            with listening(Api) as address:
                yield address


class FakeRegistry:
    "A container registry that keeps blobs and manifests in memory and checks each digest."

    def __init__(self):
        self.blobs, self.manifests = {}, {}

    @contextmanager
    def serving(self):
        "Its host and port."
        registry, drafts = self, {}

        class Api(Quiet):
            def handle_one(self):
                url, body = urlsplit(self.path), self.content()
                name, _, what = url.path.removeprefix("/v2/").partition("/blobs/")
                if url.path == "/v2/":
                    return self.answer(200)
                if "/manifests/" in url.path:
                    return self.manifest(*url.path.removeprefix("/v2/").split("/manifests/"), body)
                if self.command in ("HEAD", "GET"):
                    blob = registry.blobs.get(what)
                    return self.answer(404) if blob is None else self.answer(200, blob, Docker_Content_Digest=what)
                if self.command == "POST":
                    drafts["draft"] = b""
                    return self.answer(202, Location=f"/v2/{name}/blobs/uploads/draft", Range="0-0")
                drafts["draft"] += body
                if self.command == "PATCH":
                    return self.answer(202, Location=url.path, Range=f"0-{max(0, len(drafts['draft']) - 1)}")
                digest = parse_qs(url.query)["digest"][0]
                if digest != f"sha256:{hashlib.sha256(drafts['draft']).hexdigest()}":
                    return self.answer(400)
                registry.blobs[digest] = drafts["draft"]
                return self.answer(201, Location=f"/v2/{name}/blobs/{digest}", Docker_Content_Digest=digest)

            def manifest(self, name, reference, body):
                if self.command != "PUT":
                    return self.answer(404)
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                registry.manifests[f"{name}:{reference}"] = digest
                return self.answer(201, Location=f"/v2/{name}/manifests/{digest}", Docker_Content_Digest=digest)

            do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = handle_one

        with listening(Api) as address:
            yield address.removeprefix("http://")


@contextmanager
def vulnerability_server(vulnerable: dict[str, str]):
    "The address of a database in OSV's protocol that knows one fault in each of these versions."

    class Api(Quiet):
        def do_POST(self):
            asked = json.loads(self.content())
            name, version = asked["package"]["name"], asked["version"]
            events = [{"introduced": "0"}, {"fixed": "999"}]
            affected = {"package": {"name": name, "ecosystem": "PyPI"}, "versions": [version],
                        "ranges": [{"type": "ECOSYSTEM", "events": events}]}
            fault = {"id": "OSV-2026-1", "summary": "a fault", "details": "a fault", "aliases": [],
                     "published": "2026-01-01T00:00:00Z", "affected": [affected]}
            found = [fault] if vulnerable.get(name) == version else []
            self.answer(200, json.dumps({"vulns": found}).encode())

    with listening(Api) as address:
        yield f"{address}/v1/query"
