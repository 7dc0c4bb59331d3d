"""A container engine: docker where one answers, else buildah to build and podman to run.

Standard library only, so that an image can be built and tested without the project's own environment.
IMAGE_STORE names a folder that keeps everything of buildah and podman (images, caches, temporary files);
without it they use their usual places.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = os.environ.get("IMAGE_NAME", "card-classifier")
STRICT = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


class ImageProblem(Exception):
    "What can't be done, and what to do about it."


def say(text: str) -> None:
    "One line for the person who waits."
    print(text, flush=True)


def answers(*command: str) -> bool:
    "Whether a command exists and succeeds."
    try:
        return (
            shutil.which(command[0]) is not None
            and subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False


@functools.cache
def is_docker() -> bool:
    "Whether a Docker engine answers; if none does, buildah and podman must be there."
    if answers("docker", "info"):
        return True
    if shutil.which("buildah") and shutil.which("podman"):
        return False
    raise ImageProblem(
        "no Docker engine answers, and buildah and podman are not installed: "
        "apt-get install --no-install-recommends buildah podman runc mmdebstrap"
    )


def store_options() -> list[str]:
    "Where buildah and podman keep images."
    folder = os.environ.get("IMAGE_STORE")
    return ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "overlay"] if folder else []


def environment() -> dict[str, str]:
    "The environment of the engine: its caches and temporary files go to IMAGE_STORE too."
    folder = os.environ.get("IMAGE_STORE")
    if not folder:
        return dict(os.environ)
    Path(folder, "tmp").mkdir(parents=True, exist_ok=True)
    return {**os.environ, "TMPDIR": f"{folder}/tmp"}


def podman_options() -> list[str]:
    "How podman runs containers where there is no systemd."
    runtime = ["--runtime", "runc"] if shutil.which("runc") else []
    return [
        *store_options(),
        *([] if Path("/run/systemd/system").exists() else ["--cgroup-manager", "cgroupfs", *runtime]),
    ]


def engine(
    *arguments: str, check: bool = True, timeout: float = 600, content: bytes | None = None
) -> subprocess.CompletedProcess:
    "Runs `docker …` or `podman …`. Raises `ImageProblem` with what it printed when it fails."
    command = ["docker", *arguments] if is_docker() else ["podman", *podman_options(), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, env=environment(), input=content)
    if check and done.returncode:
        raise ImageProblem(
            f"{' '.join(command[:1] + list(arguments))} ended with {done.returncode}: "
            f"{done.stderr.decode(errors='replace').strip()[-2000:]}"
        )
    return done


def run_options(port: int | None = None) -> list[str]:
    "Options of `run` that differ between the engines; `port` is reached from this machine at 127.0.0.1."
    if is_docker():
        return [] if port is None else ["-p", f"127.0.0.1:{port}:{port}"]
    import resource  # Windows has none, and there only docker gets here

    limits = [("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)]
    ours = [
        f"{name}={value}:{value}"
        for name, kind in limits
        for value in [min(20_000, resource.getrlimit(kind)[1] if resource.getrlimit(kind)[1] > 0 else 20_000)]
    ]
    return [
        "--network",
        "host",
        "--health-interval",
        "disable",
        *(part for limit in ours for part in ("--ulimit", limit)),
    ]


def run(
    image: str,
    *command: str,
    options: list[str] | None = None,
    check: bool = True,
    timeout: float = 300,
    content: bytes | None = None,
) -> subprocess.CompletedProcess:
    "Runs a container to its end, under the strictest options unless others are given, and removes it."
    given = STRICT if options is None else options
    return engine(
        "run",
        "--rm",
        *(["-i"] if content is not None else []),
        *run_options(),
        *given,
        image,
        *command,
        check=check,
        timeout=timeout,
        content=content,
    )


def python(image: str, code: str, *arguments: str, options: list[str] | None = None, check: bool = True) -> str:
    "What a Python program prints in a container of this image."
    given = STRICT if options is None else options
    return run(image, "-c", code, *arguments, options=[*given, "--entrypoint", "python3"], check=check).stdout.decode()


def inspect(what: str) -> dict:
    "What the engine knows of an image or a container."
    return json.loads(engine("inspect", what).stdout)[0]


def tag(target: str) -> str:
    "The name that the image of a target gets."
    return f"{'' if is_docker() else 'localhost/'}{NAME}:{target}"


def main(work) -> None:
    "Runs a script's work; a foreseen problem ends it with one line and code 1."
    try:
        sys.exit(work())
    except ImageProblem as problem:
        sys.exit(f"error: {problem}")
    except subprocess.TimeoutExpired as late:
        sys.exit(f"error: no answer within {late.timeout:.0f} s: {' '.join(map(str, late.cmd))}")
