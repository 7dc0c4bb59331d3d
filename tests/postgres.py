"A real PostgreSQL server in a temporary folder, for the tests that need one."

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

PASSWORD = "s3cret-of-the-test"
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")


def postgres_programs() -> Path | None:
    "The folder of PostgreSQL's own programs, or None where it is not installed."
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += [Path(name) for pattern in PLACES for name in sorted(glob.glob(pattern), reverse=True)]
    return next((folder for folder in folders if (folder / "initdb").is_file() and (folder / "pg_ctl").is_file()), None)


def free_port() -> int:
    "A TCP port that nobody listens on."
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Postgres:
    "A server on loopback that asks for a password and can be stopped and started again."

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.user = (
            {"user": "postgres", "group": "postgres", "extra_groups": []}
            if hasattr(os, "getuid") and os.getuid() == 0
            else {}
        )  # it refuses to run as root
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(folder / "password", "postgres", "postgres")
        self.call(
            "initdb",
            "--pgdata",
            "data",
            "--username",
            "tester",
            "--pwfile",
            "password",
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--no-sync",
        )
        with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\nfsync = off\n"
            )

    def call(self, program: str, *arguments: str) -> None:
        "Runs one of PostgreSQL's programs as a user who may."
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **self.user,
        )
        assert done.returncode == 0, f"{program}: {done.stdout} {done.stderr}"

    def start(self) -> None:
        "Starts the server and waits until it answers."
        self.call("pg_ctl", "--pgdata", "data", "--log", "log", "--wait", "start")

    def stop(self, mode: str = "fast") -> None:
        "Stops it: `fast` tells its clients, `immediate` is a crash."
        self.call("pg_ctl", "--pgdata", "data", "--mode", mode, "--wait", "stop")

    def execute(self, statement: str) -> None:
        "Runs one SQL statement as the server's owner."
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        "Where to find it."
        return f"postgresql://tester:{password}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running_postgres(programs: Path) -> Iterator[Postgres]:
    "A server that has ended, and left nothing behind, when the block ends."
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not pytest's: the other user must be able to enter it
    server = None
    try:
        server = Postgres(programs, folder)
        server.start()
        yield server
    finally:
        if server is not None and (folder / "data" / "postmaster.pid").exists():
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
