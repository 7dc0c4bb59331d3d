"Scoring at scale with real parts: a Ray cluster, a bucket, processes that are killed, a disk that is full."

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import colour_picture

pytest.importorskip("ray", reason="needs the extra batch")
import fsspec
import pyarrow.parquet
from typer.main import get_command

from card_classifier.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "card_classifier.cli.start"]
TARS, PICTURES = 10, 1000
STARTS = 3  # Ray gives its own processes 15 s, which a busy machine does not always have


def free_port() -> int:
    "A port that nobody listens on."
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for(is_so: Callable[[], object], seconds: float = 240) -> None:
    "Waits until something is so."
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def jpeg(index: int) -> bytes:
    "A picture of the card with this class index, as the tiny bundle has it."
    file = io.BytesIO()
    colour_picture(index % 53).save(file, "JPEG", quality=95)
    return file.getvalue()


def pack(path: Path, names: list[str], contents: list[bytes]) -> None:
    "Writes a tar."
    with tarfile.open(path, "w") as archive:
        for name, content in zip(names, contents, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    "Tars and loose files, some of them bad."
    folder = tmp_path_factory.mktemp("Karten für alle")
    contents = [jpeg(number) for number in range(53)]
    for number in range(TARS):
        names = [f"{one:04d}.jpg" for one in range(PICTURES)]
        pack(folder / f"{number}.tar", names, [contents[one % 53] for one in range(PICTURES)])
    whole = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(whole[: len(whole) // 2])  # The rest is lost
    (folder / "1.tar").write_bytes(b"these are words, " * 1000)
    (folder / "loose").mkdir()
    for number in range(20):
        (folder / "loose" / f"{number}").write_bytes(contents[number])  # Told by content
    (folder / "loose" / "empty.jpg").touch()
    (folder / "loose" / "words.jpg").write_text("no picture")
    (folder / "loose" / "labels.csv").write_text("not even called a picture")
    return folder


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    "A server that speaks the protocol of Google Cloud Storage, with a bucket called cards."
    port = free_port()
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    options = ["start", "--host", "127.0.0.1", "--port", str(port), "--default-bucket", "cards", "--quiet"]
    folder = str(tmp_path_factory.mktemp("bucket"))
    server = subprocess.Popen([program, "-d", folder, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def environment(bucket) -> dict[str, str]:
    "What the cluster and the commands run in."
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "STORAGE_EMULATOR_HOST": bucket,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@pytest.fixture(scope="module")
def cluster(environment) -> Iterator[tuple[str, str]]:
    "A Ray cluster of this machine: its address, and the folder that its processes are started with."
    program = Path(sys.executable).with_name("ray")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # Short: sockets lie in it
        for _ in range(STARTS):
            options = ["--head", "--block", "--num-cpus", "2", "--port", str(free_port()),
                       "--include-dashboard=false", "--object-store-memory", "100000000", "--temp-dir", folder]
            log = Path(folder) / "start.log"
            with log.open("w") as output:
                head = subprocess.Popen([program, "start", *options], env=environment, stdout=output, stderr=output,
                                        start_new_session=True)
            wait_for(lambda head=head, log=log: head.poll() is not None or "Ray runtime started" in log.read_text())
            if head.poll() is None:
                break
        else:
            pytest.fail(f"Ray does not start: {log.read_text()[-500:]}")
        node = re.search(r"Local node IP: (\S+)", log.read_text())[1]
        yield f"{node}:{options[options.index('--port') + 1]}", folder
        own = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        for process in psutil.wait_procs(own, timeout=20)[1]:
            process.kill()


def start(environment: dict, *arguments: object) -> subprocess.Popen:
    "Starts the command."
    return subprocess.Popen([*COMMAND, "score", *map(str, arguments)], env=environment, cwd=tempfile.gettempdir(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    "Waits for its end; what it said, which is not much."
    said, errors = process.communicate(timeout=400)
    assert process.returncode == code, said + errors
    assert "Traceback" not in errors, errors
    return said + errors


def parts(to: Path) -> list[Path]:
    "The parts that are there."
    return sorted((to / "answers").glob("[!.]*.parquet"))


def workers_of(folder: str) -> list[psutil.Process]:
    "The processes of a cluster that score."
    titled = [one for one in psutil.process_iter(["cmdline"]) if "ShardScorer" in " ".join(one.info["cmdline"] or ())]
    return [one for one in titled if folder in " ".join(one.parent().cmdline())]


def test_whatever_is_killed_each_picture_is_answered_once(cluster, environment, pictures, tiny_bundle, tmp_path):
    address, folder = cluster
    to = tmp_path / "answers of all"
    arguments = (pictures, "--to", to, "--bundle", tiny_bundle, "--address", address)
    first = start(environment, *arguments)
    wait_for(lambda: parts(to) or first.poll() is not None)
    assert first.poll() is None, first.communicate()
    workers_of(folder)[0].kill()
    wait_for(lambda: len(parts(to)) >= 3 or first.poll() is not None)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    n_before = len(parts(to))

    told = json.loads(finish(start(environment, *arguments, "--json")).splitlines()[-1])
    assert n_before < told["shards"] == told["done"] == len(parts(to)) == TARS + 1
    table = pyarrow.parquet.read_table(to / "answers").to_pylist()
    files = [row["file"] for row in table]
    expected = {f"{number}.tar/{one:04d}.jpg" for number in range(2, TARS) for one in range(PICTURES)}
    expected |= {f"loose/{number}" for number in range(20)} | {"loose/empty.jpg", "loose/words.jpg"}
    of_cut = {name for name in files if name.startswith("0.tar/")}
    assert len(files) == len(set(files)) and 0 < len(of_cut) < PICTURES
    assert set(files) == expected | of_cut | {"0.tar", "1.tar"}
    right = [row["card"] is not None for row in table if row["error"] is None]
    assert all(right) and len(right) == len(files) - 4
    assert (told["bad"], told["others"]) == (4, 1)
    listed = (to / "bad_files.csv").read_text(encoding="utf-8")
    assert "0.tar,\"not all of the tar can be read" in listed and "loose/words.jpg" in listed
    assert not list((to / "attempts").glob("*"))

    again = finish(start(environment, *arguments))
    assert "by earlier runs" in again and "a second" not in again  # Nothing was left to do


def test_a_bucket_is_scored_into_a_bucket(cluster, environment, tiny_bundle, bucket, tmp_path):
    pack(tmp_path / "a.tar", ["1.jpg", "2.jpg"], [jpeg(7), b"no picture"])
    fs = fsspec.filesystem("gs", endpoint_url=bucket, token="anon")
    fs.pipe_file("cards/in/a.tar", (tmp_path / "a.tar").read_bytes())
    fs.pipe_file("cards/in/loose/three", jpeg(9))
    arguments = ("gs://cards/in", "--to", "gs://cards/out", "--bundle", tiny_bundle, "--address", cluster[0])
    said = finish(start(environment, *arguments))
    assert "3 pictures in 2 of 2 shards; 0 without a card, 1 bad" in said and "gs://cards/out/answers" in said
    fs.invalidate_cache()
    rows = [row for name in fs.ls("cards/out/answers") for row in pyarrow.parquet.read_table(
        io.BytesIO(fs.cat_file(name))).to_pylist()]
    assert sorted(row["file"] for row in rows) == ["a.tar/1.jpg", "a.tar/2.jpg", "loose/three"]
    fs.pipe_file("cards/in/loose/three", jpeg(10))  # Another picture under the same name
    assert "has changed since it was scored" in finish(start(environment, *arguments), 2)


def test_a_full_disk_ends_a_run_in_one_line_and_the_next_goes_on(
    cluster, environment, pictures, tiny_bundle, small_disk
):
    disk = small_disk("128k")
    source = pictures / "2.tar"
    (disk / "ballast").write_bytes(bytes(90_000))
    arguments = (source, "--to", disk / "to", "--bundle", tiny_bundle, "--address", cluster[0])
    said = finish(start(environment, *arguments), 2).strip().splitlines()
    assert "no space left on device" in said[-1] and len(said) == 1
    assert not parts(disk / "to")
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
    assert f"{PICTURES} pictures in 1 of 1 shards" in finish(start(environment, *arguments))


@pytest.fixture
def job() -> dict:
    "The file for KubeRay."
    return next(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "score.yaml").read_text(encoding="utf-8")))


def test_the_job_for_a_cluster_calls_the_command_as_it_is(job):
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["card-classifier", "score"]
    options = {name for parameter in get_command(app).commands["score"].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert words[words.index("--address") + 1] == "auto"


def test_the_pods_of_the_job_are_what_kubernetes_takes(job):
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": template["spec"]}
        validate.validate(pod, validate.latest_version(), strict=True)
