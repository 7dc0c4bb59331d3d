"Takes the pictures of the demo that the documentation shows: python tests/demo_screenshots.py (needs Chromium and Playwright)."
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

TESTS = Path(__file__).resolve().parent
IMAGES = TESTS.parent / "nbs" / "images"
EXAMPLES = TESTS.parent / "card_classifier" / "demo" / "examples"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PORT = 8765


def one_photo(page: Page) -> None:
    "An example and its answer."
    page.get_by_role("button", name="Example 3").click()
    page.wait_for_selector("#answer .recognised, #answer .rejected")
    page.wait_for_function("document.querySelector('#photo img')?.naturalWidth")


def many_photos(page: Page) -> None:
    "All examples at once."
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#photos input[type=file]", sorted(EXAMPLES.glob("*.webp")))
    page.wait_for_selector(".gallery figure")


SHOTS = {"demo-desktop": (DESKTOP, "light", one_photo), "demo-phone": (PHONE, "dark", one_photo), "demo-many": (DESKTOP, "dark", many_photos)}


def main() -> None:
    "Serves the released bundle and takes every picture."
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        environment = os.environ | {"DEMO_FOLDER": folder, "DEMO_MAX_FILES": "32", "GRADIO_TEMP_DIR": f"{folder}/temporary", "PYTHONPATH": str(TESTS)}
        server = subprocess.Popen([sys.executable, "-m", "uvicorn", "demo_service:make_app", "--factory", "--port", str(PORT), "--log-level", "warning"], env=environment, cwd=TESTS)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=60).close()
                    break
                except OSError:
                    time.sleep(0.2)
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for name, (size, scheme, steps) in SHOTS.items():
                page = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce", device_scale_factor=2 if size is PHONE else 1)
                page.goto(f"http://127.0.0.1:{PORT}/")
                page.wait_for_selector(".examples button")
                page.mouse.move(0, 0)
                steps(page)
                page.wait_for_timeout(1500)
                shot = Path(folder) / f"{name}.png"
                page.screenshot(path=shot)
                # A palette of 256 colours is enough for paper and ink, and a third of the size
                Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)
                print(f"{name}.png: {(IMAGES / f'{name}.png').stat().st_size // 1000} kB")
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
