"Reads the report, checks each answer against its limits, and makes a page of it."
import base64
import re
from dataclasses import dataclass
from pathlib import Path

import mistune

REPORTS = Path(__file__).resolve().parent
REPORT, STYLE = REPORTS / "README.md", REPORTS / "report.css"
NO_LIMIT = (1, 10_000)
WORDS = {  # Question to the fewest and most words of its answer; all others have no limit
    3: (100, 200), 4: (100, 200), 5: (100, 200), 6: (100, 200), 7: (50, 100), 8: (100, 200), 9: (100, 200),
    10: (100, 200), 11: (200, 300), 12: (50, 100), 13: (100, 200), 14: (200, 300), 15: (100, 200), 16: (100, 200),
    17: (50, 200), 18: (100, 200), 22: (100, 200), 23: (100, 200), 24: (100, 200), 25: (100, 200), 26: (100, 200),
    27: (100, 200), 28: (0, 200), 29: (200, 400), 30: (200, 400), 31: (50, 300),
}
PICTURES = {14: (1, 3), 19: (1, 2), 20: (1, 2), 21: (1, 2), 29: (1, 10)}  # Question to the fewest and most pictures
N_QUESTIONS = 31
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<file>[^)\s]+)\)")
LINK = re.compile(r"\]\((?!https?:|#)(?P<file>[^)\s#]+)")


@dataclass(frozen=True)
class Answer:
    "One question's answer."
    number: int
    question: str
    text: str  # Markdown

    @property
    def n_words(self) -> int:
        "Words, without pictures and where links lead."
        plain = re.sub(r"\]\([^)]*\)", "]", PICTURE.sub("", self.text))
        return len(re.findall(r"\S*\w\S*", plain))

    @property
    def pictures(self) -> list[str]:
        "Files of the pictures."
        return [found["file"] for found in PICTURE.finditer(self.text)]


def read_answers(text: str) -> list[Answer]:
    "The answers in the order in which they stand. Raises `ValueError` for one that has no place for its answer."
    answers = []
    for found in re.finditer(r"^### Question (\d+)\s*\n(.*?)(?=^##|\Z)", text, re.M | re.S):
        question, mark, answer = found[2].partition("> Answer:")
        if not mark:
            raise ValueError(f"question {found[1]}: there is no line '> Answer:'")
        quoted = " ".join(line.lstrip("> ") for line in question.splitlines() if line.startswith(">"))
        answers.append(Answer(int(found[1]), quoted.strip(), answer.strip()))
    return answers


def faults(text: str, folder: Path = REPORTS) -> list[str]:
    "What is missing, too short, too long or without its picture; a line each."
    try:
        answers = read_answers(text)
    except ValueError as error:
        return [str(error)]
    numbers, found = [one.number for one in answers], []
    if numbers != list(range(1, N_QUESTIONS + 1)):
        missing = sorted(set(range(1, N_QUESTIONS + 1)) - set(numbers))
        found.append(f"questions must be 1 to {N_QUESTIONS}, each once and in order"
                     + (f"; missing: {', '.join(map(str, missing))}" if missing else ""))
    for one in answers:
        if not one.question:
            found.append(f"question {one.number}: the question itself is not told, in a block quote")
        fewest, most = WORDS.get(one.number, NO_LIMIT)
        if not fewest <= one.n_words <= most:
            is_short = one.n_words < fewest
            found.append(f"question {one.number}: {one.n_words} words, {'fewer' if is_short else 'more'} than "
                         f"{fewest if is_short else most}")
        least, many = PICTURES.get(one.number, (0, 10))
        if not least <= len(one.pictures) <= many:
            found.append(f"question {one.number}: {len(one.pictures)} pictures, asked for are {least} to {many}")
    for picture in PICTURE.finditer(text):
        if not picture["alt"].strip():
            found.append(f"{picture['file']}: a picture without words for those who can't see it")
        if not re.fullmatch(r"figures/[\w-]+\.(png|jpg)", picture["file"]):
            found.append(f"{picture['file']}: pictures lie in figures/, as png or jpg")
    for name in sorted({link["file"] for link in LINK.finditer(text)}):
        if not (folder / name).exists():
            found.append(f"{name}: there is no such file")
    return found


def page(text: str, folder: Path = REPORTS) -> str:
    "The report as one HTML file, its pictures within."
    convert = mistune.create_markdown(escape=True, plugins=["table", "task_lists"])

    def embedded(found: re.Match) -> str:
        "A picture as a data URL."
        file = folder / found[1]
        kind = "jpeg" if file.suffix == ".jpg" else "png"
        return f'src="data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"'

    body = re.sub(r'src="(figures/[^"]+)"', embedded, convert(text))
    title = re.search(r"^# (.+)", text, re.M)[1]
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n'
            f"{STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>\n{body}</main></body></html>\n")
