"Shards under hard conditions: other machines, a full disk, two at once, kill -9, DVC, and the real data set."

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tiny_data import tiny_files, write_files, write_zip

from card_classifier.data.shards import ShardError, dvc_status, open_shards, prepare
from card_classifier.data.layout import scan_folder
from card_classifier.data.source import find_source

ROOT = Path(__file__).resolve().parent.parent
N_TRAIN = 40  # of each class: 2,120 training images in three shards

PREPARE = """
import sys
from pathlib import Path
from card_classifier.data.shards import ShardError, prepare
from card_classifier.data.source import find_source
try:
    print(prepare(find_source(sys.argv[1]), sys.argv[2]).checksum)
except ShardError as error:
    sys.exit(f"ShardError: {error}")
"""
STOP_AT = """
import sys, time
from pathlib import Path
from card_classifier.data.shards import prepare
from card_classifier.data.source import find_source
def progress(done, total, what):
    if what == sys.argv[3] and done == 1:
        print("stopped", flush=True)
        while not Path(sys.argv[4]).exists(): time.sleep(0.02)
prepare(find_source(sys.argv[1]), sys.argv[2], progress=progress)
"""


def checksums(folder: Path) -> dict[str, str]:
    "SHA-256 of every file in a folder."
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    "A raw data set whose training split needs three shards."
    return write_files(tmp_path_factory.mktemp("large") / "raw", tiny_files(N_TRAIN))


@pytest.fixture(scope="module")
def right(raw, tmp_path_factory) -> Path:
    "Its shards, made without any disturbance."
    return prepare(scan_folder(raw), tmp_path_factory.mktemp("right") / "data").folder


# --------------------------------------------------------------------------------------- same bytes

def test_every_machine_makes_the_same_bytes(tmp_path):
    files = tiny_files(2) | {"train/joker/901.jpg": b"no image", "notes.h5": b"a stray"}
    files["train/joker/902.jpg"] = files["test/joker/001.jpg"]
    results = []
    for number, (environment, umask) in enumerate(
        [
            ({"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "0"}, 0o022),
            ({"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}, 0o077),
            (
                {
                    "TZ": "America/St_Johns",
                    "LANG": "tr_TR.UTF-8",
                    "PYTHONHASHSEED": "2",
                    "PYTHONUTF8": "0",
                    "OPENBLAS_NUM_THREADS": "4",
                },
                0,
            ),
        ]
    ):
        source = write_files(tmp_path / str(number) / "raw", files, shuffle=number)
        for age, file in enumerate(source.rglob("*.jpg")):
            os.utime(file, (age * 1000 * number, age * 1000 * number))
        if number == 2:
            source = write_zip(tmp_path / "2" / "raw.zip", dict(sorted(files.items(), reverse=True)))
        folder = tmp_path / str(number) / "data"
        subprocess.run(
            [sys.executable, "-c", PREPARE, source, folder],
            env=os.environ | environment,
            check=True,
            capture_output=True,
            cwd=tmp_path / str(number),
            umask=umask if os.name == "posix" else -1,
        )
        results.append(checksums(folder))
    assert results[0] == results[1] == results[2]
    assert set(results[0]) == {"train-000.tar", "valid-000.tar", "test-000.tar", "exclusions.csv", "dataset.json"}


def test_any_tar_reader_gets_webdataset_samples(raw, right):
    shards = open_shards(right)
    with tarfile.open(right / "train-001.tar") as archive:
        names = archive.getnames()
        about = json.load(archive.extractfile("001000.json"))
        image = archive.extractfile("001000.jpg").read()
    assert names == sorted(names, key=lambda name: (name[:6], ["jpg", "cls", "json"].index(name[7:])))
    assert len(names) == 3000
    assert image == (raw / about["path"]).read_bytes()
    assert shards.samples("train", with_excluded=True)[1000].path == about["path"]


def test_other_raw_data_replaces_the_shards_and_leaves_nothing_behind(raw, right, tmp_path):
    shutil.copytree(right, tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("mine")
    small = prepare(scan_folder(write_files(tmp_path / "raw", tiny_files(1))), tmp_path / "data")
    assert small.counts == {"train": 53, "valid": 53, "test": 53}
    assert set(checksums(small.folder)) == {
        "train-000.tar",
        "valid-000.tar",
        "test-000.tar",
        "exclusions.csv",
        "dataset.json",
        "notes.txt",
    }
    assert prepare(scan_folder(raw), tmp_path / "data").checksum == open_shards(right).checksum


# ------------------------------------------------------------------------------------------- faults

def assert_full_disk_is_survived(folder: Path, right: Path, failed: subprocess.CompletedProcess):
    "What a full disk must leave: one line, whole shards, no parts, no dataset.json."
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("ShardError: ")
    assert "no space left" in failed.stderr
    assert "Traceback" not in failed.stderr
    left, whole = checksums(folder), checksums(right)
    assert left and all(whole[name] == checksum for name, checksum in left.items())
    assert "dataset.json" not in left
    with pytest.raises(ShardError, match="data prepare"):
        open_shards(folder)


def test_a_limit_on_file_size_is_explained(raw, right, tmp_path):
    resource = pytest.importorskip("resource", reason="this system has no limit on file sizes")
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(right / "train-000.tar", folder)
    unmeasured = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")
    }  # coverage could not write its own file
    failed = subprocess.run(
        [sys.executable, "-c", PREPARE, raw, folder],
        capture_output=True,
        text=True,
        check=False,
        env=unmeasured,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert_full_disk_is_survived(folder, right, failed)
    assert prepare(scan_folder(raw), folder).checksum == open_shards(right).checksum
    assert checksums(folder) == checksums(right)


def test_a_full_disk_is_explained_and_the_next_run_goes_on(raw, right, small_disk):
    disk = small_disk("5m")
    folder = disk / "data"
    failed = subprocess.run([sys.executable, "-c", PREPARE, raw, folder], capture_output=True, text=True, check=False)
    assert_full_disk_is_survived(folder, right, failed)
    first = (folder / "train-000.tar").stat().st_mtime_ns
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    assert prepare(scan_folder(raw), folder).checksum == open_shards(right).checksum
    assert checksums(folder) == checksums(right)
    assert (folder / "train-000.tar").stat().st_mtime_ns == first


@pytest.mark.parametrize("stage", ["looking at images", "writing shards"])
def test_kill_in_the_middle_then_again_equals_undisturbed(raw, right, tmp_path, stage):
    folder = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", STOP_AT, raw, folder, stage, tmp_path / "never"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "stopped\n"
    process.kill()
    process.wait()
    assert not (folder / "dataset.json").exists()
    (folder / ".train-001.tar.0123abcd.draft").write_bytes(b"half a shard")
    subprocess.run([sys.executable, "-c", PREPARE, raw, folder], check=True, capture_output=True)
    assert checksums(folder) == checksums(right)


def test_two_at_once_wait_for_each_other(raw, right, tmp_path):
    folder, go = tmp_path / "data", tmp_path / "go"
    first = subprocess.Popen(
        [sys.executable, "-c", STOP_AT, raw, folder, "writing shards", go], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "stopped\n"
    second = subprocess.Popen(
        [sys.executable, "-c", PREPARE, raw, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr.readline() == f"another process is preparing data in {folder}: waiting until it is done\n"
    assert second.poll() is None
    go.touch()
    assert first.wait() == 0
    assert second.communicate()[0].strip() == open_shards(right).checksum
    assert second.returncode == 0
    assert checksums(folder) == checksums(right)


def test_text_files_named_jpg_are_no_data_set(tmp_path):
    words = write_files(tmp_path / "raw", {path: b"only words" for path in tiny_files(1)})
    with pytest.raises(ShardError, match=r"no readable image in 53 class folder\(s\) of train/, first 'ace of clubs'"):
        prepare(scan_folder(words), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    raw = write_files(tmp_path / "raw", tiny_files(1))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ShardError, match="choose a folder that can be written to"):
        prepare(scan_folder(raw), tmp_path / "file" / "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"format": 99}', "format 99, this version reads 1"),
        (b'{"format": 1}', "its classes are not the 53"),
        (b'{"format": 1, "class_names": ["ace"]}', "its classes are not the 53"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_broken_description_is_explained(tmp_path, content, message):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(ShardError, match=message) as error:
        open_shards(tmp_path)
    assert str(error.value).count("\n") == 0
    assert "data prepare" in str(error.value)


# ---------------------------------------------------------------------------------------------- DVC

def run(*command: str|Path, cwd: Path) -> str:
    "The output of a command that must succeed."
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"DVC_NO_ANALYTICS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkout(folder: Path) -> Path:
    "A git repository with this project's DVC configuration."
    folder.mkdir()
    run("git", "init", "-q", ".", cwd=folder)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copy(ROOT / ".dvcignore", folder)
    (folder / ".gitignore").write_text("/data/\n")
    return folder


def test_dvc_agrees_in_another_clone_and_is_never_overwritten(tmp_path):
    raw = write_files(tmp_path / "raw", tiny_files(1))
    here, there = checkout(tmp_path / "here"), checkout(tmp_path / "there")
    prepare(scan_folder(raw), here / "data")
    run(sys.executable, "-m", "dvc", "add", "-q", "data", cwd=here)
    shutil.copy(here / "data.dvc", there)
    assert "no shards yet" in dvc_status(there / "data")
    prepare(scan_folder(raw), there / "data")
    assert dvc_status(there / "data") == "data/ and data.dvc agree"
    assert (
        run(sys.executable, "-m", "dvc", "status", "data.dvc", cwd=there).strip()
        == "Data and pipelines are up to date."
    )
    (raw / "train/joker/001.jpg").write_bytes((raw / "valid/joker/001.jpg").read_bytes())
    prepare(scan_folder(raw), there / "data")
    assert dvc_status(there / "data").startswith("data/ differs from data.dvc, which was left as it is: `dvc add data`")
    assert (there / "data.dvc").read_bytes() == (here / "data.dvc").read_bytes()


def test_dvc_that_cannot_work_is_no_crash(tmp_path):
    folder = prepare(scan_folder(write_files(tmp_path / "raw", tiny_files(1))), tmp_path / "data").folder
    (tmp_path / "data.dvc").write_text("outs:\n- path: data\n")
    assert dvc_status(folder).startswith("not compared with data.dvc: ")


# ---------------------------------------------------------------------------------------- real data

@pytest.mark.skipif(
    not os.environ.get("CARD_CLASSIFIER_DATA"), reason="CARD_CLASSIFIER_DATA is not set: needs the real data set"
)
def test_the_real_data_set_gives_the_pinned_checksum_and_the_known_audit(tmp_path):
    data_set = find_source(None, tmp_path / "raw")
    assert data_set.name == "cards-image-datasetclassification"
    assert len(data_set.csv_problems) == 1
    root = checkout(tmp_path / "clone")
    shards = prepare(data_set, root / "data")
    assert shards.counts == {"train": 7624, "valid": 265, "test": 265}
    assert len(list(shards.folder.iterdir())) == 12
    shutil.copy(ROOT / "data.dvc", root)
    assert dvc_status(root / "data") == "data/ and data.dvc agree"
    by_path = {image.path: image for image in data_set.images}
    assert all(shards.read(sample) == by_path[sample.path].read() for sample in shards.samples("test"))

    found = shards.description["audit"]
    identical = {(pair["first"], pair["second"]) for pair in found["exact_duplicates"]}
    assert identical == {("train/four of clubs/127.jpg", "train/four of spades/120.jpg"),
                         ("train/three of diamonds/079.jpg", "train/three of diamonds/080.jpg")}
    assert found["corrupt"] == found["wrong_size"] == []
    excluded = {item.path: item.reason for item in shards.exclusions}
    assert excluded["train/four of clubs/127.jpg"] == excluded["train/four of spades/120.jpg"] == "contradicts"
    assert all(path.startswith("train/") for path in excluded)
    assert len(shards.samples("train")) == 7624 - len(excluded)
    assert "test/king of spades/5.jpg" in shards.leaking("test")
