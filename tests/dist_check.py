"""Looks at what is to be released: `make dist` builds it into dist/ and calls this.

One wheel and one source distribution of the version in `settings.ini`; both hold the package and its released bundle,
the source distribution all that it can be built from, and neither holds data, notebooks' results or secrets.
"""

import re
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {f"card_classifier/{name}" for name in ("__init__.py", "released/bundle.json", "released/classifier.onnx")}
SOURCES = {"setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"}
UNWANTED = re.compile(
    r"\.(ipynb|jpg|tar|zip|pt|pth|pkl|pem|key|safetensors)$|(^|/)(\.git|\.venv|outputs|data\.dvc)(/|$)")
MAX_MEGABYTES = 40


def problems(folder: Path, version: str) -> list[str]:
    "What is wrong with it; empty if nothing is."
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if [len(wheels), len(archives)] != [1, 1]:
        return [f"{folder} should hold one wheel and one source distribution, not {len(wheels)} and {len(archives)}"]
    with zipfile.ZipFile(wheels[0]) as wheel, tarfile.open(archives[0]) as archive:
        in_wheel = set(wheel.namelist())
        in_archive = {name.partition("/")[2] for name in archive.getnames()}
        described = next(name for name in in_wheel if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(described))
    found = [f"the wheel lacks {name}" for name in sorted(NEEDED - in_wheel)]
    found += [f"the source distribution lacks {name}" for name in sorted((NEEDED | SOURCES) - in_archive)]
    found += [f"{name} should not be in it" for name in sorted(in_wheel | in_archive) if UNWANTED.search(name)]
    if metadata["Version"] != version:
        found.append(f"it has version {metadata['Version']}, settings.ini {version}")
    if not metadata.get_payload().strip() or metadata["Description-Content-Type"] != "text/markdown":
        found.append("PyPI's page would show no README")
    megabytes = max(wheels[0].stat().st_size, archives[0].stat().st_size) / 1e6
    if megabytes > MAX_MEGABYTES:
        found.append(f"it has {megabytes:.0f} MB, more than {MAX_MEGABYTES}")
    return found


if __name__ == "__main__":
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    found = problems(Path.cwd() / "dist", re.search(r"^version = (\S+)$", settings, re.MULTILINE)[1])
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        sys.exit(1)
    for file in sorted((Path.cwd() / "dist").iterdir()):
        print(f"dist/{file.name}: {file.stat().st_size / 1e6:.1f} MB")
