"The demo in a real browser, in front of two worker processes that share one socket."
import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import colour_picture
from PIL import Image

from card_classifier.cards import CARDS
from card_classifier.demo.backend import EXAMPLE_NAMES

if not importlib.util.find_spec("gradio"):
    pytest.skip("Gradio is not installed", allow_module_level=True)

from demo_service import MAX_BODY, MAX_FILES

TESTS = Path(__file__).resolve().parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
PATIENCE = 60_000  # milliseconds; a busy machine is slow, not wrong


class Server:
    "Two workers behind one socket, and what they noted."

    def __init__(self, folder: Path, port: int, process: subprocess.Popen):
        self.folder, self.url, self.process = folder, f"http://127.0.0.1:{port}", process

    def notes(self, what: str) -> list[dict]:
        "What happened so far, in the order of time."
        path = self.folder / "notes.jsonl"
        notes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        return sorted((note for note in notes if note["what"] == what), key=lambda note: note["time"])

    def uploads(self) -> list[Path]:
        "The files that wait in the upload folder."
        return [path for path in (self.folder / "temporary").rglob("*") if path.is_file()]

    @contextlib.contextmanager
    def busy(self):
        "Makes the service refuse for a while."
        (self.folder / "busy").touch()
        try:
            yield
        finally:
            (self.folder / "busy").unlink()

    def status(self, path: str, body: bytes | None = None, kind: str = "application/json") -> int:
        "The status of a request without a browser."
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": kind} if body is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def server(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"DEMO_BUNDLE": str(tiny_bundle), "DEMO_FOLDER": str(folder)}
    environment |= {"GRADIO_TEMP_DIR": str(folder / "temporary"), "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    # A worker that imports for more than five seconds would else be taken for dead
    command = [sys.executable, "-m", "uvicorn", "demo_service:make_app", "--factory", "--workers", "2"]
    command += ["--port", str(port), "--timeout-worker-healthcheck", "300", "--log-level", "warning"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=TESTS, stdout=log, stderr=log)
    try:
        server = Server(folder, port, process)
        for _ in range(600):
            with contextlib.suppress(OSError):
                if server.status("/") == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt-get install -y --no-install-recommends chromium")
    reason = "Playwright is not installed: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    "Opens the demo; afterwards nothing may have gone to another host, and nothing may have gone wrong unseen."
    seen, contexts = [], []

    def opened(size: str = "desktop", scheme: str = "light", may_fail: bool = False, **options):
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce", **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: seen.append(request.url))

        def note_error(message):
            if message.type == "error" and not may_fail:
                seen.append(f"console: {message.text}")

        page.on("console", note_error)
        page.on("pageerror", lambda error: seen.append(f"console: {error}"))
        page.goto(server.url)
        page.wait_for_selector(".examples button")
        page.wait_for_load_state("networkidle")  # Gradio shows a button some moments before it listens to it
        return page

    yield opened
    for context in contexts:
        context.close()
    strangers = [url for url in seen if not url.startswith((f"{server.url}/", "data:", "blob:"))]
    assert not strangers, strangers


def picture(index: int, size: tuple[int, int] = (300, 400), file_format: str = "PNG") -> bytes:
    "A file that the tiny bundle takes for the card with this index."
    buffer = io.BytesIO()
    colour_picture(index, size).save(buffer, file_format)
    return buffer.getvalue()


def file(index: int, name: str = "photo.png") -> dict:
    "The same as Playwright chooses files."
    return {"name": name, "mimeType": "image/png", "buffer": picture(index)}


TEXT = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"I am only text, whatever my name says."}


def choose(page, *files, box: str = "photo") -> None:
    "Puts files into the page as a person who chose them."
    page.set_input_files(f"#{box} input[type=file]", list(files) if box == "photos" else files[0])


def answered(page) -> str:
    "The card in the large answer."
    return page.wait_for_selector("#answer .recognised .drawn-card").get_attribute("aria-label")


def correct(page, card: str) -> None:
    "Says what the card really was, as a person who clicks."
    page.select_option("#correction select", card)
    page.click("#correction .send")


def fits(page) -> bool:
    "Whether nothing is wider than the screen."
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_photo_gets_its_card_in_view(visit, size, scheme):
    page = visit(size, scheme)
    assert fits(page)
    choose(page, file(7))
    assert answered(page) == CARDS[7].class_name
    page.wait_for_timeout(300)
    card = page.locator("#answer .drawn-card").bounding_box()
    bottom = card["y"] + card["height"]
    assert 0 <= card["y"] and bottom <= SIZES[size]["height"], "the drawn card is in view without scrolling"
    assert fits(page)
    percents = page.locator("#answer .bars li .bar-percent").all_inner_texts()
    assert len(percents) == 5 and all(percent.endswith("%") for percent in percents)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert (brightness < 200) == (scheme == "dark")


@pytest.mark.parametrize("size", SIZES)
def test_every_example_is_shown_and_answered(visit, size):
    page = visit(size)
    for number, name in enumerate(EXAMPLE_NAMES):
        button = page.get_by_role("button", name=f"Example {number + 1}: {name.replace('-', ' ')}")
        button.click()
        shown = "document.querySelector('#photo img')"
        last = page.evaluate("window.lastPhoto || ''")
        page.wait_for_function(f"last => {shown}?.naturalWidth && {shown}.src !== last", arg=last)
        page.evaluate("window.lastPhoto = document.querySelector('#photo img').src")
        page.wait_for_selector("#answer .recognised, #answer .rejected")


def test_with_the_keyboard_alone(visit, server):
    page = visit()
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"one sees that {selector} has the focus"
                return
        raise AssertionError(f"{selector} can't be reached with the keyboard")
    tab_to("#photo button")
    opened = []

    def note_chooser(chooser):  # Playwright takes no built-in method
        opened.append(chooser)

    page.on("filechooser", note_chooser)
    for _ in range(20):  # Gradio shows a button some moments before it listens to it
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if opened:
            break
    opened[0].set_files(file(12))
    assert answered(page) == CARDS[12].class_name
    tab_to("#correction select")
    page.keyboard.type("queen of s")
    tab_to("#correction .send")
    page.keyboard.press("Enter")
    page.wait_for_selector("#thanks .thanks:not(.problem)")
    told = server.notes("feedback")[-1]
    assert told["card"] == "queen of spades"
    assert told["request_id"] == server.notes("answer")[-1]["request_id"]


def test_a_pasted_photo_is_answered_wherever_the_cursor_is(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    script = """async bytes => {
        const blob = new Blob([new Uint8Array(bytes)], {type: 'image/png'});
        await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
    }"""

    def copy(index: int) -> None:
        page.evaluate(script, list(picture(index)))

    copy(20)
    page.keyboard.press("Control+V")
    assert answered(page) == "joker"
    copy(21)
    page.locator("#photo .source-selection button").nth(2).click()
    page.wait_for_selector(f"#answer [aria-label='{CARDS[21].class_name}']")


def test_a_dropped_photo_takes_the_place_of_the_one_before(visit):
    page = visit()
    choose(page, file(22))
    assert answered(page) == CARDS[22].class_name
    script = """([bytes, name, type]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type}));
        return data;
    }"""
    dropped = page.evaluate_handle(script, [list(picture(23)), "dropped.png", "image/png"])
    page.dispatch_event("#photo .image-frame", "drop", {"dataTransfer": dropped})
    page.wait_for_selector(f"#answer [aria-label='{CARDS[23].class_name}']")
    pages = page.evaluate_handle(script, [list(b"%PDF"), "cards.pdf", "application/pdf"])
    page.dispatch_event("#photo .image-frame", "drop", {"dataTransfer": pages})
    page.wait_for_selector("#notice:not([hidden])")
    assert "no picture" in page.inner_text("#notice")


def test_refusals_and_a_lost_connection_are_sentences(visit):
    page = visit("phone", may_fail=True)


    def refuse(status: int, body: str):
        "A handler of requests that answers with a problem document."
        return lambda route: route.fulfill(status=status, content_type="application/problem+json", body=body)

    page.route("**/gradio_api/upload?*", refuse(413, '{"error": "That is too large."}'), times=1)
    choose(page, file(24))
    page.wait_for_selector("#notice:not([hidden])")
    assert page.inner_text("#notice") == "That is too large."
    assert not page.locator(".toast-wrap, [data-testid=status-tracker] .error").locator("visible=true").count()
    page.route("**/gradio_api/run/predict", refuse(503, '{"title": "Busy"}'), times=1)
    page.locator("#tries button").first.click()
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('One moment, please')")
    page.wait_for_timeout(300)
    page.route("**/gradio_api/run/predict", lambda route: route.abort(), times=1)
    page.locator("#tries button").first.click()
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('The connection was lost')")
    page.wait_for_event("load")  # It comes back by itself
    page.locator("#tries button").first.click()
    page.wait_for_selector("#answer .recognised, #answer .rejected")


def test_the_camera_takes_a_photo_that_is_not_mirrored(visit, server):
    page = visit("phone", permissions=["camera"])
    before = len(server.notes("answer"))
    page.locator("#photo .source-selection button").nth(1).click()
    access = (".webcam-wrap button", "[data-testid='webcam-access']", "button:has-text('webcam')")
    page.locator(", ".join(f"#photo {button}" for button in access)).first.click()
    page.wait_for_selector("#photo video")
    page.wait_for_function("document.querySelector('#photo video').videoWidth > 0")
    assert "-1" not in page.evaluate("getComputedStyle(document.querySelector('#photo video')).transform")
    page.locator("#photo .button-wrap button").first.click()
    page.wait_for_selector("#answer .recognised, #answer .rejected")
    assert len(server.notes("answer")) == before + 1


def test_no_card_is_said_kindly_and_may_be_corrected(visit, server):
    page = visit("phone")
    buffer = io.BytesIO()
    Image.new("RGB", (300, 400), (42, 42, 42)).save(buffer, "PNG")  # as far from eight of the colours
    choose(page, {"name": "floor.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.wait_for_selector("#answer .rejected")
    assert "No card here?" in page.inner_text("#answer")
    correct(page, "joker")
    page.wait_for_selector("#thanks .thanks:not(.problem)")
    assert server.notes("feedback")[-1]["card"] == "joker"


def test_what_is_no_photo_gets_a_sentence(visit):
    page = visit()
    choose(page, TEXT)
    page.wait_for_selector("#answer .refused")
    assert "I can’t read that photo" in page.inner_text("#answer")
    assert "text, not an image" in page.inner_text("#answer")
    assert not page.locator("#correction .correct").is_visible(), "nothing to correct"
    choose(page, file(3))
    assert answered(page) == CARDS[3].class_name


def test_a_busy_service_asks_to_wait_and_is_asked_again(visit, server):
    page = visit()
    with server.busy():
        choose(page, file(4))
        page.wait_for_selector("#answer .refused")
        assert "One moment, please" in page.inner_text("#answer")
    page.get_by_role("button", name="Ask again").click()
    assert answered(page) == CARDS[4].class_name
    with server.busy():
        correct(page, "joker")
        page.wait_for_selector("#thanks .thanks.problem")
    assert "records are away" in page.inner_text("#thanks")


def test_many_photos_one_of_them_wrong_and_one_no_photo(visit, server):
    page = visit("phone")
    page.get_by_role("tab", name="Many photos").click()
    choose(page, file(0, "first.png"), TEXT, file(52, "<b>third</b>.png"), box="photos")
    page.wait_for_selector(".gallery figure")
    captions = page.locator(".gallery figcaption b").all_inner_texts()
    expected = [CARDS[0].class_name, "I can’t read that photo", CARDS[52].class_name]
    assert [caption.partition(",")[0] for caption in captions] == expected
    assert "<b>third" in page.inner_text(".gallery figure:nth-of-type(3) .file") and fits(page)
    ids = [note["request_id"] for note in server.notes("answer")[-3:]]
    page.get_by_role("button", name="Photo 3 is wrong").click()
    page.wait_for_function("document.activeElement.matches('#many-correction select')")
    assert "Photo 3 was wrong?" in page.inner_text("#many-correction")
    page.keyboard.type("ten of h")
    page.click("#many-correction .send")
    page.wait_for_selector("#many-correction .thanks:not(.problem)")
    told = server.notes("feedback")[-1]
    assert (told["card"], told["request_id"]) == ("ten of hearts", ids[2])
    photos = {picture(0), picture(52), TEXT["buffer"]}
    left = [path for path in server.uploads() if path.read_bytes() in photos]
    assert not left, "answered photos of a gallery are deleted at once"


def test_too_many_and_too_large_are_refused_before_they_travel(visit, server):
    page = visit("phone")
    uploads = len([note for note in server.notes("request") if note["path"].endswith("/upload")])
    page.get_by_role("tab", name="Many photos").click()
    choose(page, *(file(index, f"{index}.png") for index in range(MAX_FILES + 1)), box="photos")
    notice = page.get_by_role("alert")
    notice.wait_for(state="visible")
    assert f"Up to {MAX_FILES} go together" in notice.inner_text()
    large = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff" + bytes(MAX_BODY)}
    choose(page, large, box="photos")
    page.wait_for_function("document.getElementById('notice').textContent.includes('too large')")
    assert len([note for note in server.notes("request") if note["path"].endswith("/upload")]) == uploads
    choose(page, file(9), box="photos")
    page.wait_for_selector(".gallery figure")
    assert not notice.is_visible()


def test_a_photo_of_many_megapixels_is_made_smaller_before_it_is_sent(visit, server):
    page = visit()
    buffer = io.BytesIO()
    Image.effect_noise((4000, 3000), 60).convert("RGB").save(buffer, "JPEG", quality=90)
    assert len(buffer.getvalue()) > MAX_BODY
    choose(page, {"name": "phone.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    page.wait_for_selector("#answer .recognised, #answer .rejected")
    assert server.notes("answer")[-1]["n_bytes"] < MAX_BODY


def test_the_model_says_what_it_is(visit):
    page = visit("phone")
    page.get_by_role("tab", name="The model").click()
    page.wait_for_selector("#model .model")
    text = page.inner_text("#model")
    for words in ("colours-1", "Nobody has measured this model", "not learnt from real photographs"):
        assert words in text
    assert fits(page)


def test_each_click_may_reach_another_worker(visit, server):
    "Upload, answer, correction: before each, the worker that took the one before is put to sleep."
    children = psutil.Process(server.process.pid).children()
    workers = [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    page = visit()
    turns = itertools.cycle(workers)

    def hand_over(route):
        asleep = next(turns)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP if worker == asleep else signal.SIGCONT)
        route.continue_()

    before = len(server.notes("request"))
    try:
        page.route(re.compile("/gradio_api/(upload\\?|run/predict)"), hand_over)
        for index in (30, 31):
            choose(page, file(index))
            page.wait_for_selector(f"#answer [aria-label='{CARDS[index].class_name}']")
            correct(page, "joker")
            page.wait_for_selector("#thanks .thanks:not(.problem)")
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    posts = [note for note in server.notes("request")[before:] if note["method"] == "POST"]
    taken = [(note["path"].rpartition("/")[2], note["worker"]) for note in posts]
    assert [what for what, _ in taken] == ["upload", "predict", "predict"] * 2
    assert [worker for _, worker in taken] == [workers[1], workers[0]] * 3
    assert [note["card"] for note in server.notes("feedback")[-2:]] == ["joker"] * 2


def test_gradio_opens_nothing_that_the_page_does_not_need(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(5, (301, 401)))
    for path in (str(secret), "/etc/passwd", "http://127.0.0.1:1/card.jpg"):
        event = {"fn_index": 0, "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        assert server.status("/gradio_api/run/predict", json.dumps(event).encode()) == 410
        assert server.status(f"/gradio_api/file={path}") == 404
    assert not [found for found in server.uploads() if found.read_bytes() == secret.read_bytes()]
    strange = ((-1, "[]"), (0, "[7]"), (0, '[{"path": 7}]'))
    gradio_api = ("info", "queue/data", "heartbeat/x", "proxy=http://127.0.0.1:1/")
    for path in ("/config", "/monitoring", "/docs", "/openapi.json", *(f"/gradio_api/{path}" for path in gradio_api)):
        assert server.status(path) == 404
    events = [f'{{"fn_index": {number}, "data": {data}}}'.encode() for number, data in strange]
    for body in (b"", b"{", b"[]", b"null", *events, b"[" * 100_000, b" " * 300_000):
        assert server.status("/gradio_api/run/predict", body) in (410, 413, 422)


def multipart(*files: bytes) -> bytes:
    "The body of a form with these files, of boundary x."
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../a.jpg"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in files) + b"--x--\r\n"


def test_uploads_keep_the_bounds_of_the_service(server):
    kind = "multipart/form-data; boundary=x"
    assert server.status("/gradio_api/upload", multipart(picture(1)), kind) == 200
    assert server.status("/gradio_api/upload", multipart(*[b"x"] * (MAX_FILES + 1)), kind) == 413
    with contextlib.suppress(OSError):  # It may hang up on whoever goes on sending
        assert server.status("/gradio_api/upload", multipart(bytes(MAX_BODY + 1)), kind) == 413
    assert server.status("/gradio_api/upload", b"nonsense", kind) == 400
    assert server.status("/gradio_api/upload", b"{}") == 422
    assert all(path.stat().st_size <= MAX_BODY for path in server.uploads())


def test_importing_it_does_not_import_gradio():
    code = "import card_classifier.demo.app, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"gradio", "torch", "fastai", "timm", "wandb", "dvc", "pandas", "cv2", "openvino", "onnxruntime"}
    assert not set(run.stdout.split()) & heavy


def test_the_command_serves_the_demo_alone_and_outlines_every_card(browser, tmp_path):
    command = [Path(sys.executable).with_name("card-classifier"), "serve", "--demo-only", "--port", "0"]
    command += ["--workers", "1", "--database", "sqlite:///records.sqlite"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        address = re.search(r"http://\S+:\d+", line)[0]
        assert "curl" not in line, "it does not offer an API that is not there"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health/ready", timeout=5) as response:
                if response.status == 200:
                    break
            time.sleep(0.1)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(urllib.request.Request(f"{address}/v1/predict", b"photo"), timeout=60)
        page = browser.new_page(viewport=SIZES["phone"])
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_load_state("networkidle")
        page.get_by_role("button", name=f"Example {EXAMPLE_NAMES.index('three-cards') + 1}").click()
        page.wait_for_selector("#answer .outlined polygon")
        assert page.locator("#answer .outlined polygon").count() == 3
        assert fits(page)
        page.close()
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert (tmp_path / "records.sqlite").exists()
