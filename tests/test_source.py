"Raw data as it really arrives: cut off, nested, hostile, incomplete, twice at once."

import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import noise_jpeg, tiny_files, write_files, write_zip

from card_classifier.cards import CLASS_NAMES
from card_classifier.data.layout import SourceError, scan_folder
from card_classifier.data.source import extract_zip, find_source

FILES = tiny_files()


def one_line(error: pytest.ExceptionInfo) -> str:
    "The message, which must be one line."
    assert "\n" not in str(error.value)
    return str(error.value)


def names_in(folder: Path) -> set[str]:
    "Every file below a folder."
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


# ---------------------------------------------------------------------------------------------- zips

def test_zip_and_folder_hold_the_same_images(tmp_path):
    folder = scan_folder(write_files(tmp_path / "raw", FILES, shuffle=3))
    flat = find_source(write_zip(tmp_path / "flat.zip", FILES, zipfile.ZIP_DEFLATED), tmp_path / "work")
    nested = find_source(
        write_zip(tmp_path / "nested.zip", {f"archive/{k}": v for k, v in FILES.items()}), tmp_path / "work"
    )
    for data_set in (flat, nested):
        assert [image.path for image in data_set.images] == [image.path for image in folder.images] == sorted(FILES)
        assert all(image.read() == FILES[image.path] for image in data_set.images)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_half_copied_zip_says_so(tmp_path, share):
    whole = write_zip(tmp_path / "whole.zip", FILES).read_bytes()
    half = tmp_path / "half.zip"
    half.write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(SourceError) as error:
        find_source(half, tmp_path / "work")
    assert f"only part of a zip ({half.stat().st_size:,} bytes" in one_line(error)
    assert "copy or download it again" in one_line(error)


def test_a_zip_with_a_damaged_middle_says_so(tmp_path):
    damaged = write_zip(tmp_path / "damaged.zip", FILES)
    content = bytearray(damaged.read_bytes())
    content[5000:5100] = bytes(100)
    damaged.write_bytes(content)
    with pytest.raises(SourceError) as error:
        find_source(damaged, tmp_path / "work")
    assert "damaged or cut off" in one_line(error)


@pytest.mark.parametrize("content", [b"", b"PK", b"%PDF-1.7", b"\x00" * 5000])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "cards.zip").write_bytes(content)
    with pytest.raises(SourceError) as error:
        find_source(tmp_path / "cards.zip", tmp_path / "work")
    assert f"({len(content):,} bytes" in one_line(error)


@pytest.mark.parametrize(
    "name",
    [
        "../../train/joker/x.jpg",
        "train/../../x.jpg",
        "/train/joker/x.jpg",
        "C:/train/joker/x.jpg",
        "..\\train\\joker\\x.jpg",
        "train/joker/..",
        "C:x.jpg",
        "\\\\server\\train\\x.jpg",
    ],
)
def test_no_member_leaves_the_folder(tmp_path, name):
    hostile = write_zip(tmp_path / "hostile.zip", FILES)
    with zipfile.ZipFile(hostile, "a") as archive:
        member = zipfile.ZipInfo("placeholder")
        member.filename = name
        archive.writestr(member, noise_jpeg(0))
    before = names_in(tmp_path)
    with pytest.raises(SourceError) as error:
        extract_zip(hostile, tmp_path / "work" / "cards")
    assert "nothing was unpacked" in one_line(error)
    assert names_in(tmp_path) == before


def test_links_and_devices_are_refused(tmp_path):
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        hostile = tmp_path / f"{kind}.zip"
        with zipfile.ZipFile(hostile, "w") as archive:
            member = zipfile.ZipInfo("train/joker/1.jpg")
            member.external_attr = (kind | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
        with pytest.raises(SourceError, match="is a link or a device"):
            extract_zip(hostile, tmp_path / "work")


def test_bombs_are_refused_by_what_they_say(tmp_path):
    packed = write_zip(tmp_path / "packed.zip", {"train/joker/1.jpg": bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(SourceError, match="times its size"):
        extract_zip(packed, tmp_path / "work")
    many = tmp_path / "many.zip"  # the same bytes listed many times, as in Fifield's overlapping bomb
    with zipfile.ZipFile(many, "w") as archive:
        archive.writestr("train/joker/1.jpg", os.urandom(100_000))
        for number in range(2, 200):
            member = zipfile.ZipInfo(f"train/joker/{number}.jpg")
            first = archive.filelist[0]
            member.header_offset, member.CRC = first.header_offset, first.CRC
            member.compress_size, member.file_size = first.compress_size, first.file_size
            archive.filelist.append(member)
            archive.NameToInfo[member.filename] = member
        archive._didModify = True
    with pytest.raises(SourceError):
        extract_zip(many, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_member_that_lies_about_its_size_is_cut_off(tmp_path):
    liar = write_zip(tmp_path / "liar.zip", {"train/joker/1.jpg": bytes(1_000_000)}, zipfile.ZIP_DEFLATED)
    content = liar.read_bytes()
    honest, lie = (1_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    assert content.count(honest) == 2
    liar.write_bytes(content.replace(honest, lie))
    with pytest.raises(SourceError):
        extract_zip(liar, tmp_path / "work")
    assert all((tmp_path / "work" / name).stat().st_size <= 1000 for name in names_in(tmp_path / "work"))


def test_strays_in_a_zip_are_listed_and_not_unpacked(tmp_path):
    strays = {
        "14card types-14-(200 X 200)-94.61.h5": bytes(1000),
        "__MACOSX/train/joker/._001.jpg": b"x",
        "notes.txt": b"x",
    }
    data_set = find_source(write_zip(tmp_path / "cards.zip", FILES | strays), tmp_path / "work")
    assert data_set.strays == sorted(strays)
    assert names_in(data_set.root) == set(FILES)


UNPACK_SLOWLY = """
import sys, time
from card_classifier.data.source import extract_zip
def progress(done, total, what):
    if done == 50:
        print("half", flush=True)
        time.sleep(600)
extract_zip(sys.argv[1], sys.argv[2], progress)
"""


def test_unpacking_goes_on_after_kill(tmp_path):
    zip_file, folder = write_zip(tmp_path / "cards.zip", FILES), tmp_path / "work"
    process = subprocess.Popen(
        [sys.executable, "-c", UNPACK_SLOWLY, zip_file, folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert len(names_in(folder)) == 50
    done = {name: (folder / name).stat().st_mtime_ns for name in names_in(folder)}
    (folder / "train/ace of clubs/.001.jpg.0123abcd.draft").write_bytes(b"half")
    extract_zip(zip_file, folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert all((folder / name).stat().st_mtime_ns == when for name, when in done.items())
    assert scan_folder(folder).count("train") == len(CLASS_NAMES)


# ------------------------------------------------------------------------------------------- folders

def test_a_class_folder_of_another_name_is_an_error_that_knows_better(tmp_path):
    root = write_files(tmp_path / "raw", FILES)
    (root / "train" / "ace of clubs").rename(root / "train" / "ace of clovers")
    with pytest.raises(SourceError) as error:
        scan_folder(root)
    assert "train/ace of clovers" in one_line(error)
    assert "ace of clubs" in one_line(error)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_missing_and_an_empty_class_are_named(tmp_path, split):
    root = write_files(tmp_path / "raw", FILES)
    (root / split / "nine of hearts" / "001.jpg").unlink()
    with pytest.raises(SourceError) as error:
        scan_folder(root)
    assert f"{split}/ has no images of nine of hearts" in one_line(error)
    (root / split / "nine of hearts").rmdir()
    with pytest.raises(SourceError, match=f"{split}/ has no images of nine of hearts"):
        scan_folder(root)


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "raw" / "train").mkdir(parents=True)
    with pytest.raises(SourceError, match="no images in it"):
        scan_folder(tmp_path / "raw")
    with pytest.raises(SourceError, match="no `train` folder"):
        scan_folder(tmp_path / "raw" / "train")
    with pytest.raises(SourceError, match="no such folder"):
        scan_folder(tmp_path / "nowhere")


def test_csv_of_every_kind_is_reported_and_never_fatal(tmp_path):
    root = write_files(tmp_path / "raw", FILES)
    path = "train/joker/001.jpg"
    cases = {
        f"class index,filepaths,labels\n0,{path},ace of clubs\n": f"cards.csv labels '{path}' as 'ace of clubs'",
        "class index,filepaths,labels\n0,train/joker/999.jpg,joker\n":
            "cards.csv names 'train/joker/999.jpg', which does not exist",
        "": f"cards.csv does not name '{path}'",
        "one,two\n": f"cards.csv does not name '{path}'",
    }
    for text, problem in cases.items():
        (root / "cards.csv").write_text(text)
        found = scan_folder(root)
        assert any(line.startswith(problem) for line in found.csv_problems), problem
        assert len(found.images) == len(FILES)
    (root / "cards.csv").write_bytes(b"\xff\xfe\x00filepaths")
    assert "cannot be read" in scan_folder(root).csv_problems[0]


def test_a_file_name_that_is_no_text_is_a_stray(tmp_path):
    root = write_files(tmp_path / "raw", FILES)
    try:
        (root / "train" / "joker" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert scan_folder(root).strays == ["train/joker/\N{REPLACEMENT CHARACTER}.jpg"]


def test_an_image_that_vanishes_is_named(tmp_path):
    data_set = scan_folder(write_files(tmp_path / "raw", FILES))
    data_set.images[0].file.unlink()
    with pytest.raises(SourceError) as error:
        data_set.images[0].read()
    assert one_line(error).startswith(str(data_set.images[0].file))


@given(name=st.text(st.characters(blacklist_characters="/\x00", blacklist_categories=["Cs"]), min_size=1, max_size=20))
def test_any_folder_name_is_a_class_a_stray_or_a_clear_error(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("raw")
    if name in (".", "..") or len(name.encode()) > 255:
        return
    (root / "train" / name).mkdir(parents=True)
    with pytest.raises(SourceError) as error:  # never complete: there are 53 classes
        scan_folder(root)
    assert str(error.value)


# ------------------------------------------------------------------------------------------- finding

def test_the_variable_names_the_source(tmp_path, monkeypatch):
    root = write_files(tmp_path / "raw", FILES)
    monkeypatch.setenv("CARD_CLASSIFIER_DATA", str(root))
    assert find_source().root == root
    monkeypatch.setenv("CARD_CLASSIFIER_DATA", str(tmp_path / "gone.zip"))
    with pytest.raises(SourceError, match=r"gone.zip: no such file or folder \(CARD_CLASSIFIER_DATA says so\)"):
        find_source()


def test_without_a_network_kaggle_fails_in_one_line(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "CARD_CLASSIFIER_DATA"}
    environment |= {
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "no_proxy": "",
        "KAGGLEHUB_CACHE": str(tmp_path),
    }
    code = ("from card_classifier.data.layout import SourceError\nfrom card_classifier.data.source import find_source\n"
            "try: find_source()\nexcept SourceError as error: print(error)")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    message = done.stdout.strip().splitlines()[-1]
    assert message.startswith("Kaggle could not be reached (")
    assert "set CARD_CLASSIFIER_DATA" in message
    assert "make run" in message
    assert time.monotonic() - started < 60


def test_importing_the_data_modules_stays_light():
    code = (
        "import sys, card_classifier.data.cache, card_classifier.data.source, card_classifier.data.shards\n"
        "heavy = ('torch', 'fastai', 'fastcore', 'pandas', 'matplotlib', 'cv2', 'dvc', 'filelock')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
