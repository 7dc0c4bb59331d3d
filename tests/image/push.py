"""`make image-file` and `make image-push`: the built image as a file, and from that file into a registry.

usage: push.py save [serve|train]
       push.py push

What is pushed is the file that was tested and scanned, not a second build. ARTIFACT_REGISTRY names the place, host and
path, such as `europe-west1-docker.pkg.dev/project/repository`; the name there is `card-classifier`, tagged with the
commit that was built. In a workflow, name and digest go to its later steps through GITHUB_OUTPUT.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

from engine import ROOT, ImageProblem, engine, inspect, is_docker, main, say, tag

FILE = ROOT / "outputs" / "image" / "image.tar"
PLACE = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*")


def save(target: str) -> int:
    "Writes the built image to a file."
    FILE.parent.mkdir(parents=True, exist_ok=True)
    draft = FILE.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    engine("save", *([] if is_docker() else ["--format", "docker-archive"]), "--output", str(draft), tag(target))
    draft.replace(FILE)
    say(f"{tag(target)} lies in {FILE.relative_to(ROOT)}, {FILE.stat().st_size / 1e6:.0f} MB")
    return 0


def digest_of(place: str, files: Path) -> str:
    "Pushes, and gives the digest by which the registry knows the image."
    if not is_docker():
        insecure = ["--tls-verify=false"] if place.startswith(("127.0.0.1:", "localhost:")) else []
        engine("push", *insecure, "--digestfile", str(files / "digest"), place)
        return (files / "digest").read_text(encoding="ascii").strip()
    engine("push", place)
    name = place.rpartition(":")[0]
    digests = [one for one in inspect(place)["RepoDigests"] if one.startswith(f"{name}@")]
    return digests[0].partition("@")[2]


def push() -> int:
    "Loads the file and pushes it."
    registry = os.environ.get("ARTIFACT_REGISTRY", "").rstrip("/")
    if not PLACE.fullmatch(registry):
        raise ImageProblem(f"ARTIFACT_REGISTRY should be a host and a path such as host/project/repository, "
                           f"not {registry!r}")
    if not FILE.is_file():
        raise ImageProblem(f"there is no {FILE.relative_to(ROOT)}: make image image-file")
    said = engine("load", "--input", str(FILE)).stdout.decode()
    loaded = re.findall(r"Loaded image(?:\(s\))?: (\S+)", said)
    if len(loaded) != 1:
        raise ImageProblem(f"the file should hold one image with a name: {said.strip()}")
    revision = inspect(loaded[0])["Config"]["Labels"].get("org.opencontainers.image.revision", "")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ImageProblem(f"the image does not say which commit it was built from, but {revision!r}")
    name = f"{registry}/card-classifier"
    engine("tag", loaded[0], f"{name}:{revision}")
    with tempfile.TemporaryDirectory() as folder:
        digest = digest_of(f"{name}:{revision}", Path(folder))
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ImageProblem(f"the registry gave no digest, but {digest!r}")
    if os.environ.get("GITHUB_OUTPUT"):
        with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as outputs:
            outputs.write(f"name={name}\ndigest={digest}\n")
    say(json.dumps({"name": name, "digest": digest, "tag": revision}))
    return 0


def work() -> int:
    "Saves or pushes."
    what, target = [*sys.argv[1:], "", "serve"][0], [*sys.argv[2:], "serve"][0]
    if what not in ("save", "push") or target not in ("serve", "train"):
        raise ImageProblem("usage: push.py save [serve|train], or push.py push")
    return save(target) if what == "save" else push()


if __name__ == "__main__":
    main(work)
