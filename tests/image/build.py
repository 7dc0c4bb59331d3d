"""`make image`: builds the image, and says from which base and how large it became.

usage: build.py [serve|train]

PYTHON_IMAGE replaces the base that the Dockerfile pins, DOCKERFILE the file itself. Without a Docker engine buildah
builds; where no registry can be reached either, the base is made of Debian's own packages, and the script says so,
because that is not what the Dockerfile pins.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import ROOT, ImageProblem, answers, environment, inspect, is_docker, main, say, store_options, tag

# Debian 12 has Python 3.11 like the pinned base, but 3.11.2, for which some packages of the training stack are too new;
# Debian 13 has Python 3.13.
DOCKERFILE = Path(os.environ.get("DOCKERFILE") or ROOT / "Dockerfile")
SUITES = {"serve": "bookworm", "train": "trixie"}


def pinned_base() -> str:
    "The base image that the Dockerfile names."
    return re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)[1]


def buildah(*arguments: str, timeout: float = 3600, quiet: bool = False) -> str:
    "Runs `buildah …` and gives the last line it printed. Raises `ImageProblem` when it fails."
    done = subprocess.run(
        ["buildah", *store_options(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        timeout=timeout,
        check=False,
        env=environment(),
        text=True,
    )
    if done.returncode:
        raise ImageProblem(
            f"buildah {arguments[0]} ended with {done.returncode}{': ' + done.stderr.strip()[-500:] if quiet else ''}"
        )
    return (done.stdout.strip().splitlines() or [""])[-1]


def debian_base(suite: str) -> str:
    "Debian's own Python as python:3.11-slim has it, made once: no bytecode in the standard library, pip may install."
    base = f"localhost/python-of-debian:{suite}"
    if answers("buildah", *store_options(), "inspect", "--type", "image", base):
        return base
    if not answers("mmdebstrap", "--version"):
        raise ImageProblem(
            "no registry can be reached and mmdebstrap is not installed: "
            "apt-get install --no-install-recommends mmdebstrap"
        )
    with tempfile.TemporaryDirectory(dir=environment().get("TMPDIR")) as folder:
        archive = Path(folder) / "base.tar"
        hooks = [
            'ln -s python3 "$1"/usr/bin/python',
            'rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED',
            'find "$1"/usr/lib -name "*.pyc" -delete',
        ]
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--include=python3,python3-pip,python3-venv,ca-certificates",
            *(f"--customize-hook={hook}" for hook in hooks),
            suite,
            str(archive),
        ]
        if subprocess.run(command, check=False).returncode:
            raise ImageProblem("mmdebstrap could not make a base image")
        container = buildah("from", "scratch")
        buildah("add", "-q", container, str(archive), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--cmd", "python3", container)
    buildah("commit", "--rm", "-q", container, base)
    return base


def base_for_buildah(wanted: str, suite: str) -> str:
    "The wanted base, pulled; one of Debian's packages where no registry answers."
    try:
        buildah("pull", "--quiet", "--policy", "missing", wanted, timeout=300, quiet=True)
        return wanted
    except (ImageProblem, subprocess.TimeoutExpired) as problem:
        if os.environ.get("PYTHON_IMAGE"):
            raise
        say(
            f"NOTE: {wanted} can't be had here ({str(problem)[-160:]}); "
            f"the base is made of Debian's own packages ({suite}) instead"
        )
        return debian_base(suite)


def revision() -> str:
    "The commit that is checked out."
    if not shutil.which("git"):
        return "unknown"
    return (
        subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        or "unknown"
    )


def build() -> int:
    "Builds one target."
    target = (sys.argv[1:] or ["serve"])[0]
    if target not in SUITES:
        raise ImageProblem(f"there is no target {target!r}; there are {' and '.join(SUITES)}")
    wanted = os.environ.get("PYTHON_IMAGE") or pinned_base()
    if "@sha256:" not in wanted and wanted != "scratch":
        say(f"NOTE: {wanted} is not pinned by a digest")
    shared = [
        "--target",
        target,
        "--build-arg",
        f"REVISION={revision()}",
        "--tag",
        tag(target),
        "--file",
        str(DOCKERFILE),
    ]
    start = time.monotonic()
    if is_docker():
        base = wanted
        command = ["docker", "build", "--build-arg", f"PYTHON_IMAGE={base}", *shared, str(ROOT)]
        if subprocess.run(command, check=False, env={**os.environ, "DOCKER_BUILDKIT": "1"}).returncode:
            raise ImageProblem("docker build failed")
    else:
        base = wanted if wanted == "scratch" else base_for_buildah(wanted, SUITES[target])
        authority = os.environ.get("SSL_CERT_FILE")  # of a proxy that stands between this machine and the package index
        mounts = ["--volume", f"{authority}:/etc/ssl/certs/ca-certificates.crt:ro"] if authority else []
        buildah(
            "build",
            "--layers",
            "--format",
            "docker",
            "--isolation",
            "chroot",
            "--pull-never",
            "--network",
            "host",
            *mounts,
            "--build-arg",
            f"PYTHON_IMAGE={base}",
            *shared,
            str(ROOT),
        )
    seconds = time.monotonic() - start
    say(f"built {tag(target)} in {seconds:.0f} s, {inspect(tag(target))['Size'] / 1e6:.0f} MB with its base {base}")
    return 0


if __name__ == "__main__":
    main(build)
