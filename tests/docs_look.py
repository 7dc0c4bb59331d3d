"""Takes pictures of the docs site's pages in Chromium, to be looked at (needs Debian's `chromium` and Playwright).

`python tests/docs_look.py FOLDER [--site SITE] [--dark] [PAGE …]` opens pages at desktop and phone size, writes a
picture of each into FOLDER, and tells what a reader would stumble over: pictures that do not load, a page that is
wider than the screen, errors in the console. SITE is a built site (`_docs`) or, where Quarto is missing, a processed
one (`_proc`), whose notebooks and Markdown pages are turned into plain HTML first. Nothing is fetched from elsewhere.
"""
import argparse
import contextlib
import functools
import http.server
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml
from markdown_it import MarkdownIt
from nbconvert import HTMLExporter
from playwright.sync_api import Browser, Page, Request, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
LONGEST = 12_000  # Pixels of a page that are shown
PROBE = """() => ({
    wide: document.documentElement.scrollWidth - innerWidth,
    broken: [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
    silent: [...document.images].filter(image => !image.hasAttribute('alt')).length,
})"""
GO_DARK = """() => {
    if (window.quartoToggleColorScheme && !document.body.classList.contains('quarto-dark')) quartoToggleColorScheme();
}"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    "Serves a folder and says nothing."

    def log_message(self, *parts) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    "A folder at an address of this machine."
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def shown_cell(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A cell as Quarto shows it: without its directives, and without its code where it says `echo: false`."
    if cell.cell_type != "code":
        return cell
    texts = [output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    if re.search(r"^#\| *echo: *false", cell.source, re.MULTILINE) and any(texts):
        text = "\n\n".join("".join(part) for part in texts)
        return nbformat.v4.new_markdown_cell(re.sub(r"\{target=[^}]*\}", "", text))
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    return cell


def notebook_html(file: Path) -> str:
    "A processed notebook as one page of HTML: its title from the front matter, then its cells."
    notebook = nbformat.read(file, 4)
    front = next((cell.source for cell in notebook.cells if cell.source.startswith("---\n")), "")
    told = yaml.safe_load(front.strip("- \n")) if front else None
    title = str((told or {}).get("title", file.stem))
    cells = [shown_cell(cell) for cell in notebook.cells if not cell.source.startswith("---\n")]
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {title}"), *cells]
    return HTMLExporter().from_notebook_node(notebook)[0]


def markdown_html(file: Path) -> str:
    "A Markdown page as HTML, without its front matter."
    text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    return f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">{body}'


@contextlib.contextmanager
def built(site: Path) -> Iterator[Path]:
    "A folder of HTML pages: the site itself, or a copy of it with its notebooks turned into HTML."
    if any(site.rglob("*.html")):
        yield site
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "site"
        shutil.copytree(site, copy)
        for file in [*copy.rglob("*.ipynb"), *copy.rglob("*.qmd")]:
            content = notebook_html(file) if file.suffix == ".ipynb" else markdown_html(file)
            file.with_suffix(".html").write_text(content, encoding="utf-8")
        yield copy


def settle(page: Page) -> None:
    "Waits until the page is there, with the pictures further down."
    page.wait_for_load_state("networkidle")
    page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(image => image.complete)")


def look(browser: Browser, address: str, page_name: str, size: str, scheme: str, picture: Path) -> list[str]:
    "Writes a picture of one page; the result says what is wrong with it."
    complaints: list[str] = []
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    host = address.rstrip("/")

    def note_failure(request: Request) -> None:
        if request.url.startswith(host):
            complaints.append(f"not loaded: {request.url.removeprefix(address)}")

    page.route(lambda url: not url.startswith((host, "data:", "blob:")), lambda route: route.abort())
    page.on("requestfailed", note_failure)
    page.on("response", lambda answer: note_failure(answer.request) if answer.status >= 400 else None)
    page.on("pageerror", lambda error: complaints.append(f"script: {str(error).splitlines()[0]}"))
    page.goto(address + page_name)
    settle(page)
    if scheme == "dark":
        page.evaluate(GO_DARK)
    found = page.evaluate(PROBE)
    if found["wide"] > 0:
        complaints.append(f"{found['wide']} pixels wider than the screen")
    if found["silent"]:
        complaints.append(f"{found['silent']} pictures without alternative text")
    complaints += [f"picture does not show: {source[:100]}" for source in found["broken"]]
    height = min(LONGEST, page.evaluate("document.documentElement.scrollHeight"))
    picture.parent.mkdir(parents=True, exist_ok=True)
    clip = {"x": 0, "y": 0, "width": SIZES[size]["width"], "height": height}
    page.screenshot(path=picture, full_page=True, clip=clip)
    context.close()
    return list(dict.fromkeys(complaints))


def page_list(folder: Path, wanted: list[str]) -> list[str]:
    "The pages to look at, by their addresses; all of them if none is wanted."
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.html"))
    if not wanted:
        return names
    stems = {str(Path(name).with_suffix("")) for name in wanted}
    chosen = [name for name in names if name.removesuffix(".html") in stems]
    missing = stems - {name.removesuffix(".html") for name in chosen}
    if missing:
        told = f"no page is called {', '.join(sorted(missing))}"
        raise SystemExit(f"{told}; there are, for instance, {', '.join(names[:5])}")
    return chosen


def main() -> int:
    "Looks at the pages; the exit code says whether anything is wrong with one."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("pages", nargs="*", help="such as index or guides/00_first_photo; all if none is named")
    parser.add_argument("--site", type=Path, help="a built or a processed site")
    parser.add_argument("--dark", action="store_true", help="look at the dark colours, too")
    told = parser.parse_intermixed_args()
    site = told.site or next((ROOT / name for name in ("_docs", "_proc") if (ROOT / name).is_dir()), None)
    if site is None or not site.is_dir():
        raise SystemExit("there is no site: run `make docs` first, or name one with --site")
    if not (chromium := shutil.which("chromium") or shutil.which("chromium-browser")):
        raise SystemExit("Chromium is not installed: apt-get install -y --no-install-recommends chromium")
    n_wrong = 0
    with built(site) as folder, served(folder) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in page_list(folder, told.pages):
            for size in SIZES:
                for scheme in ("light", "dark") if told.dark else ("light",):
                    picture = told.folder / f"{name.removesuffix('.html').replace('/', '-')}-{size}-{scheme}.png"
                    complaints = look(browser, address, name, size, scheme, picture)
                    n_wrong += bool(complaints)
                    print(picture.name, *(f"    {complaint}" for complaint in complaints), sep="\n", flush=True)
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
