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

from card_classifier.cards import Card
from card_classifier.render.faces import render_face
from card_classifier.render.styles import random_style

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


def held_hand(cards: tuple[str, ...] = ("AS", "KS", "QH", "10D", "9C")) -> dict:
    "A photo of a fan of cards, of which all but one show only their indices."
    table = Image.new("RGB", (1100, 900), (38, 92, 70))
    for place, name in enumerate(cards):
        face = Image.fromarray(render_face(Card.parse(name), random_style(3), width=400)).convert("RGBA")
        held = Image.new("RGBA", (1600, 1600))
        held.paste(face, (800 - face.width // 2, 800 - 620))
        held = held.rotate(14 * (len(cards) // 2 - place), resample=Image.Resampling.BICUBIC)
        table.paste(held, (-250, -100), held)
    buffer = io.BytesIO()
    table.save(buffer, "JPEG", quality=92)
    return {"name": "hand.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}


def camera_file(folder: Path, example: str = "three-cards", n_frames: int = 12) -> Path:
    "A film for Chromium's camera, as MJPEG: a table with cards, moving a little to and fro."
    picture = Image.open(EXAMPLES / f"{example}.webp").convert("RGB").resize((720, 540))
    frames = []
    for number in range(n_frames):
        shift = abs(number - n_frames // 2) * 4
        buffer = io.BytesIO()
        picture.crop((20 + shift, 20, 660 + shift, 500)).save(buffer, "JPEG", quality=90)
        frames.append(buffer.getvalue())
    path = folder / "camera.mjpeg"
    path.write_bytes(b"".join(frames))
    return path


def welcome(page: Page) -> None:
    "The page as it is before anything is asked."


def example(name: str, tapped: str = "") -> Callable[[Page], None]:
    "An example and its answer, with one of its cards tapped."

    def steps(page: Page) -> None:
        page.locator(f"[data-example={name}]").click()
        page.wait_for_selector("#answer .recognised")
        if tapped:
            page.locator(f"#photo .tag:has-text('{tapped}')").click()

    return steps


def chosen(photo: dict, expected: str) -> Callable[[Page], None]:
    "A photo that was chosen, and what is said about it."

    def steps(page: Page) -> None:
        page.set_input_files("#photo .chooser", photo)
        page.wait_for_selector(f"#answer .{expected}")

    return steps


def hand(page: Page) -> None:
    "Cards that are held."
    chosen(held_hand(), "recognised")(page)


def corrected(page: Page) -> None:
    "One of several cards that was corrected."
    example("six-cards", "K")(page)
    panel = page.locator(".card-panel:visible")
    panel.locator("select").select_option("joker")
    panel.locator(".send").click()
    panel.locator(".thanks").wait_for()


def missing(page: Page) -> None:
    "A card that is missing, shown on the photo."
    example("three-cards")(page)
    page.locator("[data-do=missing]").click()
    place = page.locator("#photo .picture").bounding_box()
    page.mouse.move(place["x"] + place["width"] * 0.7, place["y"] + place["height"] * 0.1)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.9, place["y"] + place["height"] * 0.4)
    page.mouse.up()


def waiting(page: Page) -> None:
    "A photo that is being looked at."
    page.route("**/demo/answer", lambda route: None)
    page.locator("[data-example=six-cards]").click()
    page.wait_for_selector("#answer .awaited")


def lost(page: Page) -> None:
    "A photo whose answer did not come, because the connection was lost."
    page.route("**/demo/answer", lambda route: route.abort())
    page.locator("[data-example=six-cards]").click()
    page.wait_for_selector("#answer .refused")


def offline(page: Page) -> None:
    "An answer, and then no connection."
    example("three-cards")(page)
    page.context.set_offline(True)
    page.wait_for_selector("#photo .notice:not([hidden])")


def scanner(page: Page) -> None:
    "The camera, with outlines that follow the cards."
    page.locator("[data-do=camera]").click()
    page.wait_for_selector(".live .overlay .tag")


def many_photos(page: Page) -> None:
    "All examples at once, one that was no photo, and one without a card."
    page.get_by_role("tab", name="Many photos").click()
    photos = [{"name": path.name, "mimeType": "image/webp", "buffer": path.read_bytes()} for path in EXAMPLES.iterdir()]
    photos = sorted(photos, key=lambda photo: photo["name"])
    page.set_input_files("#photos .chooser", [*photos, TEXT, grey_picture()])
    page.wait_for_selector(".many[data-state=answered]")


def closer(page: Page) -> None:
    "One of many photos, closer."
    many_photos(page)
    page.locator("[data-do=closer]").nth(3).click()
    page.wait_for_selector(".closer .answer")


def the_model(page: Page) -> None:
    "What the page says about the model."
    page.get_by_role("tab", name="The model").click()
    page.wait_for_selector("#model .model")


def notice(page: Page) -> None:
    "A file that is no picture, refused before it travels."
    document = {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}
    page.set_input_files("#photo .chooser", document)
    page.wait_for_selector("#photo .notice:not([hidden])")


DOCUMENTED = {
    "demo-desktop": ("desktop", "light", example("six-cards")),
    "demo-phone": ("phone", "dark", example("three-cards", "Q")),
    "demo-many": ("desktop", "dark", many_photos),
}
STATES = {
    "welcome": welcome,
    "one": example("queen-of-hearts"),
    "several": example("six-cards"),
    "tapped": example("six-cards", "K"),
    "corrected": corrected,
    "hand": hand,
    "missing": missing,
    "waiting": waiting,
    "lost": lost,
    "offline": offline,
    "scanner": scanner,
    "rejected": chosen(grey_picture(), "rejected"),
    "refused": chosen(TEXT, "refused"),
    "many-empty": lambda page: page.get_by_role("tab", name="Many photos").click(),
    "many": many_photos,
    "closer": closer,
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
        viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce", device_scale_factor=scale,
        permissions=["camera"],
    )
    page.goto(url)
    page.wait_for_selector(".one[data-is-ready]")
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
    with demo_server() as url, sync_playwright() as driver, tempfile.TemporaryDirectory() as videos:
        camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        camera.append(f"--use-file-for-fake-video-capture={camera_file(Path(videos))}")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=[*FLAGS, *camera])
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
