"Fails when card_classifier/ is not exactly what the notebooks export."

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def is_same(ours: Path, fresh: Path) -> bool:
    "Whether both are there with the same text; lines may end as the system likes them."
    return ours.is_file() and fresh.is_file() and ours.read_text(encoding="utf-8") == fresh.read_text(encoding="utf-8")


def modules(package: Path) -> set[Path]:
    "The Python files of a package, relative to it."
    return {path.relative_to(package) for path in package.rglob("*.py")}


def differences(root: Path = ROOT) -> list[str]:
    "The files that differ between the package and a fresh export of its notebooks."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        copy.mkdir()
        for name in ("nbs", "settings.ini", "card_classifier"):
            source = root / name
            ignore = shutil.ignore_patterns("__pycache__", "released", ".ipynb_checkpoints")
            shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
        for module in (copy / "card_classifier").rglob("[!_]*.py"):
            module.unlink()
        exporter = Path(sys.executable).with_name("nbdev_export")
        subprocess.run([exporter], cwd=copy, check=True, env=os.environ | {"PYTHONPATH": str(copy)})
        ours, fresh = root / "card_classifier", copy / "card_classifier"
        both = modules(ours) | modules(fresh)
        return sorted(path.as_posix() for path in both if not is_same(ours / path, fresh / path))


if __name__ == "__main__":
    different = differences()
    for name in different:
        print(f"card_classifier/{name} differs from its notebook")
    if different:
        sys.exit("Edit the notebook, not the module; then run nbdev_export and commit both.")
    print("card_classifier/ is exactly what the notebooks export")
