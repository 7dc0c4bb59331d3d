"Records in real databases that are killed, filled, locked, stopped and started again."

import asyncio
import csv
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import PASSWORD, Postgres, postgres_programs, running_postgres
from record_victims import make_record

from card_classifier.cards import CLASS_NAMES, NO_CARD
from card_classifier.records import database
from card_classifier.records import export as export_module
from card_classifier.records import queue as queue_module
from card_classifier.records import retention as retention_module
from card_classifier.records import writer as writer_module
from card_classifier.records.database import MIGRATIONS, database_url, make_engine, migrate, schema_of, set_sync
from card_classifier.records.export import EXPORT_COLUMNS, count_records, export_records, opened
from card_classifier.records.retention import apply_retention
from card_classifier.records.schema import (
    NewerSchemaError,
    Record,
    RecordsAwayError,
    RecordsError,
    UnknownRequestError,
    UtcTime,
    feedback,
    image_statistics,
    images,
    metadata,
    pack_logits,
    predictions,
    unpack_logits,
)
from card_classifier.records.statements import write_records
from card_classifier.records.writer import Records

ROOT = Path(__file__).resolve().parent.parent
EACH = ("sqlite", "postgresql")
not_on_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no fork, no SIGINT for others, and no renaming of open files"
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    "One PostgreSQL server for all tests; whoever stops it starts it again."
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install --no-install-recommends postgresql")
    with running_postgres(programs) as server:
        yield server


def new_database(server: Postgres) -> str:
    "The URL of an empty database."
    name = f"cards_{uuid.uuid4().hex}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url(name)


@pytest.fixture(params=EACH)
def url(request, tmp_path) -> str:
    "An empty database of each kind."
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.sqlite'}"
    return new_database(request.getfixturevalue("postgres"))


def rows(url: str, table: sa.Table) -> list[dict]:
    "All that a table holds."
    with opened(url, is_reader=True) as connection, connection.begin():
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def ids(url: str) -> set[str]:
    "The request ids that were recorded."
    return {row["request_id"] for row in rows(url, predictions)}


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    "Waits for something that happens in another thread; a busy machine takes its time."
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def run_python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    "Runs a line of Python in a process of its own."
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120, **options
    )


# What is kept


def test_what_went_in_comes_out(url):
    where = timezone(timedelta(hours=9))
    one = make_record(
        time=datetime(2026, 11, 1, 3, 4, 5, 678901, tzinfo=where),
        is_rejected=True,
        rejection_reason="nichts zu sehen ♠",
        image=b"\0\1\2 the file",
    )
    two = make_record(request_id=one.request_id, index=1, top=[], statistics={})
    with Records(url, keep_images=True) as records:
        assert records.add(one)
        assert records.add_and_wait(two).result(30)
        records.feedback(one.request_id, 1, "ace of spades")
    [first, second] = sorted(rows(url, predictions), key=lambda row: row["index"])
    kept = {name: value for name, value in vars(one).items() if name != "image"}
    assert first == kept | {"card": "joker", "probability": 0.75}
    assert first["time"].utcoffset() == timedelta(0)
    assert (second["card"], second["probability"], second["statistics"]) == (None, None, {})
    assert [row["content"] for row in rows(url, images)] == [b"\0\1\2 the file"]
    assert [(row["index"], row["card"]) for row in rows(url, feedback)] == [(1, "ace of spades")]


def test_images_are_kept_only_when_asked_for(url):
    with Records(url) as records:
        assert records.add_and_wait(make_record(image=b"private")).result(30)
    assert count_records(url).images == 0


def test_memory_for_images_is_bounded(url, monkeypatch):
    monkeypatch.setattr(queue_module, "WAITING_BYTES", 1000)
    with Records(url, keep_images=True) as records, held(url):
        assert [records.add(make_record(image=bytes(400))) for _ in range(5)] == [True] * 5
        assert records.counts().images_lost == 3
    assert (count_records(url).records, count_records(url).images) == (5, 2)


@settings(max_examples=60)
@given(st.integers(3, 300), st.integers(3, 300), st.integers(0, 255))
def test_statistics_of_any_shape(height, width, level):
    flat = np.full((height, width, 3), level, np.uint8)
    expected = {"brightness": level / 255, "contrast": 0, "saturation": 0, "sharpness": 0, "noise": 0}
    assert image_statistics(flat) == pytest.approx(expected, abs=1e-4)


def test_statistics_tell_what_changed():
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    before = image_statistics(image)
    assert image_statistics(image // 2)["brightness"] < before["brightness"] * 0.55
    assert image_statistics(image // 4 + 96)["contrast"] < before["contrast"] * 0.3
    assert image_statistics(image.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8))["saturation"] == 0
    smooth = (image[:-1].astype(int) + image[1:]) // 2
    assert image_statistics(smooth.astype(np.uint8))["sharpness"] < before["sharpness"]
    calm = np.clip(np.random.default_rng(1).normal(128, 5, (224, 224, 3)), 0, 255).astype(np.uint8)
    assert image_statistics(calm)["noise"] * 255 == pytest.approx(5, rel=0.15)
    edges = calm.copy()
    edges[::8] = 0
    assert image_statistics(edges)["noise"] * 255 < 10


@given(st.lists(st.floats(width=32), max_size=60))
def test_logits_survive_or_saturate(values):
    found = unpack_logits(pack_logits(np.array(values, np.float32)))
    assert len(found) == len(values)
    with np.errstate(over="ignore"):
        expected = np.clip(np.array(values, np.float32), -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


# Where it is kept

secrets = st.text(st.sampled_from("abcXYZ019-_.~"), min_size=8, max_size=20).map(lambda text: f"hush{text}")
addresses = st.sampled_from(["", "localhost", "127.0.0.1:1", "127.0.0.1:port", "[::1]:1", "a b", "::", "@", "/tmp"])
tails = st.sampled_from(
    [
        "",
        "/",
        "/cards",
        "/cards?sslmode=disable",
        "/cards?sslmood=1",
        "/cards?connect_timeout=soon",
        "//x",
        "?",
        "#",
        "/%zz",
    ]
)
schemes = st.sampled_from(
    [
        "postgresql://",
        "postgres://",
        "postgresql+psycopg://",
        "postgresql+asyncpg://",
        "mysql://",
        "sqlite://",
        "sqlite:///",
        "://",
        "",
        "postgresql:",
    ]
)


@given(schemes, secrets, addresses, tails)
def test_no_password_is_ever_repeated(scheme, secret, address, tail):
    url = f"{scheme}anna:{secret}@{address}{tail}"
    try:
        made = make_engine(url)
    except RecordsError as error:
        assert secret not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None
    else:
        assert made.url.get_backend_name() in EACH


def test_a_wrong_password_is_named_but_not_repeated(postgres, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(RecordsError, match="denied") as caught:
        count_records(postgres.url(password="wrong-hush"))
    records = Records(postgres.url(password="wrong-hush"))
    assert records.counts().last_error == "denied"
    assert not records.counts().is_connected
    with pytest.raises(RecordsAwayError, match="denied") as away:
        records.feedback("0" * 32, 0, "joker")
    assert records.close(0.1) == 0
    assert "denied" in caplog.text
    for text in (caplog.text, str(caught.value), str(away.value), repr(records.counts())):
        assert "wrong-hush" not in text
        assert PASSWORD not in text


@pytest.mark.parametrize(
    "address",
    [
        "records.sqlite",
        "sqlite://records.sqlite",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://a:b@c/d",
        "postgresql://a:b@c:d/e",
        "postgresql://a:b@c/d?sslmood=1",
        "",
    ],
)
def test_a_url_that_can_never_work_is_refused(address):
    with pytest.raises(RecordsError, match="write sqlite:///FILE"):
        Records(address)


def test_the_folder_of_a_file_is_made(tmp_path):
    with Records(f"sqlite:///{tmp_path / 'var' / 'lib' / 'records.sqlite'}") as records:
        assert records.add_and_wait(make_record()).result(30)
    assert count_records(f"sqlite:///{tmp_path / 'var' / 'lib' / 'records.sqlite'}").records == 1


# Migrations


def test_revisions_build_what_the_tables_say(url):
    with make_engine(url).connect() as connection:
        migrate(connection)
        with connection.begin():
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrate(connection, "base")
        with connection.begin():
            assert sa.inspect(connection).get_table_names() == ["alembic_version"]
        migrate(connection)


LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"

def upgrade():
    with op.batch_alter_table("predictions") as table:
        table.add_column(sa.Column("camera", sa.Text, nullable=False, server_default="unknown"))

def downgrade():
    with op.batch_alter_table("predictions") as table:
        table.drop_column("camera")
"""


def test_a_later_revision_keeps_what_is_there(url, monkeypatch, tmp_path):
    with Records(url) as records:
        old = make_record()
        assert records.add_and_wait(old).result(30)
        records.feedback(old.request_id, 0, "joker")
    later = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, later, ignore=shutil.ignore_patterns("__pycache__"))
    (later / "v0003_camera.py").write_text(LATER, encoding="utf-8")
    with monkeypatch.context() as release:
        release.setattr(database, "MIGRATIONS", later)
        for module in (database, export_module):
            release.setattr(module, "SCHEMA", "0003")
        assert count_records(url).records == 1  # reading brings it up to date too
        with Records(url) as records:
            assert records.add_and_wait(make_record()).result(30)
        with opened(url) as connection, connection.begin():
            assert schema_of(connection) == "0003"
            assert connection.exec_driver_sql("SELECT camera FROM predictions").scalars().all() == [
                "unknown",
                "unknown",
            ]
        stored = count_records(url)
        assert (stored.records, stored.feedback) == (2, 1)
    with pytest.raises(NewerSchemaError, match=r"schema 0003, this release knows up to 0002: update card_classifier"):
        Records(url)
    with pytest.raises(NewerSchemaError, match="0003"):
        count_records(url)
    with monkeypatch.context() as release:
        release.setattr(database, "MIGRATIONS", later)
        with make_engine(url).connect() as connection:
            migrate(connection, "0002")
    assert (count_records(url).records, count_records(url).feedback) == (2, 1)


def test_feedback_of_the_first_release_is_about_the_photo(url):
    with Records(url) as records:
        one = make_record()
        assert records.add_and_wait(one).result(30)
    with make_engine(url).connect() as connection:
        migrate(connection, "0001")
        with connection.begin():
            old = sa.table("feedback", *(sa.column(name) for name in ("request_id", "index", "card", "time")))
            values = {"request_id": one.request_id, "index": 0, "card": "joker", "time": one.time}
            connection.execute(sa.insert(old).values(values | {"time": sa.bindparam("time", one.time, UtcTime)}))
    with Records(url) as records:
        records.feedback(one.request_id, 0, "two of hearts", number=1)
        records.feedback(one.request_id, 0, "ace of spades", number=1)
        records.feedback(one.request_id, 0, "king of clubs", number=7, corners=[[0, 0], [1, 0], [1, 1], [0, 1]])
    found = {row["number"]: (row["card"], bool(row["corners"])) for row in rows(url, feedback)}
    assert found == {-1: ("joker", False), 1: ("ace of spades", False), 7: ("king of clubs", True)}
    assert count_records(url).feedback == 1, "photos with feedback are counted"
    with make_engine(url).connect() as connection:
        migrate(connection, "0001")
        with connection.begin():
            kept = sa.select(sa.column("card")).select_from(sa.table("feedback"))
            assert connection.execute(kept).scalars().all() == ["joker"]


STARTER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from record_victims import make_record
from card_classifier.records.writer import Records
print("ready", flush=True)
sys.stdin.readline()
records = Records(sys.argv[1])
print(records.add_and_wait(make_record()).result(60), records.close(60), records.counts().lost)
"""


def test_many_processes_start_on_an_empty_database_at_once(url):
    command = [sys.executable, "-c", STARTER, url, str(ROOT / "tests")]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    for one in started:
        assert one.stdout.readline() == "ready\n", one.communicate()
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in started:
        answer, errors = one.communicate(timeout=120)
        assert answer.split() == ["True", "0", "0"], errors
    assert count_records(url).records == 5


def test_an_installed_wheel_can_make_its_tables(tmp_path):
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run(
        [
            uv,
            "build",
            "--wheel",
            "--quiet",
            "--no-build-isolation",
            "--python",
            sys.executable,
            "--out-dir",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = "\n".join(
        (
            "import sys",
            "from card_classifier.records import export, writer",
            "writer.Records(sys.argv[1]).close()",
            "print(writer.__file__, export.count_records(sys.argv[1]).records)",
        )
    )
    done = run_python(
        code,
        f"sqlite:///{tmp_path / 'records.sqlite'}",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
    )
    assert done.stdout.split() == [str(tmp_path / "installed" / "card_classifier" / "records" / "writer.py"), "0"], (
        done.stderr
    )


def test_starting_is_cheap_once_the_tables_are_there(tmp_path):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    Records(url).close()
    code = (
        "import sys; from card_classifier.records.writer import Records; "
        "Records(sys.argv[1]).close(); print(*sys.modules)"
    )
    loaded = set(run_python(code, url).stdout.split())
    assert "sqlalchemy" in loaded
    assert not loaded & {
        "alembic",
        "psycopg",
        "pyarrow",
        "pandas",
        "torch",
        "fastcore",
        "gradio",
        "fastapi",
        "openvino",
        "onnxruntime",
    }


# What was acknowledged


def kill_often(url: str, rounds: int) -> None:
    "Kills two processes a round and looks for what they had been promised."
    command = [sys.executable, str(ROOT / "tests" / "record_victims.py"), url, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    promised = json.loads(done.stdout)
    assert promised["killed"] == 2 * rounds
    assert len(promised["records"]) >= 2 * rounds
    assert set(promised["records"]) <= ids(url)
    assert set(promised["feedback"]) <= {row["request_id"] for row in rows(url, feedback)}


@not_on_windows
def test_what_was_acknowledged_survives_a_hundred_kills(tmp_path):
    path = tmp_path / "records.sqlite"
    kill_often(f"sqlite:///{path}", rounds=50)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@not_on_windows
def test_what_was_acknowledged_survives_kills_with_a_server(postgres):
    kill_often(new_database(postgres), rounds=5)


def test_what_was_acknowledged_survives_a_crash_of_the_server(postgres):
    url = new_database(postgres)
    with Records(url) as records:
        for _ in range(3):
            promised = [make_record() for _ in range(20)]
            futures = [records.add_and_wait(one) for one in promised]
            assert all(future.result(30) for future in futures)
            try:
                postgres.stop("immediate")
                lost_in_between = [records.add_and_wait(make_record()) for _ in range(5)]
            finally:
                postgres.start()
            assert all(future.result(60) for future in lost_in_between)
            assert {one.request_id for one in promised} <= ids(url)
    assert (records.counts().written, records.counts().lost) == (75, 0)


# Trouble


@contextmanager
def held(url: str) -> Iterator[None]:
    "Somebody else keeps everybody from writing."
    if url.startswith("sqlite"):
        other = sqlite3.connect(database_url(url).database, isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()
    else:
        engine = make_engine(url)
        with engine.connect() as connection, connection.begin() as transaction:
            connection.exec_driver_sql("LOCK TABLE predictions, feedback IN ACCESS EXCLUSIVE MODE")
            yield
            transaction.rollback()


def test_a_slow_database_slows_nothing_else(url, monkeypatch):
    monkeypatch.setattr(writer_module, "SLOW_SECONDS", 0.2)
    with Records(url, max_waiting=100, flush_seconds=0.01) as records:
        with held(url):
            start = time.perf_counter()
            taken = [records.add(make_record()) for _ in range(150)]
            promise = records.add_and_wait(make_record())
            assert time.perf_counter() - start < 4  # of which the database had none
            assert (sum(taken), promise.result(0)) == (100, False)
            wait_until(lambda: records.counts().last_error == "slow")
            assert not records.counts().is_connected
            with pytest.raises(RecordsAwayError, match=r"slow: the feedback may or may not have been stored"):
                records.feedback("0" * 32, 0, "joker", timeout=0.1)
            assert (records.counts().waiting, records.counts().lost) == (100, 51)
        wait_until(lambda: records.counts().written == 100)
        assert (records.counts().last_error, records.counts().waiting) == (None, 0)


def test_closing_waits_no_longer_than_it_may(url):
    records = Records(url, flush_seconds=0.01)
    with held(url):
        promise = records.add_and_wait(make_record())
        assert records.add(make_record())
        start = time.monotonic()
        assert records.close(0.5) == 2
        assert time.monotonic() - start < 5
        assert promise.result(0) is False
    assert not records.add(make_record())
    assert records.add_and_wait(make_record()).result(0) is False
    with pytest.raises(RecordsAwayError):
        records.feedback("0" * 32, 0, "joker", timeout=1)
    assert (records.counts().lost, records.close()) == (4, 0)


def test_an_sqlite_lock_that_outlasts_patience(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    monkeypatch.setitem(database.SQLITE_SETTINGS, "busy_timeout", 20)
    with Records(url) as records:
        with held(url):
            promise = records.add_and_wait(make_record())
            wait_until(lambda: records.counts().last_error == "locked")
            with pytest.raises(RecordsAwayError, match="locked"):
                records.feedback("0" * 32, 0, "joker")
        assert promise.result(30)
        assert records.counts().is_connected


def test_a_server_that_stops_and_starts_again(postgres, caplog):
    caplog.set_level(logging.INFO)
    url = new_database(postgres)
    before, during, after = (make_record() for _ in range(3))
    with Records(url, max_waiting=10) as records:
        assert records.add_and_wait(before).result(30)
        try:
            postgres.stop()
            promise = records.add_and_wait(during)
            wait_until(lambda: not records.counts().is_connected)
            assert [records.add(make_record()) for _ in range(12)] == [True] * 9 + [False] * 3
            start = time.monotonic()
            with pytest.raises(RecordsAwayError, match="at the moment"):
                records.feedback(before.request_id, 0, "joker")
            assert time.monotonic() - start < 4
            wait_until(lambda: records.counts().last_error == "refused")
            assert records.counts().waiting == 10
        finally:
            postgres.start()
        assert promise.result(30)
        wait_until(lambda: records.counts().is_connected)
        assert records.add_and_wait(after).result(30)
        records.feedback(before.request_id, 0, "joker")
    assert (records.counts().written, records.counts().lost) == (12, 3)
    assert {before.request_id, during.request_id, after.request_id} <= ids(url)
    assert "is in trouble (refused)" in caplog.text
    assert "is back" in caplog.text
    assert PASSWORD not in caplog.text


def test_a_service_starts_without_its_server(postgres):
    url = new_database(postgres)
    try:
        postgres.stop()
        records = Records(url)
        assert records.counts().last_error == "refused"
        promise = records.add_and_wait(make_record())
        other = Records(url)
        assert other.add(make_record())
        assert (other.close(0.3), other.counts().lost) == (1, 1)
    finally:
        postgres.start()
    assert promise.result(30)
    records.close()
    assert count_records(url).records == 1


def test_a_server_that_never_answers(postgres):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        records = Records(f"postgresql://anna:secret@127.0.0.1:{silent.getsockname()[1]}/cards?connect_timeout=2")
        assert time.monotonic() - start < 10
        wait_until(lambda: records.counts().last_error == "unreachable")
        assert records.add(make_record())
        records.close(0)


def test_a_missing_database(postgres):
    with Records(postgres.url("nowhere")) as records:
        assert records.counts().last_error == "missing"
        records.close(0)


def test_a_server_that_only_reads(postgres):
    url = new_database(postgres)
    Records(url).close()
    name = database_url(url).database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with Records(url) as records:
        promise = records.add_and_wait(make_record())
        wait_until(lambda: records.counts().last_error == "read-only")
        assert not records.counts().is_connected
        postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        assert promise.result(30)


def test_a_connection_that_is_cut(postgres):
    url = new_database(postgres)
    with Records(url) as records:
        for _ in range(5):
            assert records.add_and_wait(make_record()).result(30)
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'card_classifier'"
            )
        known = make_record()
        assert records.add_and_wait(known).result(30)
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'card_classifier'"
        )
        records.feedback(known.request_id, 0, "joker")  # nobody needs to know
        assert (records.counts().written, records.counts().lost) == (6, 0)


@not_on_windows
def test_a_file_that_only_reads(tmp_path):
    path = tmp_path / "records.sqlite"
    Records(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    records = Records(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert records.counts().last_error == "read-only"
    assert records.add(make_record())
    assert records.close(0.2) == 1


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "records.sqlite").write_text("Dear reader, " * 1000)
    records = Records(f"sqlite:///{tmp_path / 'records.sqlite'}")
    assert records.counts().last_error == "damaged"
    assert records.close(0.1) == 0
    assert (tmp_path / "records.sqlite").read_text().startswith("Dear reader")


@not_on_windows
def test_a_file_that_is_moved_away_or_deleted(tmp_path):
    path = tmp_path / "records.sqlite"
    url = f"sqlite:///{path}"
    first, second, third = (make_record() for _ in range(3))
    with Records(url) as records:
        assert records.add_and_wait(first).result(30)
        for name in os.listdir(tmp_path):
            (tmp_path / name).rename(tmp_path / name.replace("records", "archive"))
        assert records.add_and_wait(second).result(30)
        assert ids(url) == {second.request_id}
        for name in os.listdir(tmp_path):
            if name.startswith("records"):
                (tmp_path / name).unlink()
        assert records.add_and_wait(third).result(30)
    assert ids(url) == {third.request_id}
    assert ids(f"sqlite:///{tmp_path / 'archive.sqlite'}") == {first.request_id}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    "A disk of 16 megabytes."
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or not hasattr(os, "getuid")
        or os.getuid()
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    "Takes all the room that is left."
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def test_a_full_disk(small_disk):
    url = f"sqlite:///{small_disk / 'records.sqlite'}"
    with Records(url, max_waiting=300) as records:
        assert records.add_and_wait(make_record()).result(30)
        fill(small_disk / "ballast")
        promises = [records.add_and_wait(make_record(rejection_reason="x" * 2000)) for _ in range(400)]
        wait_until(lambda: records.counts().last_error is not None)
        assert records.counts().last_error in ("full", "unreadable", "missing")
        wait_until(lambda: records.counts().waiting == 300)
        assert sum(promise.done() for promise in promises) == records.counts().lost == 100
        with pytest.raises(RecordsAwayError):
            records.feedback("0" * 32, 0, "joker")
        (small_disk / "ballast").write_bytes(b"")
        results = [promise.result(60) for promise in promises]
        assert results.count(True) + 1 == records.counts().written == 301
    assert count_records(url).records == 301


def test_an_export_that_finds_no_room_leaves_the_old_one(small_disk, tmp_path):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    with Records(url) as records:
        for _ in range(1000):
            records.add(make_record(rejection_reason="long" * 5000))
    (small_disk / "records.csv").write_text("the old one")
    with pytest.raises(OSError, match="No space"):
        export_records(url, small_disk / "records.csv", overwrite=True)
    assert [path.name for path in small_disk.iterdir()] == ["records.csv"]
    assert (small_disk / "records.csv").read_text() == "the old one"


# Records at fault

texts = st.text(st.characters(), max_size=300)
numbers = st.floats() | st.integers(-(2**70), 2**70)
odd_records = st.fixed_dictionaries(
    {},
    optional={
        "model_version": texts,
        "file_format": texts,
        "rejection_reason": texts | st.none(),
        "sha256": texts,
        "n_bytes": st.integers(-(2**70), 2**70),
        "width": st.integers(-(2**40), 2**40),
        "statistics": st.dictionaries(texts, numbers, max_size=3),
        "milliseconds": st.dictionaries(texts, numbers, max_size=3),
        "top": st.lists(st.fixed_dictionaries({"card": texts, "probability": numbers}), max_size=3),
        "time": st.datetimes(timezones=st.just(UTC)),
        "logits": st.binary(max_size=20).map(lambda content: content[: len(content) // 2 * 2]),
    },
)


@pytest.fixture(scope="module", params=EACH)
def lasting_records(request, tmp_path_factory) -> Iterator[tuple[Records, str]]:
    "A keeper of records for a hundred examples, and where it keeps them."
    url = (
        f"sqlite:///{tmp_path_factory.mktemp('lasting') / 'records.sqlite'}"
        if request.param == "sqlite"
        else new_database(request.getfixturevalue("postgres"))
    )
    with Records(url, flush_seconds=0.01) as records:
        yield records, url


@settings(max_examples=50)
@given(odd_records)
def test_a_strange_record_harms_no_other(lasting_records, changes):
    records, url = lasting_records
    before, odd, after = make_record(), make_record(**changes), make_record()
    with records.queue.changed:  # so that all three go into one batch
        futures = [records.add_and_wait(one) for one in (before, odd, after)]
    is_before, is_odd, is_after = (future.result(30) for future in futures)
    assert (is_before, is_after) == (True, True)
    with opened(url, is_reader=True) as connection, connection.begin():
        found = (
            connection.execute(sa.select(predictions).where(predictions.c.request_id == odd.request_id))
            .mappings()
            .all()
        )
    assert len(found) == is_odd
    if is_odd:
        assert found[0]["rejection_reason"] == odd.rejection_reason
        assert found[0]["time"] == odd.time
        assert found[0]["model_version"] == odd.model_version[:200]
    assert records.counts().is_connected


def test_types_that_no_column_holds_are_lost_alone(url):
    wrong = [
        make_record(width="wide"),
        make_record(statistics={"a": object()}),
        make_record(top=[7]),
        make_record(is_rejected="perhaps"),
        make_record(model_version=None),
    ]
    with Records(url) as records:
        with records.queue.changed:
            futures = [records.add_and_wait(one) for one in (make_record(), *wrong, make_record())]
        results = [future.result(30) for future in futures]
        assert (results[0], results[-1]) == (True, True)
        assert not any(results[2:-1])  # SQLite does take a text for a width
        assert records.counts().is_connected
        assert records.counts().lost == results.count(False)


def test_the_same_record_twice_is_one(url):
    with Records(url) as records:
        one = make_record()
        assert records.add_and_wait(one).result(30)
        assert records.add_and_wait(replace(one, width=1)).result(30)
    assert [row["width"] for row in rows(url, predictions)] == [640]


# Many at once


def test_every_record_is_counted_once(url):
    with Records(url, max_waiting=50, flush_seconds=0.01) as records:

        def work() -> None:
            for _ in range(200):
                records.add(make_record())
                time.sleep(0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = records.counts()
    assert (counts.written + counts.lost, counts.waiting) == (800, 0)
    assert count_records(url).records == counts.written


def test_a_caller_that_goes_away_harms_nothing(url):
    async def impatient(records: Records) -> list:
        waiting = [asyncio.wrap_future(records.add_and_wait(make_record())) for _ in range(20)]
        for one in waiting[::2]:
            one.cancel()
        return await asyncio.gather(*waiting, return_exceptions=True)

    with Records(url) as records:
        answers = asyncio.run(impatient(records))
        assert answers[1::2] == [True] * 10
        assert all(isinstance(one, asyncio.CancelledError) for one in answers[::2])
        wait_until(lambda: records.counts().written == 20)


def test_feedback_from_another_process(url):
    with Records(url, flush_seconds=0.3) as first, Records(url) as second:
        one = make_record()
        first.add(one)
        second.feedback(one.request_id, 0, "two of hearts")
        second.feedback(one.request_id, 0, NO_CARD)
        assert second.counts().written == 0
    assert [row["card"] for row in rows(url, feedback)] == [NO_CARD]


@pytest.mark.parametrize(
    ("request_id", "index"),
    [
        ("0" * 32, 0),
        ("0" * 31, 0),
        ("", 0),
        ("A" * 32, 0),
        ("'; DROP TABLE predictions; --", 0),
        (None, 0),
        ("known", 1),
        ("known", -1),
        ("known", 2**31),
        ("known", "0"),
    ],
)
def test_feedback_on_nothing(url, request_id, index):
    with Records(url) as records:
        known = make_record()
        assert records.add_and_wait(known).result(30)
        with pytest.raises(UnknownRequestError):
            records.feedback(known.request_id if request_id == "known" else request_id, index, "joker")
        assert records.counts().is_connected
    assert count_records(url).feedback == 0


@given(st.text(max_size=100).filter(lambda text: text not in {*CLASS_NAMES, NO_CARD}))
def test_only_cards_are_feedback(lasting_records, text):
    records, _ = lasting_records
    with pytest.raises(ValueError, match="is not a card"):
        records.feedback("0" * 32, 0, text)


@pytest.mark.parametrize("options", [{"max_waiting": 0}, {"flush_seconds": 0}, {"flush_seconds": 100}])
def test_settings_that_make_no_sense(tmp_path, options):
    with pytest.raises(ValueError, match="must be at least"):
        Records(f"sqlite:///{tmp_path / 'records.sqlite'}", **options)


# Reading


def many(url: str, n: int, **changes) -> list[Record]:
    "Records, a minute apart."
    start = datetime(2026, 11, 1, tzinfo=UTC)
    made = [make_record(time=start + timedelta(minutes=minute), **changes) for minute in range(n)]
    with Records(url, keep_images=True) as records:
        assert all(records.add(one) for one in made)
    assert records.counts().written == n
    return made


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_exports_hold_everything_in_order(url, tmp_path, monkeypatch, suffix):
    import pyarrow.parquet

    monkeypatch.setattr(export_module, "EXPORT_ROWS", 10)
    made = many(url, 47, rejection_reason='quotes " and, commas\nand lines ♥')
    with Records(url) as records:
        records.feedback(made[5].request_id, 0, "ace of hearts")
    seen = []
    file = tmp_path / f"records.{suffix}"
    assert export_records(url, file, progress=lambda done, total, what: seen.append((done, total, what))) == 47
    assert [done for done, _, _ in seen] == [0, 10, 20, 30, 40, 47]
    assert {total for _, total, _ in seen} == {47}
    if suffix == "csv":
        with file.open(encoding="utf-8", newline="") as stream:
            found = list(csv.DictReader(stream))
        times = [datetime.fromisoformat(row["time"]) for row in found]
        numbers = [json.loads(row["logits"]) for row in found]
        best = [json.loads(row["top"]) for row in found]
    else:
        assert pyarrow.parquet.ParquetFile(file).num_row_groups == 5
        found = pyarrow.parquet.read_table(file).to_pylist()
        times = [row["time"] for row in found]
        numbers = [row["logits"] for row in found]
        best = [row["top"] for row in found]
    assert list(found[0]) == list(EXPORT_COLUMNS)
    assert times == [one.time for one in made]
    assert [row["request_id"] for row in found] == [one.request_id for one in made]
    assert {row["rejection_reason"] for row in found} == {made[0].rejection_reason}
    assert best[0] == made[0].top
    assert numbers[0] == (np.arange(53) / 8).tolist()
    assert [row["feedback"] for row in found][5] == "ace of hearts"
    assert not any(row["feedback"] for row in found[6:])
    assert float(found[0]["sharpness"]) == 0.0625
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_export_of_a_part(url, tmp_path):
    made = many(url, 10, image=b"picture")
    assert export_records(url, tmp_path / "a.csv", since=made[2].time, until=made[5].time) == 3
    assert (
        export_records(
            url,
            tmp_path / "b.csv",
            since=made[2].time.replace(tzinfo=None),
            until=made[5].time.astimezone(timezone(timedelta(hours=5))),
        )
        == 3
    )
    assert export_records(url, tmp_path / "c.parquet", with_images=True, until=made[0].time) == 0
    assert export_records(url, tmp_path / "d.parquet", with_images=True) == 10


def test_an_export_needs_little_memory(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(export_module, "EXPORT_ROWS", 100)
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    with make_engine(url).connect() as connection:
        migrate(connection)
        for _ in range(4):
            write_records(connection, [make_record() for _ in range(1000)])
    export_records(url, tmp_path / "first.csv", until=datetime(2026, 1, 1, tzinfo=UTC))  # imports what it needs
    tracemalloc.start()
    assert export_records(url, tmp_path / "all.csv") == 4000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (tmp_path / "all.csv").stat().st_size / 2, "a small part of it at a time"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("records.xlsx", {}, "ends in .csv or .parquet"),
        ("records", {}, "ends in .csv or .parquet"),
        ("nowhere/records.csv", {}, "there is no folder"),
        ("old.csv", {}, "exists: choose another name, or allow overwriting"),
        ("folder.csv", {"overwrite": True}, "exists: choose another name$"),
        ("new.csv", {"with_images": True}, "no room for images"),
    ],
)
def test_an_export_that_is_refused(tmp_path, name, options, message):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    many(url, 1)
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "folder.csv").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RecordsError, match=message):
        export_records(url, tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "old.csv").read_text() == "old"


def test_parquet_without_pyarrow(tmp_path):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    Records(url).close()
    code = (
        "import sys; sys.modules['pyarrow'] = None; from card_classifier.records.export import export_records; "
        "export_records(sys.argv[1], sys.argv[2])"
    )
    done = run_python(code, url, str(tmp_path / "records.parquet"))
    assert done.stderr.strip().endswith(
        "RecordsError: writing Parquet needs pyarrow: pip install 'card_classifier[parquet]'"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["records.sqlite"]


@pytest.mark.parametrize(
    "read",
    [count_records, lambda url: export_records(url, "records.csv"), lambda url: apply_retention(url, record_days=1)],
    ids=["count", "export", "retention"],
)
def test_reading_makes_nothing(url, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordsError, match="there is no database" if url.startswith("sqlite") else "holds no records"):
        read(url)
    assert list(tmp_path.iterdir()) == []


def test_reading_while_the_service_writes(url, tmp_path):
    with Records(url, flush_seconds=0.01) as records:
        assert records.add_and_wait(make_record()).result(30)
        with opened(url, is_reader=True) as reader, reader.begin():
            assert reader.scalar(sa.select(sa.func.count()).select_from(predictions)) == 1
            assert records.add_and_wait(make_record()).result(30)
        assert export_records(url, tmp_path / "records.csv") == 2


# Retention


def test_retention(url, monkeypatch):
    monkeypatch.setattr(retention_module, "DELETE_ROWS", 10)
    made = many(url, 100, image=bytes(2000))
    with Records(url) as records:
        for one in (made[0], made[99]):
            records.feedback(one.request_id, 0, "joker")
    noon = made[50].time + timedelta(days=30)
    seen = []
    limits = {"image_days": 30, "record_days": 60, "is_confirmed": True}
    removed = apply_retention(url, **limits, now=noon, progress=lambda *step: seen.append(step))
    assert (removed.images, removed.records) == (50, 0)
    assert seen == [(done, 50, "images") for done in (10, 20, 30, 40, 50)]
    removed = apply_retention(url, **limits, now=noon + timedelta(days=30))
    assert (removed.images, removed.records) == (50, 50)
    stored = count_records(url)
    assert (stored.records, stored.images, stored.feedback, stored.first) == (50, 0, 1, made[50].time)
    assert apply_retention(url) == apply_retention(url, image_days=9999, record_days=9999)
    with pytest.raises(RecordsError, match="0 or more"):
        apply_retention(url, image_days=-1)
    assert count_records(url).records == 50


def test_retention_while_the_service_writes(url, monkeypatch):
    monkeypatch.setattr(retention_module, "DELETE_ROWS", 20)
    many(url, 400)
    with Records(url, flush_seconds=0.01) as records:
        is_over = threading.Event()
        written = []

        def work() -> None:
            while not is_over.is_set():
                written.append(records.add_and_wait(make_record()).result(60))

        thread = threading.Thread(target=work)
        thread.start()
        removed = apply_retention(url, record_days=0, now=datetime(2026, 11, 2, tzinfo=UTC), is_confirmed=True)
        is_over.set()
        thread.join()
    assert removed.records == 400
    assert all(written)
    assert count_records(url).records == len(written) > 0


def test_what_is_removed_can_not_be_found_in_the_file(tmp_path):
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    secret = b"a face that nobody should find" * 100
    many(url, 50, image=secret)
    size = (tmp_path / "records.sqlite").stat().st_size
    assert secret[:30] in (tmp_path / "records.sqlite").read_bytes()
    assert apply_retention(url, image_days=0, is_confirmed=True).images == 50
    assert all(secret[:30] not in path.read_bytes() for path in tmp_path.iterdir())
    assert (tmp_path / "records.sqlite").stat().st_size < size / 2


@not_on_windows
def test_interrupts_end_the_process(tmp_path):
    "The thread must not keep a process from ending, whatever the database does."
    code = (
        "import sys, time; from card_classifier.records.writer import Records; records = Records(sys.argv[1]); "
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'records.sqlite'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0


def test_a_server_that_does_not_wait_for_the_disk_is_asked_to_for_those_who_wait(postgres):
    url = new_database(postgres) + "?options=-c%20synchronous_commit%3Doff"
    shown = []
    with make_engine(url).connect() as connection:
        for is_synced in (False, True, False):
            set_sync(connection, is_synced)
            shown.append(connection.exec_driver_sql("SHOW synchronous_commit").scalar())
            connection.rollback()
    assert shown == ["off", "local", "off"]
    with Records(url) as records:
        assert records.add_and_wait(make_record()).result(30)
