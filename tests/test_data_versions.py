"Versions of the data as people exchange and compare them: a bucket, a folder, full and offline ones, odd clones."

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment_of_a_clone
from record_victims import make_record
from tiny_data import noise_jpeg, tiny_files, write_files

from card_classifier.data.layout import scan_folder
from card_classifier.data.remote import set_remote
from card_classifier.data.shards import open_shards, prepare
from card_classifier.records.writer import Records

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"DVC_NO_ANALYTICS": "1", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "FORCE_COLOR": "", "COLUMNS": "200"}
PERSON = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"]


def run(*command: str | Path, cwd: Path) -> str:
    "The output of a command that must succeed."
    known = environment_of_a_clone() | QUIET
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=known)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(clone: Path, *arguments: str) -> str:
    "Git for a person who exists only here."
    return run("git", *PERSON, *arguments, cwd=clone)


def dvc(clone: Path, *arguments: str) -> str:
    "DVC itself, as people may call it beside our commands."
    return run(sys.executable, "-m", "dvc", *arguments, cwd=clone)


def start(clone: Path, *arguments: str, **options) -> subprocess.Popen:
    "A command of this project in a clone."
    program = "from card_classifier.cli.main import app; app()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=options.pop("cwd", clone), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment_of_a_clone() | QUIET | {"PYTHONPATH": str(clone), "CARD_CLASSIFIER_DATA": ""}, **options,
    )  # fmt: skip


def ours(clone: Path, *arguments: str, **options) -> str:
    "What a command of this project says when it succeeds."
    process = start(clone, *arguments, **options)
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    return output


def refused(clone: Path, *arguments: str, **options) -> str:
    "The one line with which a command refuses."
    process = start(clone, *arguments, **options)
    output, errors = process.communicate()
    lines = [line for line in errors.splitlines() if "━" not in line and line.strip()]
    assert process.returncode == 2, output + errors
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    return lines[0]


def install(clone: Path) -> Path:
    "Puts this package into a clone, so that it counts as the checkout that the package belongs to."
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "card_classifier", clone / "card_classifier", ignore=ignored)
    (clone / "configs").mkdir()
    (clone / "nbs" / "recipes").mkdir(parents=True)
    (clone / "nbs" / "recipes" / "train.ipynb").touch()
    return clone


def clone_of(clone: Path, target: Path, *options: str) -> Path:
    "Somebody else's clone."
    git(clone.parent, "clone", "-q", *options, f"file://{clone}", str(target))
    return install(target)


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> Path:
    "A repository with two versions of a tiny data set, in a folder with a space and an umlaut."
    folder = tmp_path_factory.mktemp("versions") / "Karten für alle" / "mine"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copy(ROOT / ".dvcignore", folder)
    (folder / ".gitignore").write_text("/data/\n/card_classifier/\n/configs/\n/nbs/\n/outputs/\n.*.lock\n*.draft\n")
    git(folder, "init", "-q", "-b", "main")
    files = tiny_files(1)
    for message in ("first data", "a joker was an ace"):
        raw = write_files(folder.parent / message, files)
        prepare(scan_folder(raw, name="tiny"), folder / "data")
        dvc(folder, "add", "-q", "data")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", message)
        files["train/ace of clubs/002.jpg"] = files["train/joker/001.jpg"]
        files["train/joker/001.jpg"] = noise_jpeg(1000)
    return install(folder)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    "A server that speaks the protocol of Google Cloud Storage, with a bucket called cards."
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("bucket")
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    options = ["start", "--host", "127.0.0.1", "--port", str(port), "--default-bucket", "cards", "--quiet"]
    server = subprocess.Popen(
        [program, "-d", str(place), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        if server.poll() is not None or socket.socket().connect_ex(("127.0.0.1", port)) == 0:
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


def use_bucket(clone: Path, endpoint: str) -> None:
    "What a person with a server of their own writes for one clone."
    section = f"['remote \"storage\"']\n    endpointurl = {endpoint}\n    allow_anonymous_login = true\n"
    (clone / ".dvc" / "config.local").write_text(section)


def content(folder: Path) -> dict[str, bytes]:
    "Every file in a folder."
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------- remotes

def test_the_remote_of_this_project_is_a_folder_beside_the_checkout(history):
    assert ours(history, "data", "remote").strip() == f"remote: {history.parent / 'card-classifier-storage'}"


def test_a_bucket_takes_a_version_and_gives_it_to_another_clone(history, bucket, tmp_path):
    mine = clone_of(history, tmp_path / "mine")
    shutil.copytree(history / "data", mine / "data")
    said = ours(mine, "data", "remote", "gs://cards/some-data")
    assert "written into .dvc/config; commit it" in said
    use_bucket(mine, bucket)
    git(mine, "commit", "-qam", "the bucket")
    assert "6 files sent to gs://cards/some-data" in ours(mine, "data", "push")  # five shards' files and their list
    assert "in sync" in dvc(mine, "status", "--cloud", "data.dvc")

    theirs = clone_of(mine, tmp_path / "theirs ü")
    use_bucket(theirs, bucket)
    said = ours(theirs, "data", "pull", cwd=tmp_path)
    assert "6 files fetched from gs://cards/some-data" in said and "data/ and data.dvc agree" in said
    assert content(theirs / "data") == content(history / "data")

    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    use_bucket(theirs, f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert "can't be reached: everything else works without it" in refused(theirs, "data", "push")
    assert time.monotonic() - began < 30  # Google's client alone would try for longer


def test_a_full_disk_is_said_and_the_next_push_goes_on(history, small_disk, tmp_path):
    disk = small_disk("64k")
    mine = clone_of(history, tmp_path / "mine")
    shutil.copytree(history / "data", mine / "data")
    set_remote(mine, str(disk / "storage"))
    assert "there is no space left" in refused(mine, "data", "push")
    whole = content(mine / "data").values()
    arrived = [file for file in (disk / "storage").rglob("*") if file.is_file() and file.suffix != ".tmp"]
    assert all(file.read_bytes() in whole for file in arrived)  # nothing that only looks like a file
    subprocess.run(["mount", "-o", "remount,size=5m", disk], check=True)
    assert "files sent to" in ours(mine, "data", "push")


def test_a_version_that_is_nowhere_is_not_up_to_date(history, tmp_path):
    theirs = clone_of(history, tmp_path / "theirs")
    set_remote(theirs, str(tmp_path / "empty"))
    assert "is neither on this machine nor in" in refused(theirs, "data", "push")


# ------------------------------------------------------------------------------------------ odd clones

def test_images_that_no_version_holds_are_kept(history, tmp_path):
    theirs = clone_of(history, tmp_path / "theirs")
    set_remote(theirs, str(tmp_path / "storage"))
    shutil.copytree(history / "data", theirs / "data")
    ours(theirs, "data", "push")
    prepare(scan_folder(write_files(tmp_path / "raw", tiny_files(2))), theirs / "data")
    before = content(theirs / "data")
    assert "left as it is" in refused(theirs, "data", "pull")
    assert content(theirs / "data") == before
    ours(theirs, "data", "pull", "--force")
    assert content(theirs / "data") == content(history / "data")


def test_a_shallow_clone_pulls_and_says_why_it_has_no_past(history, tmp_path):
    set_remote(history, str(history.parent / "card-classifier-storage"))
    ours(history, "data", "push")
    git(history, "checkout", "-q", ".dvc/config")
    theirs = clone_of(history, history.parent / "shallow", "--depth", "1")
    assert "data/ and data.dvc agree" in ours(theirs, "data", "pull")
    assert "this clone is shallow: git fetch --unshallow" in refused(theirs, "data", "diff", "HEAD~1")


def test_a_folder_without_git_says_so(history, tmp_path):
    shutil.copytree(history, tmp_path / "unzipped", ignore=shutil.ignore_patterns(".git", "cache", "tmp"))
    assert "not a git clone" in refused(tmp_path / "unzipped", "data", "push")
    assert "is not a git clone, so it has no revisions" in refused(tmp_path / "unzipped", "data", "diff", "HEAD")


# ------------------------------------------------------------------------------------------ differences

def test_two_revisions_are_compared_though_this_clone_has_neither(history, tmp_path):
    set_remote(history, str(tmp_path / "storage"))
    dvc(history, "push", "-q", "--all-commits", "data.dvc")
    git(history, "checkout", "-q", ".dvc/config")
    theirs = clone_of(history, tmp_path / "theirs")
    set_remote(theirs, str(tmp_path / "storage"))
    told = json.loads(ours(theirs, "data", "diff", "HEAD~1", "main", "--json", "--page", str(tmp_path / "page.html")))
    assert [len(told[kind]) for kind in ("added", "removed", "relabelled", "moved", "changed")] == [1, 0, 1, 0, 0]
    assert told["relabelled"][0]["class_before"] == "joker" and told["relabelled"][0]["class"] == "ace of clubs"
    assert told["added"][0]["path"] == "train/joker/001.jpg"
    assert told["balance"]["train"]["ace of clubs"] == [1, 2] and told["unchanged"] == 158
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2 and "http" not in page
    assert not (theirs / "data").exists() and not list((theirs / ".dvc" / "tmp").glob("version-*"))


def test_a_revision_is_compared_with_a_folder_of_raw_images(history):
    raw = history.parent / "first data"
    assert json.loads(ours(history, "data", "diff", "HEAD~1", str(raw), "--json"))["unchanged"] == 159
    assert re.search(r"relabelled +1 ", ours(history, "data", "diff", str(raw)))
    assert open_shards(history / "data").counts["train"] == 54
    empty = history.parent / "nothing here"
    empty.mkdir()
    assert "no `train` folder in it" in refused(history, "data", "diff", str(empty))


# ------------------------------------------------------------------------------------------ from records

KILLED = """
import os, signal, sys
import card_classifier.cli.feedback as feedback
import card_classifier.data.additions as additions
where = sys.argv.pop(1)
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "before the table":
    additions.write_decisions = die
elif where == "in the shards":
    additions.pack_shards = die
from card_classifier.cli.main import app
app()
"""


@pytest.fixture(scope="module")
def corrected(history, tmp_path_factory) -> tuple[Path, str]:
    "A clone with its data, and a database in which five photos were corrected."
    mine = clone_of(history, tmp_path_factory.mktemp("feedback") / "mine")
    shutil.copytree(history / "data", mine / "data")
    set_remote(mine, str(mine.parent / "storage"))
    dvc(mine, "commit", "-q", "data.dvc")  # into the cache
    database = f"sqlite:///{mine.parent / 'Rückmeldungen.sqlite'}"
    shards = open_shards(mine / "data")
    examples = ROOT / "card_classifier" / "demo" / "examples"
    in_test = shards.read(shards.samples("test")[0])
    photos = [
        ("ace of spades", (examples / "ace-of-spades.webp").read_bytes()),
        ("king of hearts", (examples / "joker.webp").read_bytes()),
        ("ace of spades", (examples / "three-cards.webp").read_bytes()),
        (shards.samples("test")[0].class_name, in_test),
        ("no card", noise_jpeg(7)),
    ]
    with Records(database, keep_images=True) as records:
        for number, (card, photo) in enumerate(photos):
            record = make_record(f"{number:032x}", image=photo, sha256=hashlib.sha256(photo).hexdigest())
            assert records.add_and_wait(record).result(10)
            records.feedback(f"{number:032x}", 0, card)
    return mine, database


def test_corrected_photos_become_a_version_after_a_yes_and_a_kill_anywhere_loses_nothing(corrected, history):
    mine, database = corrected
    command = ["data", "from-records", "--database", database]
    before, pinned = content(mine / "data"), (mine / "data.dvc").read_bytes()
    said = ours(mine, *command)
    assert "left aside: 1 photos without a card" in said and "nothing was added" in said
    assert content(mine / "data") == before and not (mine / "additions").exists()
    review = mine / "outputs" / "from-records"
    table = (review / "review.csv").read_text().splitlines()
    takes = {row.rpartition(",")[2][30:]: row.partition(",")[0] for row in table[1:]}
    assert takes == {"00-0-0.jpg": "yes", "01-0-0.jpg": "yes", "02-0-0.jpg": "", "02-0-1.jpg": "", "02-0-2.jpg": "",
                     "03-0-0.jpg": "no"}  # fmt: skip
    assert "it would leak" in (review / "sheet.html").read_text()

    (review / "review.csv").write_text("\n".join(table).replace("yes,king of hearts", "no,king of hearts"))
    for where in ("before the table", "in the shards"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, where, *command, "--yes"], cwd=mine, check=False, capture_output=True,
            env=environment_of_a_clone() | QUIET | {"PYTHONPATH": str(mine)},
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert content(mine / "data") == before and (mine / "data.dvc").read_bytes() == pinned
    said = ours(mine, *command)
    assert "finished what an earlier run had begun" in said and "3 crops: 0 to take, 0 to decline, 3 open" in said

    shards = open_shards(mine / "data")
    assert shards.counts["train"] == 55 and len(shards.description["additions"]) == 1
    assert shards.description["additions"][0]["request_id"] == "0" * 32
    assert shards.samples("train")[-1].path == f"train/ace of spades/record-{'0' * 32}-0-0.jpg"
    once = (mine / "data.dvc").read_bytes()
    assert once != pinned and (mine / "additions.dvc").is_file()
    ours(mine, *command, "--yes")
    assert (mine / "data.dvc").read_bytes() == once and open_shards(mine / "data").checksum == shards.checksum

    ours(mine, "data", "push")
    git(mine, "add", "data.dvc", "additions.dvc")
    git(mine, "commit", "-qam", "what people corrected")
    theirs = clone_of(mine, mine.parent / "theirs")
    raw = str(history.parent / "first data")
    assert "names images that were added" in refused(theirs, "data", "prepare", "--source", raw)
    ours(theirs, "data", "pull")
    assert content(theirs / "data") == content(mine / "data")
    told = json.loads(ours(mine, "data", "diff", "HEAD~1", "--json"))
    assert [item["class"] for item in told["added"]] == ["ace of spades"] and not told["removed"]
