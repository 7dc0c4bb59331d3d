"`card-classifier predict` where people really are: terminals, pipes, odd names and encodings, the web, films."

import csv
import http.server
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import colour_picture
from PIL import Image

from card_classifier.bundle import released_bundle

PREDICT = [sys.executable, "-m", "card_classifier.cli.start", "predict"]
EXAMPLES = released_bundle().parent / "demo" / "examples"


def predict(*arguments, folder=None, prefix=(), stdin=b"", **environment):
    "Runs `predict` in `folder` and waits for it."
    return subprocess.run(
        [*prefix, *PREDICT, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def odd(tmp_path):
    "A folder of photos that no other program would have named so."
    names = (b"photo [ace].jpg", b"a\x1b[31m.png", b"no ending", b"chat.jfif", b"\xff.png", "карта ♥.png".encode())
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            colour_picture(5, (64, 64)).save(file, "JPEG" if b"j" in name else "PNG")
    (folder / "._photo.jpg").write_bytes(b"\0\x05\x16\x07")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii:strict"])
def test_every_name_is_shown_whole_and_harmless_in_every_encoding(odd, tiny_bundle, encoding):
    result = predict(odd, "--bundle", tiny_bundle, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding.partition(":")[0])
    assert len(text.splitlines()) == 6
    for shown in ("photo [ace].jpg", r"a\x1b[31m.png", "no ending", "chat.jfif", r"\xff.png"):
        assert shown in text
    assert "\x1b" not in text and "not read" not in text
    assert ("карта ♥.png" if encoding == "utf-8" else r"\u043a\u0430") in text
    assert b"6 in " in result.stderr and b" a second" in result.stderr


def test_compiled_networks_are_kept_and_never_needed(tmp_path):
    photo = EXAMPLES / "three-cards.webp"

    def answer(cache: object) -> list[dict]:
        "The cards that `predict` names."
        result = predict(photo, "--json", CARD_CLASSIFIER_CACHE=str(cache))
        assert (result.returncode, result.stderr.count(b"\n")) == (0, 0), result.stderr
        return json.loads(result.stdout)["cards"]

    cache = tmp_path / "new" / "cache"
    fresh = answer(cache)
    kept = sorted(cache.iterdir())
    assert len(kept) == len(list(released_bundle().glob("*.onnx"))) and answer(cache) == fresh
    for number, file in enumerate(kept):  # Each broken in another way
        content = bytearray(file.read_bytes())
        if number:
            content[number * len(content) // 5] ^= 1
        file.write_bytes(content if number else b"")
    assert answer(cache) == fresh and sorted(cache.iterdir()) == kept and kept[0].stat().st_size > 0
    assert answer("") == answer("/proc/nowhere") == answer(kept[0]) == fresh


def test_json_and_csv_keep_every_name(odd, tiny_bundle):
    table = odd.parent / "cards.csv"
    result = predict(odd, "--json", "--csv", table, "--bundle", tiny_bundle, PYTHONIOENCODING="cp1252")
    named = [os.fsencode(json.loads(line)["file"]) for line in result.stdout.splitlines()]
    assert sorted(named) == sorted(
        os.path.join(os.fsencode(odd), name)
        for name in os.listdir(os.fsencode(odd))
        if not name.startswith((b"._", b"Thumbs", b"notes"))
    )
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert len(rows) == 6 and any("карта ♥.png" in row["file"] for row in rows)


@pytest.mark.parametrize(
    ("ending", "code", "words"), [("| head -1", 141, ""), ("> /dev/full", 2, "the output can't be written: no space")]
)
def test_an_output_that_ends_is_one_line_and_a_code(tmp_path, tiny_bundle, ending, code, words):
    for number in range(40):
        colour_picture(number, (32, 32)).save(tmp_path / f"{number}.png")
    command = f"'{sys.executable}' -m card_classifier.cli.start predict --json --top 53 --bundle '{tiny_bundle}'"
    shell = f"{command} '{tmp_path}' {ending} > /dev/null" if "|" in ending else f"{command} '{tmp_path}' {ending}"
    done = subprocess.run(
        ["bash", "-c", f"{shell}; exit ${{PIPESTATUS[0]}}"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == code
    assert words in done.stderr and done.stderr.count("\n") == bool(words), done.stderr


@pytest.mark.parametrize("moment", ["typer.core", "numpy._core", "openvino"])
def test_interrupted_in_its_first_moments_it_says_so_in_one_line(moment, tiny_bundle):
    command = [sys.executable, "-X", "importtime", *PREDICT[1:], str(EXAMPLES / "ace-of-spades.webp")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = []
        for line in process.stderr:
            told.append(line)
            if line.rstrip().endswith(f"| {moment}") or line.rstrip().endswith(f" {moment}"):
                process.send_signal(signal.SIGINT)
                break
        told += process.stderr.readlines()
    assert process.returncode == 130
    assert [line for line in told if not line.startswith("import time:")] == ["stopped\n"]


def test_a_folder_that_may_not_be_opened_is_a_failure(tmp_path, tiny_bundle):
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        colour_picture(1, (32, 32)).save(tmp_path / name / "1.png")
    prefix = ()
    if os.geteuid() == 0:  # Root may open anything, unless it gives that right away
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv to be as powerless as a user")
        prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    (tmp_path / "closed").chmod(0)
    try:
        result = predict(tmp_path, "--bundle", tiny_bundle, prefix=prefix)
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert result.returncode == 1
    assert "the folder can't be opened: permission denied" in result.stdout.decode()
    assert "1 of 2 could not be read" in result.stderr.decode()


def test_pictures_are_kept_and_originals_are_left_alone(tmp_path):
    shutil.copy(EXAMPLES / "three-cards.webp", tmp_path / "three.webp")
    Image.open(EXAMPLES / "three-cards.webp").save(tmp_path / "three.jpg")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wishes = ("--save", ".", "--crops", "cards", "--csv", "cards.csv")
    for _ in range(2):  # The second time what the first has made is replaced, and nothing else
        result = predict("three.*", *wishes, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        assert [line.split()[1:4] for line in result.stdout.decode().splitlines()] == [["Q♦", "A♥", "7♣"]] * 2
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    made = sorted(path.name for path in tmp_path.iterdir() if path.name not in before)
    assert made == ["cards", "cards.csv", "three-2-2.jpg", "three-2.jpg"]
    assert len(list((tmp_path / "cards").iterdir())) == 6
    seen, photo = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("three-2.jpg", "three.jpg"))
    assert seen.shape == photo.shape and 0.01 < (abs(seen - photo).max(axis=-1) > 60).mean() < 0.2


@pytest.fixture
def web(tmp_path):
    "The address of a server on this machine that offers a folder."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses_are_fetched_but_private_ones_only_when_asked(tmp_path, tiny_bundle, web):
    colour_picture(7, (64, 64)).save(tmp_path / "ace 1.png")
    names = (
        f"{web}/ace 1.png",
        f"{web}/none.png",
        "http://[",
        "https:/example.org/x.jpg",
        "https://me:secret@a.example/x",
    )
    refused = predict(*names, "--json", "--bundle", tiny_bundle)
    errors = [json.loads(line)["error"] for line in refused.stdout.splitlines()]
    assert refused.returncode == 5 and b"secret" not in refused.stdout
    for error, words in zip(
        errors, ("--allow-private", "--allow-private", "not a web address", "//", "with a password"), strict=True
    ):
        assert words in error
    fetched = predict(*names[:2], "--allow-private", "--json", "--bundle", tiny_bundle)
    good, missing = map(json.loads, fetched.stdout.splitlines())
    assert fetched.returncode == 1 and good["error"] is None and "answers 404" in missing["error"]


def in_terminal(columns: int, *arguments, folder: Path) -> str:
    "What `predict` prints where both of its outputs are a terminal of this width."
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(
        [*PREDICT, *map(str, arguments)], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        said = b""
        while select.select([ours], [], [], 200)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # The other end is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    return said.decode()


def test_a_narrow_terminal_has_short_lines_and_a_bar(tmp_path, tiny_bundle):
    for number in range(6):
        colour_picture(number, (32, 32)).save(tmp_path / f"{number}.png")
    said = in_terminal(36, ".", "--bundle", tiny_bundle, folder=tmp_path)
    assert "6/6" in said and "left" in said
    assert all(f"{number}.png: " in said for number in range(6))
    assert "6 in " in said and "│" not in said


def test_a_film_is_looked_at_and_each_card_counts_once(tmp_path):
    cv2 = pytest.importorskip("cv2")
    still = np.asarray(Image.open(EXAMPLES / "three-cards.webp").convert("RGB"))
    height, width = (side // 2 * 2 - 40 for side in still.shape[:2])
    film = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (width, height))
    for number in range(12):  # The camera moves
        part = still[number : number + height, 2 * number : 2 * number + width, ::-1]
        film.write(np.ascontiguousarray(part))
    film.release()
    result = predict("film.mp4", "--json", "--one-deck", "--save", "seen", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert sorted(card["card"] for card in answer["cards"]) == ["ace of hearts", "queen of diamonds", "seven of clubs"]
    assert {card["seen"] for card in answer["cards"]} <= {"card", "index"}, "as of a photo"
    assert answer["n_frames"] == 6 and (tmp_path / "seen" / "film.mp4").stat().st_size > 1000
    assert not result.stderr.replace(b"annotated pictures: seen\n", b"")


def test_a_camera_that_is_not_there_and_wishes_that_contradict(tmp_path, tiny_bundle):
    result = predict("91", "--bundle", tiny_bundle, folder=tmp_path)
    assert result.returncode == 1 and "there is no camera 91" in result.stdout.decode()
    for form in (("--json",), ("--csv", "-")):
        wrong = predict("photo.jpg", "--hand", *form)
        assert (wrong.returncode, wrong.stdout) == (2, b"") and b"both want standard output" in wrong.stderr
    wrong = predict("photo.jpg", "--sav", "x")
    assert wrong.returncode == 2 and wrong.stderr.count(b"\n") == 1 and b"predict --help" in wrong.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_what_other_programs_hand_over_is_read_and_written_through(tmp_path, tiny_bundle):
    one, folder = tmp_path / "my ace.png", tmp_path / "folder"
    folder.mkdir()
    colour_picture(1, (32, 32)).save(one)
    shutil.copy(one, folder)
    command = " ".join(f"'{word}'" for word in [*PREDICT, "--bundle", tiny_bundle, "--csv", "/dev/stdout"])
    handed = f"{command} <(cat '{one}') '{one.as_uri()}' '{folder.as_uri()}' > '{tmp_path}/all.txt'"
    done = subprocess.run(["bash", "-c", handed], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "all.txt").read_text().splitlines()
    names = ["/dev/fd/", str(one), str(folder / "my ace.png")]
    assert [line.startswith(name) for line, name in zip(lines, names, strict=False)] == [True] * 3
    table = list(csv.DictReader(lines[3:]))
    assert [row["error"] for row in table] == [""] * 3
    assert os.path.islink("/dev/stdout")


def test_names_that_were_meant_otherwise_are_told_what_was_meant(tmp_path, tiny_bundle):
    (tmp_path / "gone.jpg").symlink_to("elsewhere.jpg")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mov").write_bytes(b"\0\0\0\x14ftypqt  ")
    meant = {
        "": "is a variable in the command without a value",
        "www.example.org/ace.jpg?size=3": "write https://www.example.org/ace.jpg?size=3",
        "gone.jpg": "a link to 'elsewhere.jpg', and nothing is there",
        "/dev/null": "a device or pipe, not an image",
        "smb://nas/ace.jpg": "not smb",
        "file://nas/ace.jpg": "only http and https",
    }
    result = predict(*meant, "fil*", "--csv", "-", "--bundle", tiny_bundle, folder=tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout.decode())))
    assert result.returncode == len(meant) == len(rows), result.stderr
    for row, (name, words) in zip(rows, meant.items(), strict=True):
        assert row["file"] == name and words in row["error"]
    assert b"1 videos in these folders are left out" in result.stderr, "whoever fits a folder names no film in it"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--save", "ace.png"], "--save ace.png: that is a file; name a folder"),
        (["--crops", "ace.png/cards"], "--crops ace.png/cards: the folder can't be made: not a directory"),
        (["--save", "/proc/seen"], "--save /proc/seen: the folder can't be made"),
        (["--csv", "/proc/cards.csv"], "--csv /proc/cards.csv: nothing can be written to this folder"),
        (["--bundle", "."], ". is not a bundle: it has no bundle.json"),
        (["--bundle", "ace.png"], "ace.png is not a bundle: it has no bundle.json"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, not even root's")
def test_what_can_not_be_kept_is_said_before_anything_is_looked_at(tmp_path, arguments, words):
    colour_picture(1, (32, 32)).save(tmp_path / "ace.png")
    result = predict("ace.png", *arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode().startswith(f"error: {words}") and result.stderr.count(b"\n") == 1


def test_version_help_and_completion():
    command = [sys.executable, "-m", "card_classifier.cli.start"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.count(".") == 2
    assert "--crops" in predict("-h").stdout.decode()
    completed = subprocess.run(
        [str(Path(sys.executable).with_name("card-classifier"))],
        env=os.environ
        | {"_CARD_CLASSIFIER_COMPLETE": "complete_bash", "COMP_WORDS": "card-classifier pre", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.split() == ["predict"]
