"Scoring at scale: workers that are killed, and the file for a cluster."

import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import colour_picture

pytest.importorskip("ray", reason="needs the extra batch")
import pyarrow.parquet
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


def start_worker(source: object, to: object, bundle: Path) -> subprocess.Popen:
    "A worker as Ray starts it for each core, in a process of its own, that is given every shard."
    command = [sys.executable, "-c", WORKER, str(source), str(to), str(bundle)]
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
