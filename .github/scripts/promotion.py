"""Gets what was just put into production, so that a clean machine can judge it again: `make promoted`.

A workflow starts for a tag of the registry, such as `card-classifier#production#3`, or for an event that W&B sends when
an alias moves. EVENT, TAG and PAYLOAD, the environment variables that carry them, are words of a stranger: each is
checked against the shape that it must have before anything is done with it. Writes `outputs/promoted/candidate` and,
the bundle that it replaced, `outputs/promoted/before`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path("outputs/promoted")
RELEASED = Path("card_classifier/released")
TAG = re.compile(r"card-classifier#production#[1-9]\d{0,5}")
MAX_CHARACTERS = 10_000


class Refused(Exception):
    "Why nothing is judged."


def command(*arguments: str) -> str:
    "What a command of the project prints. Raises `Refused` with its one line of error."
    done = subprocess.run(["card-classifier", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused((done.stderr.strip().splitlines() or ["the command failed"])[-1].removeprefix("error: "))
    return done.stdout


def of_tag(tag: str) -> tuple[str, str]:
    "The version that a tag of the registry put into production, and the one before it. Raises `Refused`."
    if not TAG.fullmatch(tag):
        raise Refused(f"{tag!r} is not a tag of the registry that puts a version into production")
    moves = json.loads(command("models", "--json"))["moves"]
    found = [move for move in moves if move["tag"] == tag]
    if not found or not found[0]["version"]:
        raise Refused(f"the tag {tag} puts no version into production")
    return found[0]["version"], found[0]["record"].get("before") or ""


def check_payload(text: str) -> None:
    "Raises `Refused` unless an event says that this model's alias `production` moved."
    if len(text) > MAX_CHARACTERS:
        raise Refused("the payload is too long")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise Refused("the payload is no JSON") from problem
    wanted = {"collection": "card-classifier", "alias": "production"}
    if not isinstance(payload, dict) or {name: payload.get(name) for name in wanted} != wanted:
        raise Refused(f"the payload should say {json.dumps(wanted)}")


def main() -> int:
    "Gets both bundles; the exit code is 1 if the event is not what it should be."
    event, candidate, before = os.environ.get("EVENT", ""), FOLDER / "candidate", FOLDER / "before"
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        if event == "push":
            version, earlier = of_tag(os.environ.get("TAG", ""))
            said = command("models", "get", version, "--to", str(candidate))
        elif event == "repository_dispatch":
            check_payload(os.environ.get("PAYLOAD", ""))
            said = command("models", "get", "production", "--from-wandb", "--to", str(candidate))
            earlier = json.loads(command("models", "--json"))["stages"]["production"] or ""
        else:
            raise Refused(f"{event!r} promotes nothing")
        if re.fullmatch(r"v\d+\.\d+\.\d+", earlier):
            command("models", "get", earlier, "--to", str(before))
        else:
            shutil.copytree(RELEASED, before)
    except Refused as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    print(said.strip().splitlines()[0])
    print(f"before it: {earlier or 'the released bundle'}; next: make gate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
