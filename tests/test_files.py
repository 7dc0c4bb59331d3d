"Files and folders that appear whole or not at all: killed writers, several at once, a full disk."

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from card_classifier.files import DRAFT, STALE_SECONDS, sweep_drafts, whole_file, whole_folder, write_file

WRITER = """
import sys, time
from card_classifier.files import whole_folder
with whole_folder(sys.argv[1], may_replace=True) as draft:
    (draft / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="without locks, a draft's age tells")
def test_a_killed_writer_leaves_the_old_folder_and_a_draft_that_the_next_one_sweeps(tmp_path):
    place = tmp_path / "folder"
    with whole_folder(place) as draft:
        (draft / "whole").write_text("old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "writing\n"
    sweep_drafts(tmp_path)
    assert sum(bool(DRAFT.fullmatch(path.name)) for path in tmp_path.iterdir()) == 1, "a living writer's draft stays"
    writer.kill()
    writer.communicate()
    assert [path.name for path in place.iterdir()] == ["whole"]
    with whole_folder(place, may_replace=True) as draft:
        (draft / "whole").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (place / "whole").read_text() == "new"


def test_a_folder_that_was_moved_aside_when_its_writer_was_killed_comes_back(tmp_path):
    (tmp_path / ".folder.replaced").mkdir()
    (tmp_path / ".folder.replaced" / "whole").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "folder", may_replace=True):
        raise RuntimeError("this writer fails, too")
    assert (tmp_path / "folder" / "whole").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_many_writers_of_one_file_leave_one_whole_content(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_file(tmp_path / "file", content), contents))
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_strangers_files_are_never_swept(tmp_path):
    names = [".bashrc", "letter.draft", ".letter.draft", ".letter.0123abcg.draft", ".letter.0123abcd.draft.jpg"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    sweep_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_without_locks_an_old_draft_goes_and_a_young_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("card_classifier.files.fcntl", None)
    for name, age in ((".file.0123abcd.draft", 0), (".file.4567abcd.draft", 2 * STALE_SECONDS)):
        (tmp_path / name).touch()
        stat = (tmp_path / name).stat()
        os.utime(tmp_path / name, (stat.st_mtime - age, stat.st_mtime - age))
    sweep_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".file.0123abcd.draft"]


@pytest.mark.skipif(sys.platform == "win32", reason="the right to write is another thing there")
def test_a_file_has_the_mode_that_others_expect(tmp_path):
    write_file(tmp_path / "file", "text")
    (tmp_path / "ordinary").write_text("text")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


WRITE_THROUGH = """
import sys
from pathlib import Path
from card_classifier.files import whole_file, write_file
print("before", flush=True)
write_file(sys.argv[1], "table\\n")
with whole_file(sys.argv[1], is_durable=False) as draft:
    draft.write_text("again\\n")
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such names")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("is_piped", [True, False])
def test_what_is_open_already_is_written_through_and_never_replaced(tmp_path, name, is_piped):
    before = os.lstat("/dev/stdout")
    command = [sys.executable, "-c", WRITE_THROUGH, name]
    if is_piped:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        with (tmp_path / "out.txt").open("w") as file:
            subprocess.run(command, stdout=file, check=True)
        said = (tmp_path / "out.txt").read_text()
    assert said == "before\ntable\nagain\n", "and nothing that was there is lost"
    assert os.path.samestat(before, os.lstat("/dev/stdout"))


@pytest.mark.skipif(not hasattr(os, "mknod"), reason="Windows has no devices")
def test_a_device_stays_a_device_and_says_what_it_refuses(tmp_path):
    full, device = os.stat("/dev/full"), tmp_path / "full"
    try:
        os.mknod(device, full.st_mode, full.st_rdev) # Never the real one, which a mistake would replace
        device.open("ab").close()
    except PermissionError:
        pytest.skip("only root makes devices, and only where they may be opened")
    with pytest.raises(OSError, match="No space left"):
        write_file(device, "table")
    assert stat.S_ISCHR(os.stat(device).st_mode), "root could have replaced it"
    with pytest.raises(OSError, match="No space left"), whole_file(device) as draft:
        draft.write_text("table")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
