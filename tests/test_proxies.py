"The service behind a real nginx with TLS and a path, and asked by clients that want more than HTTP/1.1."

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from test_api import encoded, events, serving, wait_for

from card_classifier.cards import CARDS
from card_classifier.serving.problems import PROBLEMS

ROOT = Path(__file__).resolve().parent.parent
NGINX, OPENSSL = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"), shutil.which("openssl")
needs_nginx = pytest.mark.skipif(not (NGINX and OPENSSL), reason="needs nginx and openssl: apt-get install nginx-light")
KEY, PAGE = {"x-api-key": "first"}, {"origin": "https://cards.example"}


@pytest.fixture(scope="module")
def service(tiny_bundle, tmp_path_factory):
    "A service that knows nothing of its proxy but what the proxy says."
    folder = tmp_path_factory.mktemp("proxied")
    with serving(folder, tiny_bundle, "--cors-origins", "https://cards.example") as running:
        yield running


@pytest.fixture(scope="module")
def proxied(service, tmp_path_factory):
    "The address of the service behind nginx, with our own configuration but for addresses and certificates."
    folder = tmp_path_factory.mktemp("nginx")
    command = [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made = ("-keyout", folder / "key", "-out", folder / "certificate")
    subprocess.run([*command, *made], check=True, capture_output=True)
    with socket.socket() as tls, socket.socket() as plain:
        for one in (tls, plain):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (tls, plain)]
    server = (ROOT / "deploy" / "nginx.conf").read_text()
    for ours, theirs in {
        "http://127.0.0.1:8000": service[0],
        "listen 443 ssl": f"listen 127.0.0.1:{ports[0]} ssl",
        "listen 80": f"listen 127.0.0.1:{ports[1]}",
        "/etc/letsencrypt/live/cards.example.org/fullchain.pem": str(folder / "certificate"),
        "/etc/letsencrypt/live/cards.example.org/privkey.pem": str(folder / "key"),
    }.items():
        assert ours in server
        server = server.replace(ours, theirs)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    head = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{head}http {{\naccess_log off;\n{places}{server}}}\n")
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)

    def answers():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", ports[0]), 1):
            return True

    try:
        wait_for(answers, 20)
        yield f"https://localhost:{ports[0]}/cards", folder
    finally:
        process.terminate()
        process.wait(20)


@needs_nginx
def test_demo_docs_and_api_live_under_a_path(service, proxied):
    address, _ = proxied
    with httpx.Client(verify=False, timeout=60) as client:
        found = client.post(f"{address}/v1/predict", content=encoded(7)).json()["predictions"][0]
        assert found["card"] == CARDS[7].class_name
        assert client.get(f"{address}/openapi.json").json()["servers"][0]["url"] == "/cards"
        page = client.get(f"{address}/docs").text
        assert "'/cards/openapi.json'" in page and '"/cards/static-offline-docs/swagger-ui-bundle.js"' in page
        assert client.get(f"{address}/static-offline-docs/swagger-ui-bundle.js").status_code == 200
        assert client.get(f"{address}/").status_code == 200
        assert client.get(f"{address}/examples/joker.webp").status_code == 200
        lost = client.get(f"{address}/v1/nothing").json()
        assert lost["detail"].endswith("see /cards/docs")
        assert client.get(f"{address}/metrics").status_code == 403


@needs_nginx
@pytest.mark.parametrize("path", ["", "/docs/", "/v1/model/", "/openapi.json/"])
def test_no_redirect_leaves_https_or_the_host(proxied, path):
    address, _ = proxied
    with httpx.Client(verify=False, timeout=60) as client:
        answer = client.get(address + path)
        assert answer.is_redirect and answer.headers["location"].startswith("/cards/")
        assert client.get(answer.next_request.url).status_code == 200
        assert str(answer.next_request.url).startswith(address)


@needs_nginx
def test_a_browser_plays_with_the_demo_under_a_path_and_tls(proxied):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not chromium:
        pytest.skip("Chromium is not installed: apt-get install -y --no-install-recommends chromium")
    address, folder = proxied
    (folder / "king.png").write_bytes(encoded(7, (224, 224)))
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(ignore_https_errors=True)
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
        page.goto(f"{address}/", timeout=60_000)
        page.locator("input[type=file]").first.set_input_files(folder / "king.png", timeout=60_000)
        page.get_by_text(CARDS[7].class_name).first.wait_for(timeout=60_000)
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []


def test_forwarded_words_are_taken_from_trusted_proxies_only(service):
    address, _, folder = service
    said = {"x-forwarded-for": "203.0.113.9", "x-forwarded-prefix": "/cards", "x-forwarded-host": "evil.example"}
    seen = {}
    for peer in ("127.0.0.1", "127.0.0.2"):  # Both are this machine; only the first is trusted
        with httpx.Client(transport=httpx.HTTPTransport(local_address=peer), timeout=60) as client:
            answer = client.get(f"{address}/openapi.json", headers=said)
            assert "evil.example" not in client.get(f"{address}/", headers=said).text
        request_id = answer.headers["x-request-id"]
        wait_for(lambda request_id=request_id: any(one.get("request_id") == request_id for one in events(folder)), 10)
        [line] = [one for one in events(folder) if one.get("request_id") == request_id]
        seen[peer] = (answer.json()["servers"][0]["url"], line["client"])
    assert seen == {"127.0.0.1": ("/cards", "203.0.113.9"), "127.0.0.2": ("/", "127.0.0.2")}


def test_keys_pages_of_other_hosts_and_a_path_go_together(tiny_bundle, tmp_path):
    environment = {"CARD_CLASSIFIER_API_KEYS": "first"}
    options = ("--no-demo", "--cors-origins", "https://cards.example", "--root-path", "/cards/")
    with serving(tmp_path, tiny_bundle, *options, environment=environment) as (address, _, _):
        asks = PAGE | {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
        preflight = httpx.options(f"{address}/v1/predict", headers=asks)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://cards.example"
        assert preflight.headers["access-control-allow-headers"] == "x-api-key"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        refused = httpx.post(f"{address}/v1/predict", content=encoded(1), headers=PAGE)
        taken = httpx.post(f"{address}/v1/predict", content=encoded(1), headers=PAGE | KEY)
        broken = httpx.post(f"{address}/v1/predict", content=b"text", headers=PAGE | KEY)
        for answer, status in ((refused, 401), (taken, 200), (broken, 415)):
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://cards.example"
        below = httpx.post(f"{address}/cards/v1/predict", content=encoded(9), headers=KEY)
        assert below.status_code == 200, "a proxy may take the path away or not"
        assert httpx.post(f"{address}/cards/v1/predict", content=encoded(9)).status_code == 401
        assert httpx.get(f"{address}/cards/openapi.json").json()["servers"][0]["url"] == "/cards"
        stranger = httpx.options(f"{address}/v1/predict", headers=asks | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/model", "/health/ready", "/metrics"])
def test_head_is_answered_where_get_is(service, path):
    with httpx.Client(base_url=service[0], timeout=60) as client:
        head, full = client.head(path), client.get(path)
        options = client.options(path)
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", full.headers["content-type"])
    assert options.status_code == 204 and {"GET", "HEAD", "OPTIONS"} <= set(options.headers["allow"].split(", "))


def test_there_is_one_shape_of_404_and_of_405(service):
    with httpx.Client(base_url=service[0], timeout=60) as client:
        lost = [client.get(path) for path in ("/nothing", "/v1/nothing", "/docs/nothing", "/assets/nothing.js")]
        lost += [client.get("/static-offline-docs/nothing.js")]
        lost += [client.options("/v1/nothing"), client.head("/assets/nothing.js"), client.post("/nothing")]
        wrong = [client.put("/"), client.get("/v1/predict"), client.delete("/docs"), client.head("/v1/feedback")]
    for answers, status, reason in ((lost, 404, "not-found"), (wrong, 405, "method-not-allowed")):
        for answer in answers:
            assert answer.status_code == status, (answer.request.method, answer.url)
            assert answer.headers["content-type"] == "application/problem+json"
            if answer.request.method != "HEAD":
                said = answer.json()
                assert said["type"] == f"urn:card-classifier:problem:{reason}" and said["detail"]
                assert said["request_id"] == answer.headers["x-request-id"] and said["status"] == status
                assert said["detail"].startswith(f"{answer.request.method} {answer.url.path}: "), "what was asked for"
                assert said["detail"].endswith("see /docs") and said["title"] == PROBLEMS[reason][1]
            assert status == 404 or answer.headers["allow"]
