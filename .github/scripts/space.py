"""The Hugging Face Space: `make space` lays its files out, `make space-push` sends them.

usage: space.py make
       space.py push

`make` writes outputs/space: the app, its card, and requirements with the exact versions of requirements.lock. `push`
makes the Space hold exactly that; SPACE names it (OWNER/NAME), HF_TOKEN may write to it. There are no binary files,
which a Space takes only by other means.
"""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template

FOLDER, SOURCE = Path("outputs/space"), Path("deploy/space")
HUB = os.environ.get("SPACE_HUB", "https://huggingface.co/spaces")


class Refused(Exception):
    "Why there is no Space."


def project() -> configparser.SectionProxy:
    "What settings.ini says."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read("settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def locked() -> dict[str, str]:
    "The version of each package in requirements.lock; of several for several Pythons, the first."
    found: dict[str, str] = {}
    for line in Path("requirements.lock").read_text(encoding="utf-8").splitlines():
        pin = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ ;]+)", line)
        if pin:
            found.setdefault(re.sub(r"[-_.]+", "-", pin[1]).lower(), pin[2])
    return found


def requirements() -> list[str]:
    "The package at its version, and what it needs directly, pinned."
    told, versions, lines = project(), locked(), []
    for line in f"{told['requirements']}\n{told['serve_requirements']}".split("\n"):
        name = re.match(r"[A-Za-z0-9._-]+", line.strip())
        if name and (version := versions.get(re.sub(r"[-_.]+", "-", name[0]).lower())):
            extra = re.search(r"\[[^]]*]", line)
            lines.append(f"{name[0]}{extra[0] if extra else ''}=={version}")
    return [f"{told['lib_name']}[serve]=={told['version']}", *lines]


def make() -> None:
    "Writes the Space's files."
    told = project()
    docs = f"{told['doc_host']}{told['doc_baseurl']}"
    names = {"GRADIO": locked()["gradio"], "VERSION": told["version"], "DOCS": docs}
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    shutil.copy(SOURCE / "app.py", FOLDER / "app.py")
    card = Template((SOURCE / "README.md").read_text(encoding="utf-8")).substitute(names)
    (FOLDER / "README.md").write_text(card, encoding="utf-8")
    (FOLDER / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    print(f"{FOLDER}: {', '.join(sorted(path.name for path in FOLDER.iterdir()))}")


def git(folder: Path, *arguments: str, **environment: str) -> str:
    "What git says. Raises `Refused` with its last line."
    own = ["git", "-C", str(folder), "-c", "user.name=card_classifier", "-c", "user.email=release@localhost"]
    done = subprocess.run([*own, *arguments], capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        raise Refused((done.stderr.strip().splitlines() or ["git failed"])[-1])
    return done.stdout


def push() -> None:
    "Makes the Space hold exactly these files. The token is in no command line and no URL."
    space, token = os.environ.get("SPACE", ""), os.environ.get("HF_TOKEN", "")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", space):
        raise Refused(f"SPACE should be OWNER/NAME, not {space!r}")
    if not token:
        raise Refused("HF_TOKEN is not set: a token of Hugging Face that may write to the Space")
    if not (FOLDER / "app.py").is_file():
        raise Refused("there is nothing to push: make space")
    with tempfile.TemporaryDirectory() as place:
        ask = Path(place) / "ask"
        ask.write_text('#!/bin/sh\ncase $1 in Username*) echo token ;; *) echo "$HF_TOKEN" ;; esac\n', encoding="utf-8")
        ask.chmod(0o700)
        secret = {"GIT_ASKPASS": str(ask), "GIT_TERMINAL_PROMPT": "0"}
        git(Path(place), "clone", "--quiet", "--depth", "1", f"{HUB}/{space}", "space", **secret)
        copy = Path(place) / "space"
        git(copy, "rm", "-r", "--quiet", "--ignore-unmatch", ".")
        shutil.copytree(FOLDER, copy, dirs_exist_ok=True)
        git(copy, "add", "--all")
        if not git(copy, "status", "--porcelain"):
            print(f"{space} holds this already")
            return
        git(copy, "commit", "--quiet", "--message", f"card_classifier {project()['version']}")
        git(copy, "push", "--quiet", "origin", "HEAD", **secret)
    print(f"pushed to {HUB}/{space}")


def main() -> int:
    "Makes or pushes; the exit code is 1 with one line if that can't be."
    what = {"make": make, "push": push}.get(sys.argv[1] if len(sys.argv) == 2 else "")
    try:
        if what is None:
            raise Refused("usage: space.py make, or space.py push")
        what()
    except Refused as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
