"Drift as an operator meets it: a real service, real databases, bundles and records of every age."

import dataclasses
import io
import json
import re
import shutil
import sqlite3
import string
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from test_api import numbers, serving, wait_for
from test_records import new_database, postgres  # noqa: F401 (a fixture)
from conftest import COLOURS
from typer.testing import CliRunner

from card_classifier.bundle import BUNDLE_FILE, BundleError, add_reference, read_bundle, released_bundle, write_bundle
from card_classifier.cards import CLASS_NAMES, NO_CARD
from card_classifier.cli.drift import answered_rows
from card_classifier.cli.main import app
from card_classifier.cloud.deploy import job_path
from card_classifier.lifecycle.photographs import TrueCard, TruePhoto
from card_classifier.lifecycle.storage import copy_files
from card_classifier.recognition.predictor import Predictor
from card_classifier.records.database import make_engine, migrate
from card_classifier.records.schema import STATISTICS, WHOLE_PHOTO, Record, feedback, pack_logits
from card_classifier.records.statements import write_records
from card_classifier.settings import DeploySettings
from card_classifier.watching.drift import check_drift, drift_report
from card_classifier.watching.reference import NoReferenceError, keep_reference, read_reference
from card_classifier.watching.window import MAX_PICTURES, Picture, Window, WindowRequest, read_window

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def coloured(number, shade=1.0):
    "A picture of the tiny bundle's card `number % 53` with grain of its own, as a file."
    generator = np.random.default_rng(number)
    pixels = COLOURS[number % 53] * 0.9 + 12 + generator.normal(0, 6, (48, 64, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels * shade, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def watched_bundle(tiny_bundle, tmp_path):
    "The tiny bundle with a reference of 160 pictures."
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    photos = [TruePhoto(str(number), coloured(number), (TrueCard(number % 53),)) for number in range(160)]
    rows = answered_rows(Predictor(bundle), photos, lambda *_: None, "answers")
    keep_reference(bundle, np.stack(rows), 20, {"coloured": len(rows)})
    return bundle


def record(number, row=None, **changes):
    "A record like those of the released bundle's service."
    values = {
        "request_id": uuid.UUID(int=number * 0x9E3779B97F4A7C15 << 64 & (1 << 128) - 1 | number).hex,
        "index": 0,
        "time": NOON + timedelta(minutes=number),
        "model_version": read_bundle(released_bundle()).model_version,
        "sha256": f"{number:064x}",
        "n_bytes": 1,
        "file_format": "JPEG",
        "width": 224 if row is None or not row["is_photo"] else 640,
        "height": 224,
        "statistics": dict.fromkeys(STATISTICS, 0.5)
        if row is None
        else dict(zip(STATISTICS, row["statistics"].tolist(), strict=True)),
        "logits": pack_logits(np.zeros(53) if row is None else row["logits"]),
        "top": [{"card": "joker", "probability": 0.9}]
        if row is None
        else [{"card": CLASS_NAMES[row["card"]], "probability": float(row["probability"])}],
        "is_rejected": False if row is None else bool(row["is_rejected"]),
        "rejection_reason": None,
        "milliseconds": {},
    }
    return Record(**values | changes)


def keep(url, records):
    "Writes records into a database, which is made."
    with make_engine(url).connect() as connection:
        migrate(connection)
        assert all(write_records(connection, records))


@pytest.fixture(scope="module")
def reference():
    "The released bundle's."
    return read_reference(released_bundle(), read_bundle(released_bundle()))


def sampled(reference, n, seed=0):
    "Rows of the reference, at random."
    return reference.rows[np.random.default_rng(seed).permutation(len(reference.rows))[:n]]


def test_a_service_tells_its_drift(watched_bundle, tmp_path):
    database = f"sqlite:///{tmp_path / 'records.sqlite'}"
    options = ("--no-demo", "--drift-minutes", "0.01")
    with serving(tmp_path / "service", watched_bundle, *options, database=database) as (address, _, _):

        def send(first, n, shade=1.0):
            "Request ids of pictures that were answered and recorded."
            sent = []
            for start in range(first, first + n, 20):
                files = [("files", (f"{number}.png", coloured(number, shade))) for number in range(start, start + 20)]
                answer = httpx.post(f"{address}/v1/predict?record=wait", files=files, timeout=60).json()
                assert answer["recorded"] == "written"
                sent.append(answer["request_id"])
            return sent

        def gauge(name):
            return numbers(address).get(f"card_classifier_{name}")

        send(1000, 20)
        told = httpx.get(f"{address}/v1/drift?last=100", timeout=60).json()
        assert (told["verdict"], told["pictures"], told["tests"]) == ("too few to tell", 20, [])
        send(1020, 40)
        told = httpx.get(f"{address}/v1/drift?last=60", timeout=60).json()
        assert (told["verdict"], told["pictures"], told["left_out"]) == ("no drift", 60, {})
        wait_for(lambda: gauge("drift_pictures") == 60)
        assert gauge("drift") == 0
        before = datetime.now(UTC)
        dark = send(2000, 60, shade=0.6)
        told = httpx.get(f"{address}/v1/drift?last=59", timeout=60).json()
        brightness = next(test for test in told["tests"] if test["name"] == "brightness")
        assert told["verdict"] == "drift" and brightness["has_moved"]
        assert brightness["window"] < brightness["reference"]
        assert {one["request_id"] for one in brightness["examples"]} <= set(dark)
        assert datetime.fromisoformat(brightness["since"]) >= before - timedelta(seconds=1)
        wait_for(lambda: gauge("drift") == 1)
        wait_for(lambda: any(value for name, value in numbers(address).items() if "_drift_moved{" in name))
        assert time.time() - gauge("drift_checked_timestamp_seconds") < 60

        file = watched_bundle / BUNDLE_FILE
        described = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({key: value for key, value in described.items() if key != "reference"}))
        without = httpx.get(f"{address}/v1/drift?last=58", timeout=60)
        assert (without.status_code, without.json()["type"].rpartition(":")[2]) == (404, "no-reference")
        assert "card-classifier drift reference" in without.json()["detail"]


def test_a_bundle_keeps_its_reference_with_its_networks(watched_bundle, tmp_path):
    info = read_bundle(watched_bundle)
    copy_files(watched_bundle, tmp_path / "copy")
    assert read_bundle(tmp_path / "copy") == info
    networks = {"classifier": watched_bundle / info.classifier.file}
    rebuilt = write_bundle(tmp_path / "rebuilt", info, networks)  # Perhaps with other networks: it needs its own
    assert read_bundle(rebuilt).reference == {}
    with pytest.raises(NoReferenceError, match="card-classifier drift reference --bundle"):
        read_reference(rebuilt, read_bundle(rebuilt))


def test_a_reference_that_is_not_what_it_was_is_refused(watched_bundle):
    info = read_bundle(watched_bundle)
    file = watched_bundle / info.reference["file"]
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"is not the file that bundle\.json describes"):
        read_bundle(watched_bundle)
    file.write_bytes(content)
    for bad in (b"", b"\x80\x04N.", content[: len(content) // 2], np.zeros(3).tobytes()):
        with pytest.raises(NoReferenceError, match="make one with"):
            read_reference(watched_bundle, add_reference(watched_bundle, bad, model_version=info.model_version))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"harm": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(NoReferenceError, match="not a table of numbers"):
        read_reference(
            watched_bundle, add_reference(watched_bundle, pickled.getvalue(), model_version=info.model_version)
        )
    other = dataclasses.replace(info, reference={**info.reference, "model_version": "0" * 12})
    with pytest.raises(NoReferenceError, match="is of the model 000000000000"):
        read_reference(watched_bundle, other)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_window_of_each_database(kind, request, tmp_path, reference):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    if kind == "postgresql":
        url = new_database(request.getfixturevalue("postgres"))
    rows = sampled(reference, 80)
    keep(url, [record(number, row) for number, row in enumerate(rows)])
    asked = WindowRequest(since=NOON + timedelta(minutes=10), until=NOON + timedelta(minutes=70))
    window = read_window(url, asked, reference.model_version, reference.small_side)
    assert [picture.time for picture in window.pictures] == [NOON + timedelta(minutes=at) for at in range(10, 70)]
    assert np.array_equal(window.rows["logits"], rows["logits"][10:70])
    assert np.array_equal(window.rows["is_photo"], rows["is_photo"][10:70])
    assert check_drift(url, released_bundle(), WindowRequest()).verdict == "no drift"


def test_records_of_older_versions_lack_what_they_lack(tmp_path, reference):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    old = [
        record(number, row, logits=b"", top=[], statistics={"brightness": float(row["statistics"][0]), "hue": None})
        for number, row in enumerate(sampled(reference, 60))
    ]
    keep(url, old)
    report = check_drift(url, released_bundle(), WindowRequest())
    assert [test.name for test in report.tests] == ["brightness", "rejection"]
    assert (report.verdict, report.tests[0].pictures) == ("no drift", 60)
    keep(url, [record(100 + number, row) for number, row in enumerate(sampled(reference, 60, seed=1))])
    mixed = check_drift(url, released_bundle(), WindowRequest())
    assert {test.name: test.pictures for test in mixed.tests}["logits"] == 60
    assert (mixed.pictures, mixed.verdict) == (120, "no drift")


def test_what_people_said_becomes_an_accuracy_with_its_interval(tmp_path, reference):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    rows = [row for row in sampled(reference, 200) if not row["is_rejected"]][:60]
    made = [record(number, row) for number, row in enumerate(rows)]
    keep(url, made)
    said = [
        {"request_id": one.request_id, "index": 0, "number": number, "card": card, "time": NOON}
        for at, one in enumerate(made[:30])
        for number, card in ((WHOLE_PHOTO, "joker"), (0, one.top[0]["card"] if at < 24 else NO_CARD), (1, "joker"))
    ]
    with make_engine(url).connect() as connection, connection.begin():
        connection.execute(sa.insert(feedback), said)
    accuracy = check_drift(url, released_bundle(), WindowRequest()).accuracy
    assert (accuracy["n"], accuracy["n_correct"]) == (30, 24)
    assert accuracy["accuracy_low"] < 0.8 < accuracy["accuracy_high"]


def test_clocks_that_jump_and_pictures_that_are_sent_again(tmp_path, reference):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    rows = sampled(reference, 70)
    made = [record(number, row) for number, row in enumerate(rows)]
    made[40:50] = [dataclasses.replace(one, time=one.time - timedelta(days=400)) for one in made[40:50]]
    made[60:] = [dataclasses.replace(one, time=datetime.now(UTC) + timedelta(days=400)) for one in made[60:]]
    repeats = [record(1000 + number, rows[3], sha256=made[3].sha256) for number in range(500)]
    keep(url, made + repeats)
    report = check_drift(url, released_bundle(), WindowRequest(last=MAX_PICTURES))
    assert (report.pictures, report.verdict) == (60, "no drift")
    assert sorted(report.left_out.values()) == [10, 500]
    assert report.first == made[40].time and report.last < datetime.now(UTC)


def test_very_many_records_cost_no_more_than_many(tmp_path, reference):
    url, file = f"sqlite:///{tmp_path / 'records.sqlite'}", tmp_path / "records.sqlite"
    keep(url, [record(0, reference.rows[0])])
    with sqlite3.connect(file) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(predictions)")]
        changed = {
            "request_id": "lower(hex(randomblob(16)))",
            "time": "strftime('%Y-%m-%d %H:%M:%f000', '2026-11-02', '+' || n || ' seconds')",
            "sha256": "printf('%064x', n + 1)",
        }
        columns = ", ".join(f'{changed.get(name, f"predictions.{chr(34)}{name}{chr(34)}")}' for name in names)
        connection.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 99999) "
            f"INSERT INTO predictions SELECT {columns} FROM numbers, predictions LIMIT 100000"
        )
    asked = WindowRequest(since=NOON, now=datetime(2026, 12, 1, tzinfo=UTC))
    window = read_window(url, asked, reference.model_version, reference.small_side)
    assert window.n_recorded == 100_001
    assert MAX_PICTURES * 0.9 < len(window.rows) <= MAX_PICTURES
    assert window.left_out == {"not read: a random part is enough": 100_001 - len(window.rows)}
    times = np.array([picture.time.timestamp() for picture in window.pictures])
    assert (np.diff(times) >= 0).all()
    middle = NOON + timedelta(hours=12, seconds=50_000)
    assert abs(np.median(times) - middle.timestamp()) < 5_000  # From all of the time, not from one end


def test_nobody_is_alarmed_by_a_picture_or_a_mix(reference):
    def verdict(rows):
        pictures = tuple(Picture(f"{at:032x}", 0, NOON + timedelta(minutes=at)) for at in range(len(rows)))
        return drift_report(Window(rows, pictures, len(rows)), reference).verdict

    odd = reference.rows[:1].copy()
    odd["statistics"] *= 5
    assert verdict(odd) == "too few to tell"
    photos, images = reference.rows[reference.rows["is_photo"]], reference.rows[~reference.rows["is_photo"]]
    generator = np.random.default_rng(5)
    for n_photos in (0, 10, 50, 90, 100):
        chosen = [generator.permutation(len(some))[:n] for some, n in ((photos, n_photos), (images, 100 - n_photos))]
        assert verdict(np.concatenate([photos[chosen[0]], images[chosen[1]]])) == "no drift"


def test_the_recipe_leaves_a_page_and_an_exit_code(tmp_path, reference):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    dark = sampled(reference, 80).copy()
    dark["statistics"][:, 0] *= 0.5
    keep(url, [record(number, row) for number, row in enumerate(dark)])
    result = CliRunner().invoke(app, ["drift", "recipe", "--database", url, "--to", str(tmp_path / "checks")])
    assert result.exit_code == 1, result.output
    (folder,) = (tmp_path / "checks").iterdir()
    assert {file.name for file in folder.iterdir()} == {"drift.html", "drift.ipynb", "report.json"}
    assert json.loads((folder / "report.json").read_text())["verdict"] == "drift"
    assert "Most deviating pictures" in (folder / "drift.html").read_text()


def test_too_few_pictures_are_a_code_of_their_own_or_no_failure(tmp_path, reference):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    keep(url, [record(number, row) for number, row in enumerate(sampled(reference, 10))])
    enough = ("--few-ok", "--since", "2026-11-01", "--min-pictures", "10")
    for words, code in (((), 3), (("--few-ok",), 0), (enough, 0)):
        done = CliRunner().invoke(app, ["drift", "--database", url, *words])
        assert done.exit_code == code, done.output
    assert "no drift in 10 pictures" in done.stdout
    keep(url, [record(100 + number, row, **{"statistics": {"brightness": 0.01}}) for number, row in
               enumerate(sampled(reference, 60, seed=1))])  # fmt: skip
    assert CliRunner().invoke(app, ["drift", "--database", url, "--few-ok"]).exit_code == 1, "drift is one all the same"


DRIFT_FILES = Path(__file__).resolve().parent.parent / "deploy" / "drift"


@pytest.mark.parametrize("name", ["crontab", "card-classifier-drift.service", "recipe.conf"])
def test_scheduled_commands_are_ones_that_there_are(name):
    text = (DRIFT_FILES / name).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    commands = [found[0].split() for line in lines for found in re.finditer(r"card-classifier drift [^>;]*", line)]
    assert commands
    for _, *arguments in commands:
        known = CliRunner().invoke(app, [*arguments, "--help"])
        assert known.exit_code == 0, known.output
    assert "CARD_CLASSIFIER_DATABASE" in text


def test_schedules_are_what_their_schedulers_take():
    schedule = json.loads((DRIFT_FILES / "scheduler.json").read_text())
    settings = DeploySettings(project="my-cards-1")
    names = {"PROJECT": settings.project, "REGION": settings.region}
    address = string.Template(schedule["httpTarget"]["uri"]).substitute(names)
    assert address == f"https://run.googleapis.com/{job_path(settings, 'drift')}:run"
    terraform = (DRIFT_FILES.parent / "cloud" / "infrastructure" / "schedules.tf").read_text()
    assert re.search(r'drift += "([^"]+)"', terraform)[1] == schedule["schedule"]
    cron = next(line for line in (DRIFT_FILES / "crontab").read_text().splitlines() if line[0].isdigit())
    assert cron.split()[:5] == schedule["schedule"].split()
    if shutil.which("systemd-analyze"):
        units = [str(DRIFT_FILES / f"card-classifier-drift.{kind}") for kind in ("service", "timer")]
        checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
        assert "card-classifier-drift" not in checked.stderr, checked.stderr
