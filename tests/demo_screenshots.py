"""Takes pictures of the demo in Chromium (needs Debian's `chromium` and Playwright).

`python tests/demo_screenshots.py` renews the pictures that the documentation shows; `python tests/demo_screenshots.py
FOLDER` takes every state of the page at desktop and phone size, in light and dark, into a folder to look through.
"""
import contextlib
import io
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

TESTS = Path(__file__).resolve().parent
IMAGES = TESTS.parent / "nbs" / "images"
EXAMPLES = TESTS.parent / "card_classifier" / "demo" / "examples"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
TEXT = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"I am only text, whatever my name says."}


def grey_picture() -> dict:
    "A photo without a card."
    buffer = io.BytesIO()
    Image.new("RGB", (300, 400), (128, 128, 128)).save(buffer, "PNG")
    return {"name": "floor.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def welcome(page: Page) -> None:
    "The page as it is before anything is asked."


def example(number: int) -> Callable[[Page], None]:
    "An example and its answer."

    def steps(page: Page) -> None:
        page.get_by_role("button", name=f"Example {number}").click()
        page.wait_for_selector("#answer .recognised")
        page.wait_for_function("document.querySelector('#photo img')?.naturalWidth")

    return steps


def chosen(photo: dict, expected: str) -> Callable[[Page], None]:
    "A photo that was chosen, and what is said about it."

    def steps(page: Page) -> None:
        page.set_input_files("#photo input[type=file]", photo)
        page.wait_for_selector(f"#answer .{expected}")

    return steps


def corrected(page: Page) -> None:
    "An answer that was corrected."
    example(1)(page)
    page.select_option("#correction select", "joker")
    page.click("#correction .send")
    page.wait_for_selector("#thanks .thanks")


def many_photos(page: Page) -> None:
    "All examples at once."
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#photos input[type=file]", sorted(EXAMPLES.glob("*.webp")))
    page.wait_for_selector(".gallery figure")


def many_with_a_wrong_one(page: Page) -> None:
    "Photos and a text, one of them said to be wrong."
    page.get_by_role("tab", name="Many photos").click()
    photos = [{"name": path.name, "mimeType": "image/webp", "buffer": path.read_bytes()} for path in EXAMPLES.iterdir()]
    photos = sorted(photos, key=lambda photo: photo["name"])[:3]
    page.set_input_files("#photos input[type=file]", [*photos, TEXT, grey_picture()])
    page.wait_for_selector(".gallery figure")
    page.get_by_role("button", name="Photo 3 is wrong").click()
    page.wait_for_selector("#many-correction .chosen")


def the_model(page: Page) -> None:
    "What the page says about the model."
    page.get_by_role("tab", name="The model").click()
    page.wait_for_selector("#model .model")


def notice(page: Page) -> None:
    "A file that is no picture, refused before it travels."
    page.get_by_role("tab", name="Many photos").click()
    document = {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}
    page.set_input_files("#photos input[type=file]", document)
    page.wait_for_selector("#notice:not([hidden])")


DOCUMENTED = {
    "demo-desktop": ("desktop", "light", example(3)),
    "demo-phone": ("phone", "dark", example(3)),
    "demo-many": ("desktop", "dark", many_photos),
}
STATES = {
    "welcome": welcome,
    "one": example(1),
    "several": example(3),
    "corrected": corrected,
    "rejected": chosen(grey_picture(), "rejected"),
    "refused": chosen(TEXT, "refused"),
    "many-empty": lambda page: page.get_by_role("tab", name="Many photos").click(),
    "many": many_photos,
    "many-wrong": many_with_a_wrong_one,
    "model": the_model,
    "notice": notice,
}


@contextlib.contextmanager
def demo_server() -> Iterator[str]:
    "The demo with the released bundle, in a process of its own."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DEMO_FOLDER": folder, "DEMO_MAX_FILES": "32"}
        environment |= {"GRADIO_TEMP_DIR": f"{folder}/temporary", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
        command = [sys.executable, "-m", "uvicorn", "demo_service:make_app", "--factory", "--port", str(port)]
        server = subprocess.Popen([*command, "--log-level", "warning"], env=environment, cwd=TESTS)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).close()
                    break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(30)


def screenshot(browser: Browser, url: str, size: str, scheme: str, steps: Callable[[Page], None], full: bool) -> bytes:
    "A PNG of the page after some steps."
    scale = 2 if size == "phone" and not full else 1
    page = browser.new_page(
        viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce", device_scale_factor=scale
    )
    page.goto(url)
    page.wait_for_selector(".examples button")
    page.wait_for_load_state("networkidle")
    page.mouse.move(0, 0)
    steps(page)
    page.wait_for_timeout(1500)
    shot = page.screenshot(full_page=full)
    page.close()
    return shot


def save_small(shot: bytes, path: Path) -> None:
    "Writes a PNG with a palette: 256 colours are enough for paper and ink, at a third of the size."
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def main(folder: Path | None) -> None:
    "Serves the released bundle and takes every picture."
    with demo_server() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        if folder is None:
            for name, (size, scheme, steps) in DOCUMENTED.items():
                save_small(screenshot(browser, url, size, scheme, steps, full=False), IMAGES / f"{name}.png")
            return
        folder.mkdir(parents=True, exist_ok=True)
        for size, scheme, (name, steps) in itertools.product(SIZES, ("light", "dark"), STATES.items()):
            path = folder / f"{name}-{size}-{scheme}.png"
            path.write_bytes(screenshot(browser, url, size, scheme, steps, full=True))
            print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
