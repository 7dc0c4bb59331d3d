"""Real Prometheus and Alertmanager, with the project's own rules and routes, in minutes that are seconds.

Every duration of the files is divided by one number: in range selectors, `offset`, `for` and the intervals of the
configuration. Nothing else is changed; labels such as `window: 1h` keep their names.
"""

import contextlib
import http.server
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import yaml
from postgres import free_port
from test_api import wait_for

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
PROGRAMS = [shutil.which("prometheus"), shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")]
UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SHORTEST = 1_000  # Milliseconds: what a scrape needs on a busy machine
DURATION = re.compile(r"(\[|\boffset |\b(?:for|\w*interval|group_wait): )(\d+)(ms|[smhd])\b")


def shortened(text: str, factor: float) -> str:
    "A file of rules or a configuration, with its durations divided."

    def divided(found: re.Match) -> str:
        return f"{found[1]}{max(SHORTEST, round(int(found[2]) * UNITS[found[3]] / factor))}ms"

    return DURATION.sub(divided, text)


class Told(http.server.BaseHTTPRequestHandler):
    "Takes down what Alertmanager says: receiver, status and name of each alert, in order and each change once."

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        for alert in said["alerts"]:
            heard = self.path.strip("/"), alert["status"], alert["labels"]["alertname"]
            is_starting = heard[2] == "CardClassifierUnwatched"  # Prometheus has not asked anybody yet
            if heard not in self.server.heard[-1:] and not is_starting:
                self.server.heard.append(heard)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Watch:
    "What watches a service: ask it, and hear what it says."

    def __init__(self, client: httpx.Client, heard: list[tuple[str, str, str]]):
        self.client, self.heard = client, heard

    def ask(self, query: str) -> list[dict]:
        "The samples of a query at this moment."
        return self.client.get("/api/v1/query", params={"query": query}).json()["data"]["result"]

    def comes(self, query: str, seconds: float = 120) -> list[dict]:
        "Waits until a query has samples."
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.ask(query):
                return found
            time.sleep(0.2)
        raise AssertionError(f"nothing for {query}; heard {self.heard}, there are {self.ask('ALERTS')}")

    def hears(self, status: str, name: str, seconds: float = 120) -> None:
        "Waits until that was the last thing said."
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.heard and self.heard[-1][1:] == (status, name):
                return
            time.sleep(0.1)
        raise AssertionError(f"no {status} {name}; heard {self.heard}, there are {self.ask('ALERTS')}")


@contextlib.contextmanager
def process(log: Path, *command: str) -> Iterator[None]:
    "A program, while the block runs."
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent)
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(20)
            finally:
                running.kill()
                print(log.read_text()[-2000:])


def is_ready(address: str) -> Callable[[], bool]:
    "Whether one of the two answers."

    def asked() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/-/ready", timeout=5).status_code == 200
        return False

    return asked


def configure(folder: Path, factor: float, scrape_seconds: int, target: str, alertmanager: int, webhook: int) -> None:
    "Writes the deployed files into a folder: with shorter durations, and with addresses of the test."
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    (folder / "rules.yaml").write_text(shortened(rules, factor))
    scraping = yaml.safe_load(shortened((DEPLOY / "prometheus" / "prometheus.yaml").read_text(), factor))
    scraping["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    scraping["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    scraping["global"] |= {"scrape_interval": f"{scrape_seconds}s", "scrape_timeout": f"{scrape_seconds}s"}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(scraping))
    routing = yaml.safe_load(shortened((DEPLOY / "alertmanager" / "alertmanager.yaml").read_text(), factor))
    for receiver in routing["receivers"]:
        name = receiver["name"]
        receiver.clear()
        receiver |= {"name": name, "webhook_configs": [{"url": f"http://127.0.0.1:{webhook}/{name}"}]}
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(routing))


@contextlib.contextmanager
def watching(folder: Path, target: str, factor: float, scrape_seconds: int = 1) -> Iterator[Watch]:
    "Prometheus and Alertmanager that watch a target such as `127.0.0.1:8000`; minutes last 60/factor seconds."
    folder.mkdir()
    ports, programs = [free_port() for _ in range(2)], PROGRAMS
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told) as webhook, contextlib.ExitStack() as stack:
        webhook.heard = []
        threading.Thread(target=webhook.serve_forever, daemon=True).start()
        stack.callback(webhook.shutdown)
        configure(folder, factor, scrape_seconds, target, ports[1], webhook.server_port)
        stack.enter_context(process(
            folder / "prometheus.log", programs[0], "--config.file=prometheus.yaml", "--storage.tsdb.path=series",
            f"--web.listen-address=127.0.0.1:{ports[0]}", "--log.level=warn"))  # fmt: skip
        stack.enter_context(process(
            folder / "alertmanager.log", programs[1], "--config.file=alertmanager.yaml", "--storage.path=alerts",
            f"--web.listen-address=127.0.0.1:{ports[1]}", "--cluster.listen-address=", "--log.level=warn"))  # fmt: skip
        for port in ports:
            wait_for(is_ready(f"http://127.0.0.1:{port}"), 60)
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60, trust_env=False))
        yield Watch(client, webhook.heard)
