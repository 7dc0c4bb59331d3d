"Scoring at scale: workers that are killed, and the file for a cluster."

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import colour_picture

pytest.importorskip("ray", reason="needs the extra batch")
import psutil
import pyarrow.parquet
from postgres import free_port
from typer.main import get_command

from card_classifier.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
TARS, PICTURES = 10, 1000


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


WORKER = """
import json, sys
from pathlib import Path
from card_classifier.batch.scorer import Job, ShardScorer
from card_classifier.batch.shards import make_plan
source, to, bundle = sys.argv[1:]
worker = ShardScorer(Job(source, to, bundle))
for shard in make_plan(source).shards:
    print(worker({"shard": [shard.to_json()]})["outcome"][0], flush=True)
"""


def start_worker(source: object, to: object, bundle: Path, under: tuple[str, ...] = ()) -> subprocess.Popen:
    "A worker as Ray starts it for each core, in a process of its own, that is given every shard."
    command = [*under, sys.executable, "-c", WORKER, str(source), str(to), str(bundle)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcomes_of(process: subprocess.Popen) -> list[dict]:
    "What a worker says of each shard."
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in said.splitlines()]


def parts(to: Path) -> list[Path]:
    "The parts that are there."
    return sorted((to / "answers").glob("[!.]*.parquet"))


def test_a_killed_worker_leaves_whole_parts_and_each_picture_is_answered_once(pictures, tiny_bundle, tmp_path):
    for n_parts in (1, 4):
        process = start_worker(pictures, tmp_path, tiny_bundle)
        wait_for(lambda process=process, n=n_parts: len(parts(tmp_path)) >= n or process.poll() is not None)
        assert process.poll() is None
        process.kill()
        process.communicate()
    assert len(parts(tmp_path)) < TARS + 1
    told = outcomes_of(start_worker(pictures, tmp_path, tiny_bundle))
    assert len(told) == len(parts(tmp_path)) == TARS + 1 and all("summary" in one for one in told)
    table = pyarrow.parquet.read_table(tmp_path / "answers").to_pylist()
    files = [row["file"] for row in table]
    expected = {f"{number}.tar/{one:04d}.jpg" for number in range(2, TARS) for one in range(PICTURES)}
    expected |= {f"loose/{number}" for number in range(20)} | {"loose/empty.jpg", "loose/words.jpg"}
    of_cut = {name for name in files if name.startswith("0.tar/")}
    assert len(files) == len(set(files)) and 0 < len(of_cut) < PICTURES
    assert set(files) == expected | of_cut | {"0.tar", "1.tar"}
    assert sum(row["error"] is not None for row in table) == 4
    assert not list((tmp_path / "attempts").glob("*"))


# No file may become larger than 4 kB: a disk that is nearly full
NEARLY_FULL = ("bash", "-c", 'ulimit -f 4; exec "$@"', "bash")


def test_a_disk_that_is_full_stops_with_a_line_and_the_same_again_goes_on(pictures, tiny_bundle, tmp_path):
    (stopped,) = outcomes_of(start_worker(pictures / "loose", tmp_path, tiny_bundle, NEARLY_FULL))
    assert "summary" not in stopped and parts(tmp_path) == []
    assert "file too large; finished parts are kept: free some space" in stopped["stopped"]
    (done,) = outcomes_of(start_worker(pictures / "loose", tmp_path, tiny_bundle))
    assert done["summary"]["pictures"] == 22 and len(parts(tmp_path)) == 1
    drafts = [file for file in tmp_path.rglob("*") if file.is_file() and file.name.startswith(".")]
    assert not drafts and not list((tmp_path / "attempts").glob("*"))


class Cluster:
    "A Ray cluster on loopback, of a user whose home is a folder of its own."

    def __init__(self, home: Path, port: int, head: subprocess.Popen):
        self.home, self.address, self.head = home, f"127.0.0.1:{port}", head

    def score(self, source: Path, to: Path, **variables: str) -> subprocess.Popen:
        "The command, as that user types it."
        command = [sys.executable, "-m", "card_classifier.cli.main", "score", str(source), "--to", str(to), "--json"]
        told = {**quiet_environment(self.home), **variables}
        return subprocess.Popen([*command, "--address", self.address, "--bundle", told.pop("BUNDLE")], env=told,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def workers(self) -> list[psutil.Process]:
        "Those that score."
        found = psutil.Process(self.head.pid).children(recursive=True)
        return [one for one in found if "ShardScorer" in one.name() or "ShardScorer" in " ".join(one.cmdline())]


def quiet_environment(home: Path) -> dict[str, str]:
    "What a process is started with: no token but the home's."
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    "A head with two cores that asks for a token."
    ray, home, port = str(Path(sys.executable).with_name("ray")), tmp_path / "home", free_port()
    home.mkdir()
    told = quiet_environment(home)
    subprocess.run([ray, "get-auth-token", "--generate"], env=told, check=True, capture_output=True)
    session = tempfile.mkdtemp(prefix="ray")  # Names of sockets have to be short
    small = ["--num-cpus", "2", "--object-store-memory", "80000000", "--include-dashboard", "false"]
    command = [ray, "start", "--head", "--block", "--port", str(port), "--temp-dir", session, *small]
    with (tmp_path / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, env=told, stdout=log, stderr=log)
    try:
        wait_for(lambda: b"Ray runtime started" in (tmp_path / "ray.log").read_bytes() or head.poll() is not None)
        assert head.poll() is None, (tmp_path / "ray.log").read_text()
        yield Cluster(home, port, head)
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), head]
        head.terminate()
        psutil.wait_procs(family, 20)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        shutil.rmtree(session, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_is_joined_with_its_token_and_outlives_killed_workers_and_drivers(
    cluster, pictures, tiny_bundle, tmp_path
):
    to, stranger = tmp_path / "answers of all", tmp_path / "stranger"
    stranger.mkdir()
    bundle = {"BUNDLE": str(tiny_bundle)}
    for token, said in ({}, "asks for a token"), ({"RAY_AUTH_TOKEN": "f" * 64}, "asks for another token"):
        refused = cluster.score(pictures, to, HOME=str(stranger), **token, **bundle)
        assert said in refused.communicate(timeout=240)[1] and refused.returncode == 2

    driver = cluster.score(pictures, to, **bundle)  # The token is found in the home
    wait_for(lambda: parts(to) or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()
    victim = cluster.workers()[0]
    victim.kill()
    n_parts = len(parts(to))
    wait_for(lambda: len(parts(to)) > n_parts + 1 or driver.poll() is not None)
    assert driver.poll() is None, "the tars are too few: it was done before it could be killed"
    driver.kill()
    driver.communicate()
    wait_for(lambda: not cluster.workers())  # Ray ends them when their driver is gone
    before = {part.name: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts(to)}
    assert 0 < len(before) < TARS + 1

    named = {"RAY_AUTH_TOKEN_PATH": str(cluster.home / ".ray" / "auth_token"), "HOME": str(stranger)}
    told, errors = (again := cluster.score(pictures, to, **named, **bundle)).communicate(timeout=600)
    assert again.returncode == 0, errors
    counts = json.loads(told)
    after = {part.name: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts(to)}
    assert counts["is_complete"] and len(after) == counts["shards"] == TARS + 1
    assert {name: after[name] for name in before} == before, "what was there is not written again"
    table = pyarrow.parquet.read_table(to / "answers").to_pylist()
    files, shards = [row["file"] for row in table], {row["shard"] for row in table}
    assert len(files) == len(set(files)) == counts["pictures"] and len(shards) == TARS + 1
    assert {f"{number}.tar/{one:04d}.jpg" for number in range(2, TARS) for one in range(PICTURES)} <= set(files)
    assert not list((to / "attempts").glob("*"))


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


def test_the_cluster_asks_for_a_token_and_ends_workers_before_the_kernel_ends_a_pod(job):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    version = tuple(map(int, cluster["rayVersion"].split(".")))
    assert version >= (2, 52, 0), "older ones know no token"
    assert cluster["rayVersion"] in (ROOT / "requirements.lock").read_text().split("\nray", 1)[1][:40]
    for group in cluster["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            told = {one["name"]: one["value"] for one in container["env"]}
            assert 0.5 < float(told["RAY_memory_usage_threshold"]) < 0.95


def test_the_pods_of_the_job_are_what_kubernetes_takes(job):
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": template["spec"]}
        validate.validate(pod, validate.latest_version(), strict=True)
