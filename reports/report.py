"Makes the report: README.md and figures/ from the numbers in results.json; with --runs it reads those numbers from finished runs first."
import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import nbformat
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from nbdev.clean import nbdev_clean

from card_classifier.bundle import read_bundle, released_bundle
from card_classifier.settings import checkout, find_checkout
from card_classifier.data.shards import open_shards
from card_classifier.evaluation.metrics import percent_with_interval
from card_classifier.evaluation.plots import plot_confusion, plot_per_class, plot_reliability

REPORTS = Path(__file__).resolve().parent
RESULTS = REPORTS / "results.json"
FIGURES = REPORTS / "figures"
SHOWN = {  # What somebody sees who looks at the test images that networks got wrong
    "test/five of clubs/3.jpg": "golden pips on black, a face drawn in lines between them; the index is an ornate 5",
    "test/joker/1.jpg": "the photograph of a face between two words JOKER: no other joker is a photograph",
    "test/queen of clubs/4.jpg": "a queen in black outlines alone, without colour",
    "test/six of clubs/1.jpg": "a drawn figure that holds this very card; no six pips anywhere, and golden ones at the index",
    "test/ten of diamonds/2.jpg": "a rendered card, tilted and cut at the bottom: eight pips are whole",
    "test/two of spades/2.jpg": "one large white pip and the figure 2 on brown: by its pips an ace",
}


def head(metrics: dict) -> dict:
    "The figures of one split that are single numbers."
    return {name: value for name, value in metrics.items() if name == "without_leaking" or not isinstance(value, list | dict)}


def run_results(run: Path) -> dict:
    "What the report needs of one run."
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    classifier = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))["networks"]["classifier"]
    kept = {name: metrics[name] for name in ("run", "arch", "weights", "machine", "precision", "minutes", "history", "temperature", "data")} | {name: metrics[name] for name in ("valid_varied",) if name in metrics}
    splits = {split: metrics[split] if split == "test" else head(metrics[split]) for split in ("valid", "test") if split in metrics}
    return kept | splits | {
        "settings": classifier["training"]["settings"], "rejection_threshold": classifier["thresholds"]["rejection"], "peak_memory_gb": metrics["peak_memory_gb"],
        "bundle_mb": sum(file.stat().st_size for file in (run / "bundle").iterdir()) / 1e6,
    }


def collect(names: list[str]) -> dict:
    "The results of these runs and of the audit of the data they saw. A run that isn't on this machine any more keeps its results from before."
    root = checkout()
    shards = open_shards(root / "data")
    summary = json.loads((root / "data" / "dataset.json").read_text(encoding="utf-8"))["audit"]
    exclusions = [{"path": one.path, "reason": one.reason, "other": one.other} for one in shards.exclusions]
    audit = summary["summary"]
    leaking = {split: len(shards.leaking(split)) for split in ("valid", "test")}
    earlier = {run["run"]: run for run in json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]} if RESULTS.exists() else {}
    runs = [run_results(root / "outputs" / name) if (root / "outputs" / name).is_dir() else earlier[name] for name in names]
    return {"runs": runs, "audit": audit, "exclusions": exclusions, "leaking": leaking, "counts": shards.counts, "data_checksum": shards.checksum}


def keep_record(run: Path, page: str, title: str) -> None:
    "The executed notebook of a run as a page of the docs, without what only its own machine needs."
    notebook = nbformat.read(run / "train.ipynb", 4)
    notebook.metadata.pop("papermill", None)
    notebook.cells[0].source = title
    kept = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in kept:
        cell.metadata = nbformat.NotebookNode({"tags": [tag for tag in cell.metadata.get("tags", []) if tag == "parameters"]} if "parameters" in cell.metadata.get("tags", []) else {})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = None
    notebook.cells = kept
    nbformat.write(notebook, checkout() / "nbs" / "runs" / page)
    nbdev_clean(fname=checkout() / "nbs" / "runs" / page)


def recipe(run: dict) -> str:
    "The experiment that a run's name tells."
    return run["run"].split("-")[2]


def start_of(run: dict) -> str:
    "Where a run's network came from, in a few words."
    earlier = [name[9:15] for name in parents(run)]
    return f"{'mean of runs' if len(earlier) > 1 else 'run'} {', '.join(earlier)}" if earlier else run["weights"].split(" from ")[0]


def parents(run: dict) -> list[str]:
    "The runs whose networks a run started from."
    return [name for name in run["settings"].get("model.start_from", "").split("+") if name]


def told_by_seed(runs: list[dict]) -> str:
    "What runs that differ in nothing but their seed show of chance."
    alike = defaultdict(list)
    for run in runs:
        alike[json.dumps({name: value for name, value in run["settings"].items() if name != "train.seed"}, sort_keys=True)].append(run)
    lines = []
    for group in alike.values():
        if len(group) < 2:
            continue
        figures = {"valid": [run["valid"]["n_correct"] for run in group], "test": [run["test"]["n_correct"] for run in group if "test" in run], "varied valid, %": [round(100 * run["valid_varied"]["accuracy"], 2) for run in group if "valid_varied" in run]}
        said = "; ".join(f"{name}: {', '.join(map(str, values))}, mean {np.mean(values):.2f}, standard deviation {np.std(values, ddof=1):.2f}" for name, values in figures.items() if len(values) > 1)
        lines.append(f"The runs {', '.join(run['run'][9:15] for run in group)} differ in their seed alone, which decides the rendered decks, the scenes and all variation. Images right, of {group[0]['valid']['n']} each: {said}.")
    return "\n\n".join(lines)


def save(figure: plt.Figure, name: str) -> None:
    "Keeps a figure."
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=90, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def plot_curves(runs: list[dict]) -> plt.Figure:
    "Accuracy on valid by minutes of training, one line a run."
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for run in runs:
        if not run["history"]:
            continue
        minutes = [sum(row["seconds"] for row in run["history"][: number + 1]) / 60 for number in range(len(run["history"]))]
        axis.plot(minutes, [100 * row["accuracy"] for row in run["history"]], marker=".", label=f"{recipe(run)} {run['arch']}, {run['minutes']:.0f} min")
    axis.set(xlabel="minutes of training", ylabel="accuracy on valid, %", ylim=(0, 101))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def row(cells: list) -> str:
    "A line of a Markdown table."
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(columns: list[str], rows: list[list]) -> str:
    "A Markdown table."
    return "\n".join([row(columns), row(["---"] * len(columns)), *map(row, rows)])


def size_of(run: dict) -> str:
    "How large a run's training images were."
    settings = run["settings"]
    first = f"{settings['train.start_epochs']} at {settings['train.start_size']} px, then " if settings["train.start_epochs"] else ""
    return f"{first}{settings['train.epochs'] - settings['train.start_epochs']} at {settings['train.size']} px" if settings["train.epochs"] else "none"


def write_report(results: dict) -> None:
    "README.md and its figures."
    runs, audit = results["runs"], results["audit"]
    info = read_bundle(released_bundle())
    released = next(run for run in runs if run["run"] == info.name)
    test = released["test"]
    save(plot_curves(runs), "learning-curves")
    for name, figure in {"confusion": plot_confusion(test), "per-class": plot_per_class(test), "reliability": plot_reliability(test)}.items():
        save(figure, name)
    chosen = [[f"{run['run'][9:15]} {recipe(run)}" + (" (released)" if run is released else ""), run["arch"], start_of(run), size_of(run), f"{run['settings']['evaluation.size']} px", f"{run['valid']['n_correct']} of {run['valid']['n']}", f"{100 * run['valid_varied']['accuracy']:.1f} %, NLL {run['valid_varied']['nll']:.3f}" if "valid_varied" in run else "not measured", f"{run['test']['n_correct']} of {run['test']['n']}" if "test" in run else "not opened", f"{run['minutes']:.0f}"] for run in runs]
    measured = [[label, f"{figures['n_correct']} of {figures['n']}", percent_with_interval(figures), f"{figures['macro_f1']:.4f}", f"{figures['ece']:.4f}", f"{figures['nll']:.4f}"]
        for split in ("test", "valid") for label, figures in ((f"{split}, as published", info.classifier.metrics[split]), (f"{split}, without leaking images", info.classifier.metrics[split]["without_leaking"])) if figures]
    mistakes = [[f"`{mistake['path']}`", mistake["target"], mistake["predicted"], f"{100 * mistake['probability']:.0f} %", SHOWN.get(mistake["path"], "")] for mistake in test["mistakes"]]
    reasons = {reason: sum(one["reason"] == reason for one in results["exclusions"]) for reason in sorted({one["reason"] for one in results["exclusions"]})}
    gate, photos = info.classifier.metrics.get("gate"), info.metrics.get("real_photographs")
    bits = "Every figure is of the full network." if gate is None else (
        f"What is released is a faster form of that network, in {'eight-bit integers' if info.classifier.bits == 8 else '32-bit numbers'}{', computed in bfloat16 where the processor can' if info.classifier.precision == 'bf16' else ''}. "
        f"It passed a gate for that: {gate['n_right'][1]} of {gate['n_images']} validation images right ({gate['n_right'][0]} in full), {gate['varied_right'][1]} of {gate['n_varied']} varied ones ({gate['varied_right'][0]} in full), "
        f"{gate['megabytes'][1]:.1f} MB instead of {gate['megabytes'][0]:.1f}, and {gate['milliseconds'][1]:.1f} ms instead of {gate['milliseconds'][0]:.1f} on one thread. On test it is right on {info.classifier.metrics['test']['n_correct']}, the full one on {test['n_correct']}.")
    beyond = f"On {photos['photographs']} real photographs of tables and floors it finds and reads {percent_with_interval(photos)} of {photos['n']} cards. " if photos else ""
    settings = [[f"`{name}`", f"`{value}`"] for name, value in released["settings"].items()]
    text = (REPORTS / "template.md").read_text(encoding="utf-8")
    filled = text.format(
        arch=released["arch"], machine=released["machine"], precision=released["precision"], memory=f"{max(run['peak_memory_gb'] for run in runs if run is released or run['run'] in parents(released)):.1f}",
        n_train=f"{results['counts']['train']:,}", n_kept=f"{released['data']['counts']['train']:,}", n_valid=results["counts"]["valid"], n_test=results["counts"]["test"], checksum=results["data_checksum"][:16],
        runs=table(["run", "network", "starts from", "epochs", "judged at", "right on valid", "valid, varied as in training", "right on test", "minutes"], chosen),
        measured=table(["images", "right", "accuracy (95 % interval)", "macro-F1", "calibration error", "NLL"], measured),
        mistakes=table(["image", "label", "answer", "probability", "what it shows"], mistakes) if mistakes else "There is none.", seeds=told_by_seed(runs),
        temperature=f"{info.classifier.temperature:.3f}", threshold=f"{info.classifier.thresholds['rejection']:.3f}", bits=bits, beyond=beyond,
                left_out=", ".join(f"{count} {reason}" for reason, count in reasons.items()), n_left_out=len(results["exclusions"]), leaking_test=results["leaking"]["test"], leaking_valid=results["leaking"]["valid"],
        one_image=f"{100 / results['counts']['test']:.2f}", audit=table(["finding", "count"], [[name.replace("_", " "), count] for name, count in audit.items()]),
        settings=table(["setting", "value"], settings),
    )
    (REPORTS / "README.md").write_text(filled, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="names of finished runs under outputs/, to read results from; the released one is among them")
    names = parser.parse_args().runs
    if names:
        released, outputs = read_bundle(released_bundle()), checkout() / "outputs"
        if released.name in names:
            earlier = parents({"settings": released.classifier.training["settings"]})
            if len(earlier) > 1:
                keep_record(outputs / earlier[0], "real_run.ipynb", f"# A run of the released network\n\n> The executed notebook of the first of the {len(earlier)} runs whose mean is the network that reads cards, {earlier[0]}: real images in, a tested bundle out.")
                keep_record(outputs / released.name, "mean_run.ipynb", f"# The mean of the runs\n\n> The executed notebook that made and judged the network that reads cards, {released.name}, the mean of {len(earlier)} that differ in their seed.")
            else:
                keep_record(outputs / released.name, "real_run.ipynb", f"# The released run\n\n> The executed notebook of the run that made the network that reads cards, {released.name}: real images in, a tested bundle out.")
        if released.detector and (outputs / released.detector.run).is_dir():
            keep_record(outputs / released.detector.run, "detector_run.ipynb", f"# The detector's run\n\n> The executed notebook of the run that made the network that finds cards, {released.detector.run}: composed photographs in, corners out.")
        RESULTS.write_text(json.dumps(collect(names), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(json.loads(RESULTS.read_text(encoding="utf-8")))
    print(f"written: {(REPORTS / 'README.md').relative_to(find_checkout() or REPORTS)}")
