"""Checks the processed docs site without Quarto: `python tests/docs_check.py [--changed]`.

Processes the notebooks as `make docs` does and then looks at every page as a reader meets it: links, anchors and
pictures lead somewhere, pictures have an alternative text, and the sidebar names every page once.
"""
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "reports"))
import site_build as site

PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


@dataclass
class Page:
    "What the checks need to know of a page."
    links: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)  # (source, alternative text)
    anchors: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)


class TagReader(HTMLParser):
    "Collects links, pictures and anchors of HTML."

    def __init__(self, page: Page):
        super().__init__()
        self.page = page

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = dict(attributes)
        if told.get("id"):
            self.page.anchors.add(told["id"])
        if tag == "a" and told.get("href"):
            self.page.links.append(told["href"])
        if tag == "img":
            is_hidden = told.get("aria-hidden") == "true" or told.get("role") == "presentation"
            is_decoration = told.get("alt") == "" and is_hidden
            self.page.pictures.append((told.get("src") or "", "decoration" if is_decoration else told.get("alt") or ""))


def anchor_of(heading: str) -> str:
    "The identifier that Pandoc gives to a heading (its `auto_identifiers`)."
    text = re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower()
    text = re.sub(r"[^\w\s.-]", "", text)
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text.strip())) or "section"


def read_markdown(text: str, page: Page) -> None:
    "Adds what a piece of Markdown shows to `page`."
    tokens = MARKDOWN.parse(text)
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[number + 1].content
            own = re.search(r"\{#([\w.-]+)[^}]*\}\s*$", heading)
            page.anchors.add(own[1] if own else anchor_of(re.sub(r"\{[^}]*\}\s*$", "", heading)))
        if token.type == "html_block" or (token.type == "fence" and token.info == "{=html}"):
            TagReader(page).feed(token.content)
        for child in token.children or []:
            if child.type == "link_open":
                page.links.append(child.attrs["href"])
            if child.type == "image":
                page.pictures.append((child.attrs["src"], child.content))
            if child.type == "html_inline":
                TagReader(page).feed(child.content)


def read_cell(cell: nbformat.NotebookNode, page: Page) -> None:
    "Adds what a cell shows to `page`."
    if cell.cell_type == "markdown":
        read_markdown(cell.source, page)
    if cell.cell_type != "code":
        return
    is_shown = not re.search(r"^#\|\s*(output:\s*false|include:\s*false|hide\b)", cell.source, re.MULTILINE)
    alternative = re.search(r"^#\|\s*fig-alt:\s*(\S.*)$", cell.source, re.MULTILINE)
    for output in cell.outputs if is_shown else []:
        data = output.get("data", {})
        if output.output_type == "error":
            page.complaints.append(f"shows an error: {output.ename}: {output.evalue}")
        if "text/html" in data or "application/javascript" in data:
            page.complaints.append("has a script: Quarto would load jQuery and require.js from another host for it")
        elif "text/markdown" in data:
            read_markdown(data["text/markdown"], page)
            signature = re.search(r"```python\n(.*?)\n```", data["text/markdown"], re.DOTALL)
            if "show_doc(" in cell.source and signature and "`" in signature[1]:
                page.complaints.append(f"raw Markdown in a signature: {signature[1].splitlines()[0]}")
        elif any(kind in data for kind in PICTURES):
            page.pictures.append(("data:", alternative[1] if alternative else ""))


@cache
def read_page(name: str) -> Page:
    "A processed page, by its path below `_proc/`."
    page, file = Page(), site.PROCESSED / name
    if file.suffix == ".ipynb":
        for cell in nbformat.read(file, 4).cells:
            read_cell(cell, page)
    else:
        read_markdown(file.read_text(encoding="utf-8").split("---", 2)[2], page)
    return page


def page_names() -> list[str]:
    "Every page of the processed site."
    files = [*site.PROCESSED.rglob("*.ipynb"), *site.PROCESSED.rglob("*.qmd")]
    return sorted(file.relative_to(site.PROCESSED).as_posix() for file in files)


def site_address() -> str:
    "Where the site is published, with a slash at its end."
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    host, base = (re.search(rf"^{name} = (.+)$", settings, re.MULTILINE)[1] for name in ("doc_host", "doc_baseurl"))
    return f"{host}{base}/"


def link_problem(link: str, name: str, names: list[str]) -> str | None:
    "Why a link of page `name` leads nowhere; None if it leads somewhere, or to another host."
    address, outputs = site_address(), {site.output_name(one): one for one in names}
    if link.startswith(site.REPOSITORY):
        path = unquote(link.removeprefix(site.REPOSITORY).partition("#")[0])
        return None if (ROOT / path).exists() else f"{path} is not in the repository"
    if link.startswith(address):
        path, _, anchor = link.removeprefix(address).partition("#")
        target = outputs.get(path or "index.html")
    elif re.match(r"[a-z]+:", link):
        return None
    else:
        path, _, anchor = link.partition("#")
        found = (site.PROCESSED / name).parent.joinpath(unquote(path)).resolve() if path else site.PROCESSED / name
        if not found.exists() or not found.is_relative_to(site.PROCESSED):
            return "there is no such file"
        target = found.relative_to(site.PROCESSED).as_posix()
    if target is None:
        return "there is no such page"
    if anchor and target in names and anchor not in read_page(target).anchors:
        return f"{target} has no heading #{anchor}"
    return None


def page_problems(name: str, names: list[str]) -> list[str]:
    "What a reader of a page would trip over."
    page = read_page(name)
    problems = [*page.complaints]
    for link in page.links:
        problem = link_problem(link, name, names)
        if problem:
            problems.append(f"link to {link}: {problem}")
    for source, alternative in page.pictures:
        if not alternative.strip():
            problems.append(f"picture without alternative text: {source[:60] or 'an output'}")
        if source and not source.startswith(("data:", "http")) and link_problem(source, name, names):
            problems.append(f"there is no picture {source}")
    return problems


def navigation_problems(names: list[str]) -> list[str]:
    "Where the sidebar, the top bar and the configuration differ from what there is."
    listed = [page for _, pages in site.sidebar_pages() for page in pages]
    problems = [f"{name} is not in the sidebar" for name in names if name not in listed]
    problems += [f"the sidebar names {name}, which does not exist" for name in listed if name not in names]
    problems += [f"the sidebar names {name} twice" for name in sorted(set(listed)) if listed.count(name) > 1]
    for title, pages in site.sidebar_pages():
        numbered = [page for page in pages if re.match(r"(.*/)?\d\d_", page)]
        if numbered != sorted(numbered):
            problems.append(f"the sidebar lists the pages of {title} in another order than their numbers: {numbered}")
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    theme = quarto["format"]["html"]["theme"]
    files = [one for looks in theme.values() for one in looks if one.endswith(".scss")]
    files += [quarto["website"][name] for name in ("favicon", "image")] + quarto["project"]["resources"]
    files += [item["href"] for item in quarto["website"]["navbar"]["left"]]
    missing = [file for file in files if not (site.NBS / file).exists()]
    return problems + [f"_quarto.yml names {file}, which does not exist" for file in missing]


def main() -> int:
    "Processes and checks; the exit code is 1 if anything is wrong."
    site.process(force="--changed" not in sys.argv[1:])
    names = page_names()
    problems = [("navigation", problem) for problem in navigation_problems(names)]
    problems += [(name, problem) for name in names for problem in page_problems(name, names)]
    for name, problem in problems:
        print(f"{name}: {problem}")
    n_pictures = sum(len(read_page(name).pictures) for name in names)
    n_links = sum(len(read_page(name).links) for name in names)
    print(f"{len(names)} pages, {n_links} links, {n_pictures} pictures, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
