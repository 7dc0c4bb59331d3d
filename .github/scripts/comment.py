"""Comments on a pull request what another workflow measured: `python3 -I .github/scripts/comment.py`.

That workflow ran code of the pull request, so its artifact is a file that a stranger wrote. Nothing of it is run or
unpacked to disk; its size is looked at before it is fetched and again while it is read; the pull request that it names
must be open, and its newest commit the one that was measured; each word is quoted so that Markdown, HTML, links,
mentions and references in it stay text. Needs nothing beyond the standard library.
"""

import io
import json
import os
import re
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

ARTIFACT = "report"
FILE = "report.json"
MAX_BYTES = 200_000
MAX_TABLES, MAX_ROWS, MAX_COLUMNS, MAX_NOTES, MAX_CHARACTERS = 8, 70, 8, 20, 200
TITLES = {"training": "Training on the rendered deck", "data": "Data set"}
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,%()+–−-]*|[+−-]?[0-9][0-9 .,%()+–−-]*|")
REFERENCE = re.compile(r"gh-\d|www\.|[0-9a-f]{7}", re.IGNORECASE)  # What GitHub makes links of even in plain words


class Refused(Exception):
    "Why nothing is written."


def quoted(text: object) -> str:
    "A word of a stranger for a table of a comment: as it is if it is harmless, else as code with every sign encoded."
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        raise Refused("a cell is neither text nor a number")
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
    if len(line) > MAX_CHARACTERS:
        line = line[: MAX_CHARACTERS - 1] + "…"
    if PLAIN.fullmatch(line) and not REFERENCE.search(line):
        return line
    signs = (sign if sign == " " or (sign.isascii() and sign.isalnum()) else f"&#{ord(sign)};" for sign in line)
    return f"<code>{''.join(signs)}</code>"


def listed(value: object, most: int, what: str) -> list:
    "A list of at most so many things. Raises `Refused`."
    if not isinstance(value, list) or len(value) > most:
        raise Refused(f"{what} should be a list of at most {most}")
    return value


def table_lines(table: object) -> list[str]:
    "A table as Markdown. Raises `Refused` if it has another shape."
    if not isinstance(table, dict) or not {"title", "columns", "rows"} <= table.keys():
        raise Refused("a table has no title, columns or rows")
    columns = [quoted(name) for name in listed(table["columns"], MAX_COLUMNS, "columns")]
    rows = [listed(row, len(columns), "a row") for row in listed(table["rows"], MAX_ROWS, "rows")]
    cells = [[quoted(cell) for cell in row] + [""] * (len(columns) - len(row)) for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *cells]]
    return ["", f"**{quoted(table['title'])}**", "", *lines]


def marker(kind: str) -> str:
    "What a comment of ours is found again by."
    return f"<!-- card-classifier report: {kind} -->"


def comment_text(report: dict, commit: str) -> str:
    "The comment. Raises `Refused` if the report has another shape than it should."
    lines = [marker(report["kind"]), f"### {TITLES[report['kind']]}", "", f"Measured at {commit}."]
    for table in listed(report.get("tables"), MAX_TABLES, "tables"):
        lines += table_lines(table)
    lines += ["", *(f"- {quoted(note)}" for note in listed(report.get("notes", []), MAX_NOTES, "notes"))]
    return "\n".join(lines).rstrip() + "\n"


def read_report(archive: bytes) -> dict:
    "The report in the artifact's zip file. Raises `Refused` for anything else."
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files, files.open(FILE) as content:
            text = content.read(MAX_BYTES + 1)  # No more, whatever size the archive names
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, OSError) as problem:
        raise Refused(f"the artifact holds no {FILE}") from problem
    if len(text) > MAX_BYTES:
        raise Refused(f"{FILE} is larger than {MAX_BYTES} bytes")
    try:
        report = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise Refused(f"{FILE} is no JSON") from problem
    if not isinstance(report, dict) or report.get("kind") not in [*TITLES]:
        raise Refused(f"{FILE} is not a report of a known kind")
    number = report.get("pull_request")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 10**9:
        raise Refused("the report names no pull request")
    return report


class GitHub:
    "The few questions that are asked of GitHub's API."

    def __init__(self, repository: str):
        self.api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
        self.repository = repository

    def ask(self, path: str, method: str = "GET", body: dict | None = None, most: int = 10_000_000) -> bytes:
        "An answer of the API, or of the storage that it points to, which the token is never sent to."
        address = f"{self.api}/repos/{self.repository}/{path}"
        request = urllib.request.Request(address, json.dumps(body).encode() if body else None, method=method)
        request.add_header("Accept", "application/vnd.github+json")
        request.add_unredirected_header("Authorization", f"Bearer {os.environ['GITHUB_TOKEN']}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read(most + 1)
        if len(content) > most:
            raise Refused(f"the answer to {path} is larger than {most} bytes")
        return content

    def artifact(self, run: int) -> bytes | None:
        "The report's zip file, if the run has one. Raises `Refused` if it is too large."
        found = json.loads(self.ask(f"actions/runs/{run}/artifacts?name={ARTIFACT}"))["artifacts"]
        if not found:
            return None
        if found[0]["size_in_bytes"] > MAX_BYTES:
            raise Refused(f"the artifact has {found[0]['size_in_bytes']} bytes, more than {MAX_BYTES}")
        return self.ask(f"actions/artifacts/{int(found[0]['id'])}/zip", most=MAX_BYTES)

    def check_pull_request(self, number: int, run: dict) -> None:
        "Raises `Refused` unless the run measured the newest commit of this open pull request."
        try:
            pull_request = json.loads(self.ask(f"pulls/{number}"))
        except urllib.error.HTTPError as problem:
            raise Refused(f"there is no pull request {number}") from problem
        head = pull_request["head"]
        of_run = (run["head_sha"], (run.get("head_repository") or {}).get("full_name"))
        if (head["sha"], (head["repo"] or {}).get("full_name")) != of_run:
            raise Refused(f"the run did not measure the newest commit of pull request {number}")
        if pull_request["state"] != "open":
            raise Refused(f"pull request {number} is closed")

    def write(self, number: int, kind: str, text: str) -> str:
        "Replaces our comment of this kind, or makes the first one."
        for page in range(1, 11):
            comments = json.loads(self.ask(f"issues/{number}/comments?per_page=100&page={page}"))
            for comment in comments:
                is_ours = comment["user"]["login"] == "github-actions[bot]" and comment["user"]["type"] == "Bot"
                if is_ours and comment["body"].startswith(marker(kind)):
                    self.ask(f"issues/comments/{int(comment['id'])}", "PATCH", {"body": text})
                    return "replaced the comment"
            if len(comments) < 100:
                break
        self.ask(f"issues/{number}/comments", "POST", {"body": text})
        return "commented"


def main() -> int:
    "Comments; the exit code is 1 if the artifact is not what it should be."
    run = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))["workflow_run"]
    github = GitHub(os.environ["GITHUB_REPOSITORY"])
    try:
        archive = github.artifact(int(run["id"]))
        if archive is None:
            print("the run left no report: nothing to comment")
            return 0
        report = read_report(archive)
        if report["kind"] != run["name"]:
            raise Refused("the report is of another kind than the workflow")
        github.check_pull_request(report["pull_request"], run)
        text = comment_text(report, run["head_sha"])
    except Refused as reason:
        print(f"no comment: {reason}", file=sys.stderr)
        return 1
    print(github.write(report["pull_request"], report["kind"], text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
