"""Whether a tag may become a release: `make changelog-check TAG=v1.2.0`.

The tag, `settings.ini` and the package name one version; the changelog has a section for it that says something, and
nothing is left under Unreleased.
"""

import os
import re
import sys
from pathlib import Path


def sections(changelog: str) -> dict[str, str]:
    "The text of each section of the second level, by the first word of its heading."
    parts = re.split(r"^## +(.+)$", changelog, flags=re.MULTILINE)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {heading.split()[0].strip("[]"): text.strip() for heading, text in pairs}


def problems(tag: str, root: Path) -> list[str]:
    "Why it may not; empty if it may."
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        return [f"the tag should be v and a version, such as v1.2.0, not {tag!r}"]
    version = tag.removeprefix("v")
    settings = re.search(r"^version = (\S+)$", (root / "settings.ini").read_text(encoding="utf-8"), re.MULTILINE)[1]
    package = (root / "card_classifier" / "__init__.py").read_text(encoding="utf-8")
    exported = re.search(r'^__version__ = "(\S+)"$', package, re.MULTILINE)[1]
    found = sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    answers = []
    if settings != version:
        answers.append(f"settings.ini has version {settings}, not {version}")
    if exported != version:
        answers.append(f"the package has version {exported}, not {version}: nbdev_export")
    if not found.get(version):
        answers.append(f"CHANGELOG.md has nothing about {version}")
    if found.get("Unreleased"):
        answers.append(f"CHANGELOG.md still has something under Unreleased: it belongs under {version}")
    return answers


if __name__ == "__main__":
    tag = os.environ.get("TAG", "")
    answers = problems(tag, Path.cwd())
    for answer in answers:
        print(f"error: {answer}", file=sys.stderr)
    if answers:
        sys.exit(1)
    print(f"{tag} may be released")
