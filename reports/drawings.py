"""The figures of the report, drawn from the files of the repository and from local stand-ins."""
import configparser
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from card_classifier.bundle import read_bundle, released_bundle
from card_classifier.evaluation.plots import new_figure, style_axis

REPORTS = Path(__file__).resolve().parent
ROOT = REPORTS.parent
GREEN, PAPER, INK, GREY = "#1c6b49", "#fffdf9", "#20261f", "#6d736c"
ROOMS = {  # Name to place, and what the room does
    "data": (0, 3, "audit, shards"), "render": (0, 2, "drawn cards"), "training": (1, 3, "fastai, timm"),
    "evaluation": (1, 2, "metrics, intervals"), "bundle": (2, 3, "ONNX, no pickle"),
    "lifecycle": (2, 2, "gate, registry"), "recognition": (3, 3, "engine, predictor"), "cli": (3, 2, "the command"),
    "serving": (4, 3, "HTTP, demo"), "batch": (4, 2, "Ray Data"), "records": (5, 3, "SQLite, PostgreSQL"),
    "watching": (5, 1, "drift"), "people": (0, 1, "look and correct"),
}
FLOW = (("data", "training"), ("render", "data"), ("training", "bundle"), ("evaluation", "training"),
        ("bundle", "recognition"), ("bundle", "lifecycle"), ("recognition", "serving"), ("recognition", "cli"),
        ("recognition", "batch"), ("serving", "records"), ("records", "watching"), ("watching", "people"),
        ("people", "render"))


def box(axis: Axes, place: tuple[float, float], name: str, note: str = "", size: tuple[float, float] = (0.78, 0.56)):
    "A box with a name and a note."
    x, y = place
    width, height = size
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=PAPER, edgecolor=GREEN,
                                  boxstyle="round,pad=0,rounding_size=.08"))
    axis.text(x, y + (0.09 if note else 0), name, ha="center", va="center", fontsize=9, color=INK)
    axis.text(x, y - 0.13, note, ha="center", va="center", fontsize=7, color=GREY)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    "An arrow between two places."
    axis.annotate("", xy=end, xytext=start, arrowprops={
        "arrowstyle": "-|>", "color": GREEN, "alpha": 0.7, "shrinkA": 26, "shrinkB": 26})


def empty_axis(figure: Figure, width: tuple[float, float], height: tuple[float, float]) -> Axes:
    "Axes without axes."
    axis = figure.subplots()
    axis.set(xlim=width, ylim=height)
    axis.axis("off")
    return axis


def architecture() -> Figure:
    "The rooms in the order in which data flows through them; each is a folder of the package."
    figure = new_figure(9.6, 4)
    axis = empty_axis(figure, (-0.6, 5.6), (0.6, 3.6))
    for start, end in FLOW:
        arrow(axis, ROOMS[start][:2], ROOMS[end][:2])
    for name, (x, y, note) in ROOMS.items():
        package = ROOT / "card_classifier"
        assert name == "people" or (package / name).is_dir() or (package / f"{name}.py").is_file(), name
        box(axis, (x, y), name, note)
    axis.text(0.5, 3.5, "with torch", ha="center", fontsize=8, color=GREY)
    axis.text(4, 3.5, "without torch", ha="center", fontsize=8, color=GREY)
    return figure


def pipeline() -> Figure:
    "The stages of dvc.yaml, with an arrow where a stage reads what another one writes."
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

    def names(values: list) -> set[str]:
        "Paths without what an item is called."
        return {re.sub(r"\$\{item\.\w+\}", "*", next(iter(one)) if isinstance(one, dict) else one).rstrip(":")
                for one in values}

    outs = {name: names(stage.get("outs", [])) for name, stage in stages.items()}
    deps = {name: names([*stage.get("deps", []), *stage.get("params", [])]) for name, stage in stages.items()}
    figure = new_figure(8.4, 2.2)
    axis = empty_axis(figure, (-0.6, len(stages) - 0.4), (-0.9, 0.9))
    places = {name: (number, 0.25 * (-1) ** number) for number, name in enumerate(stages)}
    for name, read in deps.items():
        for other, written in outs.items():
            if name != other and any(fnmatch(one, out) or fnmatch(one, f"{out}/*") for one in read for out in written):
                arrow(axis, places[other], places[name])
    for name, stage in stages.items():
        box(axis, places[name], name, " x ".join(stage.get("matrix", {})), (0.86, 0.5))
    return figure


def tracking() -> Figure:
    "Loss and accuracy by epoch of the runs whose mean is released."
    results = json.loads((REPORTS / "results.json").read_text(encoding="utf-8"))
    network = read_bundle(released_bundle()).classifier
    names = network.training["settings"]["model.start_from"].split("+")
    runs = [run for run in results["runs"] if run["run"] in names and run["history"]]
    figure = new_figure(8, 2.8)
    for axis, key, label, factor in zip(figure.subplots(1, 2), ("valid_loss", "accuracy"),
                                        ("loss on valid", "accuracy on valid, %"), (1, 100), strict=True):
        for run in runs:
            axis.plot([row["epoch"] + 1 for row in run["history"]], [factor * row[key] for row in run["history"]],
                      marker=".", label=run["run"][9:15])
        axis.set(xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        style_axis(axis, label)
        axis.legend(fontsize=7, frameon=False)
    return figure


def table(title: str, note: str, columns: list[str], rows: list[list[str]], widths: list[float]) -> Figure:
    "A table as a picture."
    figure = new_figure(8.4, 0.9 + 0.26 * len(rows))
    axis = empty_axis(figure, (0, 1), (-len(rows) - 1.2, 1.4))
    axis.text(0, 0.9, title, fontsize=10, color=INK, weight="bold")
    starts = np.cumsum([0, *widths[:-1]])
    for number, row in enumerate([columns, *rows]):
        for start, cell in zip(starts, row, strict=True):
            colour = INK if number else GREEN
            axis.text(start, -number, cell, fontsize=7.5, color=colour, va="center", family="monospace")
    axis.text(0, -len(rows) - 1, note, fontsize=7, color=GREY, va="center")
    return figure


def monitoring() -> Figure:
    "The alerts of the file of rules."
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    rows = [[one["alert"].removeprefix("CardClassifier"), one["labels"]["severity"], str(one.get("for", "at once")),
             re.sub(r"\{\{.*?\}\}:? ?", "", one["annotations"]["summary"])[:78]] for one in alerts]
    return table("Alerts", "Read from deploy/prometheus/rules.yaml.", ["alert", "as", "after", "what is wrong"], rows,
                 [0.2, 0.08, 0.08, 0.64])


def drift() -> Figure:
    "What the test for one statistic sees: the reference's pictures, and the same at dusk."
    info = read_bundle(released_bundle())
    from card_classifier.records.schema import STATISTICS
    from card_classifier.watching.reference import read_reference
    from scipy.stats import ks_2samp

    rows = read_reference(released_bundle(), info).rows
    before = rows["statistics"][:, list(STATISTICS).index("brightness")].astype(float)
    window = np.random.default_rng(3).choice(before, 100, replace=False) * 0.7
    distance, chance = ks_2samp(before, window)
    figure = new_figure(7, 2.8)
    axis = figure.subplots()
    for values, label in ((before, f"reference, {len(before)} pictures"), (window, "a window of 100, 30 % darker")):
        axis.plot(np.sort(values), np.linspace(0, 100, len(values)), label=label)
    axis.set(xlabel="brightness", title=f"distance {distance:.2f}, by chance {chance:.1e}")
    axis.title.set_fontsize(8)
    style_axis(axis, "pictures below, %")
    axis.legend(fontsize=7, frameon=False)
    return figure


@contextmanager
def local_bucket() -> Iterator[str]:
    "A server with the protocol of Cloud Storage and a bucket called example-cards."
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    options = ["start", "--host", "127.0.0.1", "--port", str(port), "--default-bucket", "example-cards", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen([program, "-d", folder, *options], **quiet)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if server.poll() is not None:
                    raise SystemExit("the local server for the bucket does not start: gcp-storage-emulator")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def bucket() -> Figure:
    "The listing of a local bucket into which the released bundle was written."
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    with local_bucket() as address:
        store = fsspec.filesystem("gs", endpoint_url=address, token="anon")
        for file in sorted(Path(released_bundle()).iterdir()):
            store.pipe_file(f"example-cards/released/{file.name}", file.read_bytes())
        listed = store.ls("example-cards/released", detail=True)
    listed = sorted(listed, key=lambda one: one["name"])
    rows = [[f"gs://{one['name']}", f"{one['size'] / 1e6:.2f} MB"] for one in listed]
    return table("A bucket", "From a local server with the protocol of Cloud Storage, not from Google's console.",
                 ["object", "size"], rows, [0.7, 0.3])


def dockerfile() -> list[list[str]]:
    "The steps of the Dockerfile: stage, instruction, beginning of what it does."
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    rows, stage = [], ""
    for line in text.splitlines():
        found = re.match(r"(FROM|RUN|COPY|USER|HEALTHCHECK|ENTRYPOINT)\s+(.+)", line)
        if found:
            stage = found[2].rpartition(" AS ")[2] if found[1] == "FROM" else stage
            rows.append([stage, found[1], " ".join(re.sub(r"--mount=\S+", "", found[2]).split())[:88]])
    return rows


def registry() -> Figure:
    "The images that the files would put into a registry."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    workflow = (ROOT / ".github" / "workflows" / "image.yml").read_text(encoding="utf-8")
    signs = {"provenance": "attest", "bill of materials": "sbom"}
    attached = [what for what, sign in signs.items() if sign in workflow.lower()]
    rows = [["card-classifier", "serve", f"{version}, commit", "a release, a push to main", ", ".join(attached)],
            ["card-classifier-train", "train", f"{version}", "built in the nightly run", ""]]
    stages = {row[0] for row in dockerfile()}
    assert {row[1] for row in rows} <= stages
    note = "Read from the Dockerfile, settings.ini and .github/workflows/image.yml; no registry was filled."
    return table("Images", note, ["image", "target", "tags", "when", "attached"], rows,
                 [0.22, 0.1, 0.18, 0.26, 0.24])


def build() -> Figure:
    "The steps that build the images."
    return table("Steps of the build", "Read from the Dockerfile; a history exists only where a builder has run.",
                 ["stage", "step", "what"], dockerfile(), [0.16, 0.12, 0.72])


FIGURES = (architecture, pipeline, tracking, monitoring, drift, bucket, registry, build)


def draw_all(folder: Path) -> None:
    "Writes every figure."
    for draw in FIGURES:
        draw().savefig(folder / f"{draw.__name__}.png", dpi=90, bbox_inches="tight", metadata={"Software": None})
