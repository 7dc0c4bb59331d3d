"""`make image-test`: starts the built image for real, says what was measured, and ends with code 1 on a broken promise.

usage: check.py [serve|train]

CHECKS limits it to the checks whose names contain these words.

Containers run as a deployment should run them: root file system read-only, no capabilities, /tmp in memory,
only /data (or training's folders) as volumes.
"""

import base64
import concurrent.futures
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from engine import ROOT, STRICT, ImageProblem, engine, inspect, is_docker, main, python, run, run_options, say, tag

READY_SECONDS = 2.0
MEGABYTES = {"serve": 350.0, "train": 8000.0}
NOT_THERE = {
    "serve": [
        "torch",
        "torchvision",
        "fastai",
        "timm",
        "wandb",
        "dvc",
        "onnxruntime",
        "hf_xet",
        "openvino_telemetry",
        "setuptools",
    ],
    "train": ["gradio", "fastapi"],
}
THERE = {
    "serve": ["gradio", "openvino", "fastapi", "uvicorn", "psycopg", "sqlalchemy", "alembic"],
    "train": ["torch", "fastai", "timm", "papermill", "wandb", "dvc"],
}
CHECKS: dict[str, list] = {"serve": [], "train": []}


def check(what: str, *targets: str):
    "Makes a function one of the checks: it returns what it measured, and raises when that is not as promised."

    def register(function):
        for target in targets or ("serve",):
            CHECKS[target].append((what, function))
        return function

    return register


def require(claim: bool, otherwise: str) -> None:
    "Raises `ImageProblem` unless the claim holds."
    if not claim:
        raise ImageProblem(otherwise)


PICTURE = """
import io, sys
from PIL import Image, ImageDraw
picture = Image.new("RGB", (224, 224), "white")
drawing = ImageDraw.Draw(picture)
drawing.ellipse((82, 62, 142, 122), fill=(200, 20, 20))
drawing.text((20, 20), sys.argv[1], fill=(200, 20, 20))
content = io.BytesIO()
picture.save(content, "JPEG")
import base64
print(base64.b64encode(content.getvalue()).decode())
"""


def picture(image: str, text: str = "A") -> bytes:
    "A JPEG drawn by the image's own Pillow."
    return base64.b64decode(python(image, PICTURE, text))


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 60,
) -> tuple[int, dict[str, str], bytes]:
    "One HTTP request: status, headers, body."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def cpu_seconds(process: int) -> float | None:
    "CPU time of a process and its children, if this machine shows them."
    try:
        words = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        children = itertools.chain(
            *(file.read_text(encoding="ascii").split() for file in Path(f"/proc/{process}/task").glob("*/children"))
        )
        return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK") + sum(
            cpu_seconds(int(child)) or 0.0 for child in children
        )
    except OSError:
        return None


class Served:
    "A running container of the service."

    def __init__(self, image: str, *options: str, command: tuple[str, ...] = ()):
        self.port = free_port()
        self.name = f"card-classifier-check-{uuid.uuid4().hex[:8]}"
        engine(
            "run",
            "--detach",
            "--name",
            self.name,
            "--env",
            f"PORT={self.port}",
            *run_options(self.port),
            *STRICT,
            *options,
            image,
            *command,
        )

    def state(self) -> dict:
        "What the engine says of it."
        return inspect(self.name)["State"]

    def logs(self) -> str:
        "What it printed."
        done = engine("logs", self.name, check=False)
        return (done.stdout + done.stderr).decode(errors="replace")

    def wait(self, timeout: float = 120) -> None:
        "Returns when it is ready. Raises `ImageProblem` if it ends or never is."
        until, asked = time.monotonic() + timeout, 0
        while time.monotonic() < until:
            with suppress(OSError, http.client.HTTPException):
                if ask(self.port, "GET", "/health/ready", timeout=5)[0] == 200:
                    self.ready = time.time()
                    return
            asked += 1
            if asked % 200 == 0 and not self.state()["Running"]:
                raise ImageProblem(f"it ended: {self.logs()[-1500:]}")
            time.sleep(0.01)
        raise ImageProblem(f"it was not ready within {timeout:.0f} s: {self.logs()[-1500:]}")

    def execute(self, *command: str) -> int:
        "The exit code of a command inside."
        return engine("exec", self.name, *command, check=False).returncode

    def stop(self) -> tuple[int, float]:
        "Sends SIGTERM: the exit code, and the seconds that it took."
        start = time.monotonic()
        engine("kill", "--signal", "TERM", self.name)
        try:
            code = int(engine("wait", self.name, timeout=30).stdout.split()[-1])
        except subprocess.TimeoutExpired:
            raise ImageProblem("SIGTERM did not end it within 30 s") from None
        return code, time.monotonic() - start

    def remove(self) -> None:
        "Removes it and its volumes."
        engine("rm", "--force", "--volumes", self.name, check=False)


@contextmanager
def served(image: str, *options: str, command: tuple[str, ...] = (), is_awaited: bool = True):
    "The service in a container until the end of the block."
    service = Served(image, *options, command=command)
    try:
        if is_awaited:
            service.wait()
        yield service
    finally:
        service.remove()


@contextmanager
def volume():
    "A named volume until the end of the block."
    name = f"card-classifier-check-{uuid.uuid4().hex[:8]}"
    engine("volume", "create", name)
    try:
        yield name
    finally:
        engine("volume", "rm", "--force", name, check=False)


@check("configuration: numeric user, health check, no secret", "serve", "train")
def configuration(image: str, target: str) -> str:
    config = inspect(image)["Config"]
    require(re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"]) is not None, f"the user is {config['User']!r}")
    require(config["Entrypoint"] == ["card-classifier"], f"the entry point is {config['Entrypoint']}")
    said = json.dumps(config)
    require(
        not re.search(r"(?i)(password|secret|token|api_key)\W*[=:]", said),
        "the configuration holds something like a secret",
    )
    require(
        str(ROOT) not in said and "/root" not in said, "the configuration names a path of the machine that built it"
    )
    if target == "serve":
        require("/data" in (config.get("Volumes") or {}), "there is no volume /data")
        require(bool(health_command(image)), "there is no health check")
    return f"user {config['User']}, {' '.join(config['Entrypoint'] + config['Cmd'])}"


def health_command(image: str) -> list[str]:
    "The image's health check as it would be executed."
    found = inspect(image)
    test = (found["Config"].get("Healthcheck") or found.get("HealthCheck") or found.get("Healthcheck") or {}).get(
        "Test"
    ) or ["NONE"]
    return test[1:] if test[0] == "CMD" else ["/bin/sh", "-c", test[1]] if test[0] == "CMD-SHELL" else []


SIZE = """
import os, sys
total, seen, device = 0, set(), os.lstat("/").st_dev
def walk(folder):
    global total
    for entry in os.scandir(folder):
        about = entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            if about.st_dev == device and entry.path not in ("/proc", "/sys", "/dev"): walk(entry.path)
        elif (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino)); total += about.st_size
walk("/")
print(total)
"""


def unpacked(image: str) -> int:
    "Bytes of all files of an image."
    return int(python(image, SIZE, options=["--user", "0"]))


@check("size beyond the base image", "serve", "train")
def size(image: str, target: str) -> str:
    base = inspect(image)["Config"]["Labels"]["org.opencontainers.image.base.name"]
    whole, bare = unpacked(image), unpacked(base)
    require(
        (whole - bare) / 1e6 <= MEGABYTES[target],
        f"{(whole - bare) / 1e6:.1f} MB, at most {MEGABYTES[target]:.0f} are allowed",
    )
    return f"{(whole - bare) / 1e6:.1f} MB of at most {MEGABYTES[target]:.0f}; the base {base} has {bare / 1e6:.1f} MB"


BY_PACKAGE = """
import importlib.metadata, pathlib, sysconfig, collections
site = pathlib.Path(sysconfig.get_path("purelib"))
sizes = collections.Counter()
for file in site.rglob("*"):
    if file.is_file() and not file.is_symlink():
        sizes[file.relative_to(site).parts[0].split(".")[0]] += file.stat().st_size
print(", ".join(f"{name} {size/1e6:.1f}" for name, size in sizes.most_common(14)))
"""


@check("largest packages, MB", "serve", "train")
def packages(image: str, target: str) -> str:
    return python(image, BY_PACKAGE).strip()


VERSIONS = """
import importlib.metadata, json
found = importlib.metadata.distributions()
print(json.dumps({one.metadata["Name"].lower().replace("_", "-").replace(".", "-"): one.version for one in found}))
"""


@check("versions are those of requirements.lock", "serve", "train")
def versions(image: str, target: str) -> str:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {
        name.strip(): version.split(";")[0].strip(" \\")
        for name, _, version in (line.partition("==") for line in lines)
        if version
    }
    found = json.loads(
        python(image, "import sys; sys.path = [path for path in sys.path if 'dist-packages' not in path]\n" + VERSIONS)
    )
    others = {
        name: version for name, version in found.items() if name != "card-classifier" and locked.get(name) != version
    }
    require(not others, f"not as locked: {others}")
    return f"{len(found) - 1} packages"


IMPORTS = """
import importlib.util, json, sys
there, not_there = json.loads(sys.argv[1])
missing = [name for name in there if importlib.util.find_spec(name) is None]
extra = [name for name in not_there if importlib.util.find_spec(name) is not None]
assert not missing and not extra, (missing, extra)
for name in there: importlib.import_module(name)
"""


@check("what it carries and what not", "serve", "train")
def imports(image: str, target: str) -> str:
    python(image, IMPORTS, json.dumps([THERE[target], NOT_THERE[target]]))
    return f"without {', '.join(NOT_THERE[target][:5])}"


@check("files of the package are all there", "serve")
def files(image: str, target: str) -> str:
    package = ROOT / "card_classifier"
    ours = {
        file.relative_to(package).as_posix(): file.stat().st_size
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    code = (
        "import card_classifier, json, pathlib; root = pathlib.Path(card_classifier.__file__).parent; "
        "files = [file for file in root.rglob('*') if file.is_file()]; "
        "print(json.dumps({file.relative_to(root).as_posix(): file.stat().st_size for file in files}))"
    )
    theirs = json.loads(python(image, code))
    missing = [name for name, n_bytes in ours.items() if theirs.get(name) != n_bytes]
    require(not missing, f"missing or different: {', '.join(missing[:8])}")
    return f"{len(ours)} files"


WRITABLE = """
import os
found = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
    if os.access(folder, os.W_OK): found.append(folder); folders.clear(); continue
    paths = [os.path.join(folder, name) for name in files]
    found += [path for path in paths if not os.path.islink(path) and os.access(path, os.W_OK)]
print(*found)
"""


@check("writable places in a root file system that is not read-only", "serve", "train")
def writable(image: str, target: str) -> str:
    found = python(image, WRITABLE, options=[]).split()
    allowed = {"serve": {"/data", "/tmp"}, "train": {"/work", "/tmp"}}[target]
    require(set(found) <= allowed, f"also writable: {sorted(set(found) - allowed)}")
    return " ".join(found)


@check("predict as another unprivileged user, read-only")
def predict(image: str, target: str) -> str:
    answers = []
    for options in (STRICT, [*STRICT, "--user", "54321:54321"]):
        answers.append(json.loads(run(image, "predict", "--json", "-", options=options, content=picture(image)).stdout))
        require(answers[-1]["error"] is None and 0 < answers[-1]["probability"] <= 1, f"it answered {answers[-1]}")
    require(answers[0]["top"] == answers[1]["top"], "two users get different answers")
    refused = run(image, "predict", "-", content=b"no picture", check=False)
    require(refused.returncode == 1, f"a text file ended with {refused.returncode}")
    code = (
        "import errno\ntry: open('/opt/card-classifier/x', 'w')\n"
        "except OSError as error: print(errno.errorcode[error.errno])"
    )
    require(
        python(image, code, options=[*STRICT, "--user", "0"]).strip() == "EROFS",
        "the root file system is not read-only",
    )
    return f"{answers[0]['card']}, {answers[0]['probability']:.3f}"


@check("from start to ready")
def start_up(image: str, target: str) -> str:
    walls, costs = [], []
    for _ in range(3):
        with served(image) as service:
            state = service.state()
            costs.append(cpu_seconds(state["Pid"]))
            started = re.sub(r"(\.\d{6})\d*", r"\1", state["StartedAt"])
            walls.append(service.ready - datetime.fromisoformat(started).timestamp())
    cost = min((one for one in costs if one is not None), default=None)
    load = os.getloadavg()[0]
    report = (
        f"{min(walls):.2f} s at best of {', '.join(f'{wall:.2f}' for wall in walls)}"
        + (f"; {cost:.2f} s of CPU" if cost is not None else "")
        + f"; load {load:.1f} on {os.cpu_count()} cores"
    )
    is_busy = load > (os.cpu_count() or 1)  # then the clock says more about other programs than about this one
    require(min(walls) <= READY_SECONDS or is_busy, report)
    return report + (
        f"; more than {READY_SECONDS:.0f} s, not judged on a machine this busy" if min(walls) > READY_SECONDS else ""
    )


@check("health check, $PORT, API, demo")
def service_answers(image: str, target: str) -> str:
    test = health_command(image)
    with served(image) as service:
        require(service.execute(*test) == 0, "the health check fails while the service is ready")
        require(service.execute("env", "PORT=1", *test) != 0, "the health check passes where nobody listens")
        content = picture(image)
        status, headers, body = ask(service.port, "POST", "/v1/predict?top_k=3", content)
        answer = json.loads(body)
        require(
            status == 200 and len(answer["predictions"][0]["top"]) == 3, f"predict answered {status}: {body[:300]!r}"
        )
        boundary = uuid.uuid4().hex
        parts = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
            + part
            + b"\r\n"
            for name, part in (("a.jpg", content), ("b.txt", b"no picture"), ("c.jpg", content))
        )
        status, _, body = ask(
            service.port,
            "POST",
            "/v1/predict",
            parts + f"--{boundary}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        several = json.loads(body)["predictions"]
        require(
            status == 200 and [one["error"] is None for one in several] == [True, False, True],
            f"several files: {status} {body[:300]!r}",
        )
        require(
            ask(service.port, "POST", "/v1/predict", b"no picture")[0] == 415, "a text file is not refused with 415"
        )
        require(ask(service.port, "GET", "/v1/model")[0] == 200, "no /v1/model")
        status, _, body = ask(service.port, "GET", "/metrics")
        require(status == 200 and b"card_classifier_requests_total" in body, "no metrics")
        require(ask(service.port, "GET", "/openapi.json")[0] == 200, "no description of the API")
        feedback = json.dumps({"request_id": answer["request_id"], "index": 0, "card": "ace of hearts"}).encode()
        for _ in range(50):  # until the record is written
            status, _, body = ask(service.port, "POST", "/v1/feedback", feedback, {"Content-Type": "application/json"})
            if status != 404:
                break
            time.sleep(0.1)
        require(status == 200, f"feedback answered {status}: {body[:300]!r}")
        start = time.monotonic()
        status, headers, body = ask(service.port, "GET", "/")
        first = time.monotonic() - start
        require(
            status == 200 and headers["content-type"].startswith("text/html"),
            f"the demo answered {status}: {body[:300]!r}",
        )
        missing = [
            path
            for path in sorted(
                set(re.findall(r'(?:src|href)="(?:\./|/)?(assets/[^"]+|static/[^"]+|theme\.css[^"]*)"', body.decode()))
            )
            if ask(service.port, "GET", f"/{path}")[0] != 200
        ]
        require(not missing, f"the demo's page names what is not there: {missing}")
    spent = several[0]["milliseconds"].get("classify", 0)
    return f"answers in {spent:.1f} ms of the classifier; the demo's first page in {first:.1f} s"


@check("under load: memory, then SIGTERM with requests on their way; records kept")
def load_and_stop(image: str, target: str) -> str:
    content = picture(image)
    with volume() as data:
        with served(image, "--volume", f"{data}:/data") as service, concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = [
                status
                for status, _, _ in pool.map(lambda _: ask(service.port, "POST", "/v1/predict", content), range(200))
            ]
            require(set(statuses) == {200}, f"under load it answered {sorted(set(statuses))}")
            process = service.state()["Pid"]
            resident = [memory(one) for one in tree(process)]

            def late(_: int) -> int:
                try:
                    return ask(service.port, "POST", "/v1/predict?record=wait", content)[0]
                except ConnectionRefusedError:
                    return 0  # it listened no more
                except ConnectionError:
                    return -1  # it waited to be accepted and was cut: a load balancer would send it again

            asked = [pool.submit(late, number) for number in range(64)]
            while sum(one.done() for one in asked) < 4:
                time.sleep(0.005)
            code, seconds = service.stop()
            answered = [one.result() for one in asked]
            require(code == 0, f"SIGTERM ended it with {code}: {service.logs()[-1000:]}")
            require(set(answered) <= {-1, 0, 200, 503}, f"while stopping it answered {sorted(set(answered))}")
        said = run(image, "records", options=[*STRICT, "--volume", f"{data}:/data"]).stdout.decode()
    n_answered, n_recorded = (
        200 + answered.count(200),
        int(re.search(r"(?m)^\W*(?:records|predictions)\W+(\d+)", said)[1]),
    )
    require(n_recorded >= n_answered, f"{n_answered} answers, {n_recorded} records")
    return (
        f"{len(resident)} processes, {max(resident):.0f} MB the largest; exit code 0 in {seconds:.1f} s, "
        f"of 64 requests meanwhile {answered.count(200)} answered, {answered.count(-1)} cut, the others refused; "
        f"{n_recorded} records of {n_answered} answers"
    )


def tree(process: int) -> list[int]:
    "A process and all below it."
    try:
        children = [
            int(word)
            for file in Path(f"/proc/{process}/task").glob("*/children")
            for word in file.read_text(encoding="ascii").split()
        ]
    except OSError:
        return []
    return [process, *itertools.chain(*map(tree, children))]


def memory(process: int) -> float:
    "Resident megabytes of a process."
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="ascii"))[1]) / 1000
    except (OSError, TypeError):
        return float("nan")


@check("SIGTERM while it is still starting")
def early_stop(image: str, target: str) -> str:
    with served(image, is_awaited=False) as service:
        time.sleep(1)
        code, seconds = service.stop()
    return f"exit code {code} in {seconds:.1f} s"


@check("bad settings end it with one line")
def bad_settings(image: str, target: str) -> str:
    for options, code in (
        (["--env", "CARD_CLASSIFIER_BUNDLE=/nowhere"], 2),
        (["--env", "PORT=many"], 2),
        (["--env", "CARD_CLASSIFIER_DATABASE=oracle:nothing"], 2),
    ):
        done = run(image, options=[*STRICT, *options], check=False, timeout=60)
        require(
            done.returncode == code and b"Traceback" not in done.stderr,
            f"{options[1]} ended with {done.returncode}: {done.stderr.decode()[-500:]}",
        )
    return "3 kinds"


@check("trains, evaluates and exports on rendered decks", "train")
def trains(image: str, target: str) -> str:
    with volume() as outputs:
        start = time.monotonic()
        mounts = ["--volume", f"{outputs}:/work/outputs"]
        done = run(
            image,
            options=[
                "--cap-drop",
                "ALL",
                "--security-opt",
                "no-new-privileges",
                *mounts,
                *([] if is_docker() else ["--shm-size", "1g"]),
            ],
            timeout=3600,
        )
        seconds = time.monotonic() - start
        code = (
            "import json, pathlib; run, = pathlib.Path('/work/outputs').glob('*/metrics.json'); "
            "print(json.dumps(json.loads(run.read_text())['test']['accuracy'])); "
            "assert (run.parent/'bundle'/'classifier.onnx').is_file() and (run.parent/'train.ipynb').is_file()"
        )
        accuracy = float(python(image, code, options=[*STRICT, *mounts]))
    require(accuracy > 0.5, f"accuracy on test is {accuracy:.2f}: {done.stdout.decode()[-500:]}")
    return f"{seconds / 60:.1f} minutes, accuracy on test {accuracy:.3f}"


def check_all() -> int:
    "Runs every check of a target; the exit code is 1 when one failed."
    target = (sys.argv[1:] or ["serve"])[0]
    require(target in CHECKS, f"there is no target {target!r}; there are {', '.join(CHECKS)}")
    checks = [one for one in CHECKS[target] if os.environ.get("CHECKS", "") in one[0]]
    require(bool(checks), f"no check is called {os.environ.get('CHECKS')!r}")
    image, n_failed = tag(target), 0
    say(f"{image} with {'docker' if is_docker() else 'podman'}")
    for what, function in checks:
        start = time.monotonic()
        try:
            report, mark = function(image, target), "ok  "
        except Exception as problem:  # whatever it is, the other checks are worth running
            report, mark, n_failed = f"{type(problem).__name__}: {problem}", "FAIL", n_failed + 1
        say(f"{mark} {what} [{time.monotonic() - start:.0f} s]: {report}")
    say(f"{len(checks) - n_failed} passed, {n_failed} failed")
    return int(n_failed > 0)


if __name__ == "__main__":
    main(check_all)
