"""Makes the report's figures, and its appendix measured.md from the numbers in results.json.

`report.py check` says what the answers in README.md lack, `report.py html` makes a page of them.
With --runs it reads those numbers from finished runs first, with --evaluated those of `card-classifier evaluate`.
"""
import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
from matplotlib.figure import Figure
from nbdev.clean import nbdev_clean

from card_classifier.bundle import BundleInfo, NetworkInfo, read_bundle, released_bundle
from card_classifier.data.shards import open_shards
from card_classifier.evaluation.metrics import percent_with_interval, without_tables
from card_classifier.evaluation.plots import (
    new_figure, plot_confusion, plot_per_class, plot_reliability, style_axis,
)
from card_classifier.configuration import checkout, find_checkout

matplotlib.use("Agg")
REPORTS = Path(__file__).resolve().parent
RESULTS = REPORTS / "results.json"
FIGURES = REPORTS / "figures"
KEPT = ("run", "arch", "weights", "machine", "precision", "minutes", "history", "temperature", "data", "peak_memory_gb")
SHOWN = {  # What somebody sees who looks at the test images that were answered wrongly
    "test/five of clubs/3.jpg": "golden pips on black, a face drawn in lines between them; the index is an ornate 5",
    "test/joker/1.jpg": "the photograph of a face between two words JOKER: no other joker is a photograph",
    "test/queen of clubs/4.jpg": "a queen in black outlines alone, without colour",
    "test/six of clubs/1.jpg": "a drawn figure that holds this very card; no six pips anywhere, golden at the index",
    "test/ten of diamonds/2.jpg": "a rendered card, tilted and cut at the bottom: eight pips are whole",
    "test/two of spades/2.jpg": "one large white pip and the figure 2 on brown: by its pips an ace",
}
RECORDS = {  # Pages of the logbook: name, title, and what it is the record of
    "run": ("real_run.ipynb", "A run of the classifier",
            "The executed notebook of the run {run}, one of those whose mean is the released classifier"),
    "only": ("real_run.ipynb", "The classifier's run",
             "The executed notebook of the run that made the classifier, {run}"),
    "mean": ("mean_run.ipynb", "The mean of the runs",
             "The executed notebook that made and judged the released classifier, {run}, the mean of runs that differ "
             "in their seed"),
    "detector": ("detector_run.ipynb", "The detector's run",
                 "The executed notebook of the run that made the detector, {run}: photographs in, corners out"),
}


def run_results(run: Path) -> dict:
    "What the report needs of one run."
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    bundle = json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    classifier = bundle["networks"]["classifier"]
    results = {name: metrics[name] for name in KEPT}
    if "valid_varied" in metrics:
        results["valid_varied"] = metrics["valid_varied"]
    results["valid"] = without_tables(metrics["valid"])
    if "test" in metrics:
        results["test"] = metrics["test"]
    return results | {
        "settings": classifier["training"]["settings"],
        "rejection_threshold": classifier["thresholds"]["rejection"],
        "bundle_mb": sum(file.stat().st_size for file in (run / "bundle").iterdir()) / 1e6,
    }


def earlier_results() -> dict:
    "What was collected before, or nothing."
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": []}


def collect_runs(names: list[str]) -> dict:
    "The results of runs, and of the audit of the data they saw. A run that is gone keeps its results from before."
    root = checkout()
    shards = open_shards(root / "data")
    summary = json.loads((root / "data" / "dataset.json").read_text(encoding="utf-8"))["audit"]
    earlier = {run["run"]: run for run in earlier_results()["runs"]}
    folders = {name: root / "outputs" / name for name in names}
    return {
        "runs": [run_results(folder) if folder.is_dir() else earlier[name] for name, folder in folders.items()],
        "audit": summary["summary"],
        "exclusions": [{"path": one.path, "reason": one.reason, "other": one.other} for one in shards.exclusions],
        "leaking": {split: len(shards.leaking(split)) for split in ("valid", "test")},
        "counts": shards.counts,
        "data_checksum": shards.checksum,
    }


def collect_whole_way(released: BundleInfo) -> dict:
    "What `card-classifier evaluate` measured of the released bundle, from file to answer."
    folder, results = checkout() / "outputs" / "evaluations", {"model_version": released.model_version}
    for split in ("test", "valid"):
        measured = json.loads((folder / f"{released.name}-{split}" / "metrics.json").read_text(encoding="utf-8"))
        if measured["model_version"] != released.model_version:
            raise SystemExit(f"{split} was measured for another model: card-classifier evaluate --split {split}")
        results[split] = measured["whole_way"]
    return results


def keep_record(run: Path, kind: str) -> None:
    "The executed notebook of a run as a page of the logbook, without what only its own machine needs."
    page, title, about = RECORDS[kind]
    notebook = nbformat.read(run / "train.ipynb", 4)
    notebook.metadata.pop("papermill", None)
    notebook.cells[0].source = f"# {title}\n\n> {about.format(run=run.name)}."
    kept = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in kept:
        is_parameters = "parameters" in cell.metadata.get("tags", [])
        cell.metadata = nbformat.NotebookNode({"tags": ["parameters"]} if is_parameters else {})
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = None
    notebook.cells = kept
    file = checkout() / "nbs" / "logbook" / page
    nbformat.write(notebook, file)
    nbdev_clean(fname=file)


def keep_records(released: BundleInfo, names: list[str]) -> None:
    "The pages of the runs that made the released networks, as far as these runs are on this machine."
    outputs, earlier = checkout() / "outputs", parents({"settings": released.classifier.training["settings"]})
    if released.name in names and len(earlier) > 1:
        keep_record(outputs / earlier[0], "run")
        keep_record(outputs / released.name, "mean")
    elif released.name in names:
        keep_record(outputs / released.name, "only")
    if released.detector and (outputs / released.detector.run).is_dir():
        keep_record(outputs / released.detector.run, "detector")


def parents(run: dict) -> list[str]:
    "The runs whose networks a run started from."
    return [name for name in run["settings"].get("model.start_from", "").split("+") if name]


def experiment(run: dict) -> str:
    "The experiment that a run's name tells."
    return run["run"].split("-")[2]


def start_of(run: dict) -> str:
    "Where a run's network came from, in a few words."
    earlier = [name[9:15] for name in parents(run)]
    if not earlier:
        return run["weights"].split(" from ")[0]
    return f"{'mean of runs' if len(earlier) > 1 else 'run'} {', '.join(earlier)}"


def size_of(run: dict) -> str:
    "How many epochs a run took, and how large its training images were."
    settings = run["settings"]
    n_epochs, n_first = settings["train.epochs"], settings["train.start_epochs"]
    if not n_epochs:
        return "none"
    first = f"{n_first} at {settings['train.start_size']} px, then " if n_first else ""
    return f"{first}{n_epochs - n_first} at {settings['train.size']} px"


def described_by_seed(runs: list[dict]) -> str:
    "What runs that differ in nothing but their seed show of chance."
    alike = defaultdict(list)
    for run in runs:
        settings = {name: value for name, value in run["settings"].items() if name != "train.seed"}
        alike[json.dumps(settings, sort_keys=True)].append(run)
    lines = []
    for group in alike.values():
        if len(group) < 2:
            continue
        varied = [run["valid_varied"] for run in group if "valid_varied" in run]
        figures = {
            "valid": [run["valid"]["n_correct"] for run in group],
            "test": [run["test"]["n_correct"] for run in group if "test" in run],
            "varied valid, %": [round(100 * one["accuracy"], 2) for one in varied],
        }
        parts = [f"{name}: {', '.join(map(str, values))}, mean {np.mean(values):.2f}, standard deviation "
                 f"{np.std(values, ddof=1):.2f}" for name, values in figures.items() if len(values) > 1]
        names = ", ".join(run["run"][9:15] for run in group)
        lines.append(
            f"The runs {names} differ in their seed alone, which decides the rendered decks, the scenes and all "
            f"variation. Images right, of {group[0]['valid']['n']} each: {'; '.join(parts)}.")
    return "\n\n".join(lines)


def save(figure: Figure, name: str) -> None:
    "Keeps a figure."
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=90, bbox_inches="tight", metadata={"Software": None})


def plot_curves(runs: list[dict]) -> Figure:
    "Accuracy on valid by minutes of training, one line a run."
    figure = new_figure(7, 3.4)
    axis = figure.subplots()
    for run in runs:
        if run["history"]:
            minutes = np.cumsum([row["seconds"] for row in run["history"]]) / 60
            accuracy = [100 * row["accuracy"] for row in run["history"]]
            label = f"{run['run'][9:15]} {experiment(run)} {run['arch']}, {run['minutes']:.0f} min"
            axis.plot(minutes, accuracy, marker=".", markersize=4, label=label)
    axis.set(xlabel="minutes of training", ylim=(0, 101))
    style_axis(axis, "accuracy on valid, %")
    axis.legend(fontsize=7, frameon=False)
    return figure


def row(cells: list) -> str:
    "A line of a Markdown table."
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(columns: list[str], rows: list[list]) -> str:
    "A Markdown table."
    return "\n".join([row(columns), row(["---"] * len(columns)), *map(row, rows)])


def count(figures: dict) -> str:
    "Such as 261 of 265."
    return f"{figures['n_correct']} of {figures['n']}"


def whole_way_table(whole_way: dict) -> str:
    "What a user gets."
    rows = []
    for split in ("test", "valid"):
        figures = whole_way[split]
        for label, part in ((f"{split}, as published", figures),
                            (f"{split}, without leaking images", figures["without_leaking"])):
            rejected = figures["n_rejected"] if part is figures else ""
            rows.append([label, count(part), percent_with_interval(part), rejected])
    return table(["files", "right", "accuracy (95 % interval)", "rejected, counted as wrong"], rows)


def classifier_table(metrics: dict) -> str:
    "What the classifier alone says of whole images."
    rows = []
    for split in ("test", "valid"):
        for label, part in ((f"{split}, as published", metrics[split]),
                            (f"{split}, without leaking images", metrics[split]["without_leaking"])):
            figures = [f"{part[name]:.4f}" for name in ("macro_f1", "ece", "nll")]
            rows.append([label, count(part), percent_with_interval(part), *figures])
    return table(["images", "right", "accuracy (95 % interval)", "macro F1", "calibration error", "NLL"], rows)


def mistakes_table(mistakes: list[dict]) -> str:
    "What was answered wrongly, and what the image shows."
    rows = []
    for one in mistakes:
        answer = one["predicted"] + (", rejected" if one.get("is_rejected") else "")
        percent = f"{100 * one['probability']:.0f} %"
        rows.append([f"`{one['path']}`", one["target"], answer, percent, SHOWN.get(one["path"], "")])
    return table(["image", "label", "answer", "probability", "what it shows"], rows) if rows else "There is none."


def runs_table(runs: list[dict], released: str) -> str:
    "How the classifier's runs went on from each other, and how good each is."
    rows = []
    for run in runs:
        varied = run.get("valid_varied")
        rows.append([
            f"{run['run'][9:15]} {experiment(run)}" + (" (released)" if run["run"] == released else ""),
            run["arch"], start_of(run), size_of(run), f"{run['settings']['evaluation.size']} px", count(run["valid"]),
            f"{100 * varied['accuracy']:.1f} %, NLL {varied['nll']:.3f}" if varied else "not measured",
            count(run["test"]) if "test" in run else "not opened", f"{run['minutes']:.0f}"])
    return table(["run", "network", "starts from", "epochs", "judged at", "right on valid",
                  "valid, varied as in training", "right on test", "minutes"], rows)


def chain_table(network: NetworkInfo) -> str:
    "A network's run and its ancestors, from the latest to public weights."
    runs = [{"run": network.run, **network.training}, *network.ancestors]
    rows = [[f"`{run['run']}`", run["weights"] or "unknown", f"{run['minutes']:.0f}" if run["minutes"] else "unknown"]
            for run in runs]
    return table(["run", "started from", "minutes"], rows)


def quantised(classifier: NetworkInfo, full_test: dict) -> str:
    "What quantising the classifier cost and brought."
    gate = classifier.metrics.get("gate")
    if gate is None:
        return "Every figure is of the full network."
    form = "eight-bit integers" if classifier.bits == 8 else "32-bit numbers"
    precision = ", computed in bfloat16 where the processor can" if classifier.precision == "bf16" else ""
    (full, right), (varied_full, varied), (mb_full, mb), (ms_full, ms) = (
        gate[name] for name in ("n_right", "varied_right", "megabytes", "milliseconds"))
    return (
        f"The released classifier is quantised: it computes in {form}{precision}. It passed a gate for that: {right} "
        f"of {gate['n_images']} validation images right ({full} in full), {varied} of {gate['n_varied']} varied ones "
        f"({varied_full} in full), {mb:.1f} MB instead of {mb_full:.1f}, and {ms:.1f} ms instead of {ms_full:.1f} "
        f"on one thread. On test it is right on {classifier.metrics['test']['n_correct']}, the full one on "
        f"{full_test['n_correct']}.")


def report_text(results: dict, info: BundleInfo) -> dict[str, str]:
    "What the template's places are filled with."
    runs, counts, exclusions = results["runs"], results["counts"], results["exclusions"]
    released = next(run for run in runs if run["run"] == info.classifier.run)
    chosen = [run for run in runs if run is released or run["run"] in parents(released)]
    photos, robustness = info.metrics["real_photographs"], info.classifier.metrics["robustness"]
    reasons = sorted({one["reason"] for one in exclusions})
    left_out = [f"{sum(one['reason'] == reason for one in exclusions)} {reason}" for reason in reasons]
    settings = [[f"`{name}`", f"`{value}`"] for name, value in released["settings"].items()]
    return {
        "arch": released["arch"], "machine": released["machine"], "precision": released["precision"],
        "memory": f"{max(run['peak_memory_gb'] for run in chosen):.1f}", "n_train": f"{counts['train']:,}",
        "n_kept": f"{released['data']['counts']['train']:,}", "n_valid": counts["valid"], "n_test": counts["test"],
        "checksum": results["data_checksum"][:16], "one_image": f"{100 / counts['test']:.2f}",
        "whole_way": whole_way_table(results["whole_way"]), "measured": classifier_table(info.classifier.metrics),
        "whole_test": count(results["whole_way"]["test"]), "alone_test": count(info.classifier.metrics["test"]),
        "runs": runs_table(runs, info.classifier.run), "seeds": described_by_seed(runs),
        "detector_runs": chain_table(info.detector), "bits": quantised(info.classifier, released["test"]),
        "whole_mistakes": mistakes_table(results["whole_way"]["test"]["mistakes"]),
        "mistakes": mistakes_table(released["test"]["mistakes"]),
        "temperature": f"{info.classifier.temperature:.3f}",
        "threshold": f"{info.classifier.thresholds['rejection']:.3f}",
        "photos": f"{photos['photographs']} real photographs of tables and floors it finds and reads {count(photos)} "
                  f"marked cards, {percent_with_interval(photos)}",
        "robustness": f"{robustness['mean']:.1%}", "relative": f"{robustness['relative']:.1%}",
        "left_out": ", ".join(left_out), "n_left_out": len(exclusions),
        "leaking_test": results["leaking"]["test"], "leaking_valid": results["leaking"]["valid"],
        "audit": table(["finding", "count"], [[name.replace("_", " "), n] for name, n in results["audit"].items()]),
        "settings": table(["setting", "value"], settings),
    }


def check_results(results: dict, info: BundleInfo) -> None:
    "Ends with a message unless the results are about the released bundle."
    whole_way = results.get("whole_way", {})
    if whole_way.get("model_version") != info.model_version:
        raise SystemExit("results.json is about another model: card-classifier evaluate, then report.py --evaluated")
    for split in ("test", "valid"):
        if without_tables(whole_way[split]) != info.metrics["whole_way"][split]:
            raise SystemExit(f"results.json and bundle.json disagree about {split}: report.py --evaluated")


def write_report(results: dict) -> None:
    "measured.md and its figures."
    info = read_bundle(released_bundle())
    check_results(results, info)
    test = next(run for run in results["runs"] if run["run"] == info.classifier.run)["test"]
    save(plot_curves(results["runs"]), "learning-curves")
    save(plot_confusion(test), "confusion")
    save(plot_per_class(test), "per-class")
    save(plot_reliability(test), "reliability")
    template = (REPORTS / "template.md").read_text(encoding="utf-8")
    text = template.format(**report_text(results, info))
    (REPORTS / "measured.md").write_text(text, encoding="utf-8", newline="\n")


def check_answers() -> None:
    "Ends with a line for each fault of the answers."
    from answers import REPORT, faults

    found = faults(REPORT.read_text(encoding="utf-8"))
    if found:
        raise SystemExit("\n".join(f"{REPORT.name}: {fault}" for fault in found))
    print(f"{REPORT.name}: every answer is within its limits")


def write_page(file: Path) -> None:
    "Makes a page of the answers."
    from answers import REPORT, page

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(REPORT.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {file}")


def main() -> None:
    "What is asked for on the command line."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("make", "check", "html"), default="make")
    parser.add_argument("--to", type=Path, default=Path("outputs/report.html"), help="where html writes the page")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN",
                        help="finished runs under outputs/ to read results from, the released one among them")
    parser.add_argument("--evaluated", action="store_true",
                        help="read what card-classifier evaluate measured of the released bundle on test and on valid")
    asked = parser.parse_args()
    if asked.what != "make":
        check_answers() if asked.what == "check" else write_page(asked.to)
        return
    released, results = read_bundle(released_bundle()), earlier_results()
    if asked.runs:
        keep_records(released, asked.runs)
        results |= collect_runs(asked.runs)
    if asked.evaluated:
        results["whole_way"] = collect_whole_way(released)
    if asked.runs or asked.evaluated:
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(results)
    from drawings import draw_all

    draw_all(FIGURES)
    print(f"written: {(REPORTS / 'measured.md').relative_to(find_checkout() or REPORTS)}")


if __name__ == "__main__":
    main()
