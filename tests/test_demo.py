"The demo in a real browser, in front of two worker processes that share one socket."
import contextlib
import csv
import http.client
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import psutil
import pytest
from conftest import colour_picture
from PIL import Image

from card_classifier.cards import CARDS
from card_classifier.demo.backend import EXAMPLE_NAMES
from card_classifier.demo.shares import SHARE
from card_classifier.records.export import add_feedback, export_query, export_row, opened

if not importlib.util.find_spec("gradio"):
    pytest.skip("Gradio is not installed", allow_module_level=True)

from demo_screenshots import camera_file
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
        self.folder, self.port, self.url, self.process = folder, port, f"http://127.0.0.1:{port}", process

    def notes(self, what: str) -> list[dict]:
        "What happened so far, in the order of time."
        path = self.folder / "notes.jsonl"
        notes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        return sorted((note for note in notes if note["what"] == what), key=lambda note: note["time"])

    def left_over(self) -> list[Path]:
        "The files that lie in the folder for temporary ones."
        return [path for path in (self.folder / "temporary").rglob("*") if path.is_file()]

    @contextlib.contextmanager
    def state(self, name: str):
        "Makes the service `busy` or `slow` for a while."
        (self.folder / name).touch()
        try:
            yield
        finally:
            (self.folder / name).unlink()

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
    (folder / "temporary").mkdir()
    environment = os.environ | {"DEMO_BUNDLE": str(tiny_bundle), "DEMO_FOLDER": str(folder)}
    environment |= {"TMPDIR": str(folder / "temporary"), "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
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

    def opened(size: str = "desktop", scheme: str = "light", may_fail: bool = False, script: str = "", **options):
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce", **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("filechooser", lambda _: None)  # From now on: Playwright takes a while until it hears of choosers
        if script:
            page.add_init_script(script)
        page.on("request", lambda request: seen.append(request.url))

        def note_error(message):
            if message.type == "error" and not may_fail:
                seen.append(f"console: {message.text}")

        page.on("console", note_error)
        page.on("pageerror", lambda error: seen.append(f"console: {error}"))
        page.goto(server.url)
        page.wait_for_selector(".one[data-is-ready]")
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
    page.set_input_files(f"#{box} .chooser", list(files) if box == "photos" else files[0])


def answered(page) -> str:
    "The card that is said large."
    drawn = page.wait_for_selector("#answer .recognised .card-panel:not([hidden]) .drawn-card")
    return drawn.get_attribute("aria-label")


def said_again(page, card: str) -> None:
    "Waits until another card is said."
    page.wait_for_selector(f"#answer .card-panel:not([hidden]) .drawn-card[aria-label='{card}']")


def correct(page, card: str) -> None:
    "Says what the card really was, as a person who clicks."
    panel = page.locator("#answer .card-panel:not([hidden])")
    panel.locator("select").select_option(card)
    panel.locator(".send").click()


def thanked(page) -> None:
    "Waits until the page says that a correction was stored."
    page.wait_for_selector("#answer .thanks:not(.problem)")


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
    card = page.locator("#answer .card-panel .drawn-card").bounding_box()
    bottom = card["y"] + card["height"]
    assert 0 <= card["y"] and bottom <= SIZES[size]["height"], "the drawn card is in view without scrolling"
    assert fits(page)
    assert page.inner_text("#answer .sure").strip().endswith("sure")
    assert page.locator("#photo .hero img").evaluate("image => image.naturalWidth") == 300
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert (brightness < 200) == (scheme == "dark")


@pytest.mark.parametrize("size", SIZES)
def test_every_example_is_shown_and_answered(visit, size):
    page = visit(size)
    for number, name in enumerate(EXAMPLE_NAMES):
        last = page.evaluate("document.querySelector('#photo .hero img')?.src || ''")
        page.get_by_role("button", name=f"Example {number + 1}: {name.replace('-', ' ')}").click()
        shown = "document.querySelector('#photo .hero img')"
        page.wait_for_function(f"last => {shown}?.naturalWidth && {shown}.src !== last", arg=last)
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

    tab_to("#photo [data-do=choose]")
    with page.expect_file_chooser() as opened:
        page.keyboard.press("Enter")
    opened.value.set_files(file(12))
    assert answered(page) == CARDS[12].class_name
    tab_to("#answer .correct select")
    page.keyboard.type("queen of s")
    tab_to("#answer .correct .send")
    page.keyboard.press("Enter")
    thanked(page)
    told = server.notes("feedback")[-1]
    assert (told["right"], told["number"], told["answered"]) == ("queen of spades", 0, CARDS[12].class_name)
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
    page.get_by_role("button", name="Paste").click()
    said_again(page, CARDS[21].class_name)


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
    page.dispatch_event("#photo", "drop", {"dataTransfer": dropped})
    said_again(page, CARDS[23].class_name)
    pages = page.evaluate_handle(script, [list(b"%PDF"), "cards.pdf", "application/pdf"])
    page.dispatch_event("#photo", "drop", {"dataTransfer": pages})
    page.wait_for_selector("#photo .notice:not([hidden])")
    assert "not a picture" in page.inner_text("#photo .notice")


def test_refusals_and_a_lost_connection_are_sentences_and_the_photo_stays(visit):
    page = visit("phone", may_fail=True)
    body = '{"detail": "That is too large."}'
    refusal = {"status": 413, "content_type": "application/problem+json", "body": body}
    page.route("**/demo/answer", lambda route: route.fulfill(**refusal), times=1)
    choose(page, file(24))
    page.wait_for_selector("#answer .refused")
    assert "That photo is too large" in page.inner_text("#answer")
    assert not page.locator(".toast-wrap, [data-testid=status-tracker] .error").locator("visible=true").count()
    page.route("**/demo/answer", lambda route: route.abort(), times=1)
    choose(page, file(25))
    page.wait_for_selector("#answer .refused:has-text('The connection was lost')")
    assert page.locator("#photo .hero img").is_visible(), "the photo is still there"
    page.get_by_role("button", name="Try again").click()
    assert answered(page) == CARDS[25].class_name


def test_nothing_old_stands_beside_a_new_photo(visit, server):
    page = visit()
    choose(page, file(26))
    assert answered(page) == CARDS[26].class_name
    with server.state("slow"):
        choose(page, file(27))
        page.wait_for_selector("#answer .awaited")
        assert not page.locator("#answer .card-panel").count()
        assert page.locator("#photo .hero img").is_visible(), "one sees which photo is awaited"
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("#answer .welcome")
        choose(page, file(28))
        page.wait_for_selector("#answer .awaited")
    said_again(page, CARDS[28].class_name)
    page.wait_for_timeout(500)  # The answer to the photo that was cancelled comes now, and is nobody's
    assert page.inner_text("#answer h3") == CARDS[28].class_name
    page.get_by_role("button", name="Remove this photo").click()
    page.wait_for_selector("#answer .welcome")
    assert not page.locator("#photo .hero img").count(), "nothing is left of it"
    page.context.set_offline(True)
    page.wait_for_selector("#photo .notice:has-text('offline')")
    page.context.set_offline(False)
    page.wait_for_selector("#photo .notice", state="hidden")


def test_the_camera_is_looked_through_and_keeps_a_photo_that_is_not_mirrored(visit, server):
    page = visit("phone", permissions=["camera"])
    before = len(server.notes("answer"))
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("document.querySelector('.live').dataset.looks > 1")
    assert len(server.notes("look")) > 1 and len(server.notes("answer")) == before, "what passes by is no answer"
    assert "-1" not in page.evaluate("getComputedStyle(document.querySelector('.live video')).transform")
    page.get_by_role("button", name="Keep this picture").click()
    page.wait_for_selector("#answer .recognised, #answer .rejected")
    assert len(server.notes("answer")) == before + 1
    assert page.evaluate("document.querySelector('.live video').srcObject") is None, "the camera is off"


def test_without_tls_the_camera_button_opens_the_phone_s_own_camera(visit):
    page = visit("phone", script="Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    with page.expect_file_chooser() as opened:
        page.get_by_role("button", name="Camera").click()
    assert opened.value.element.get_attribute("capture") == "environment"
    opened.value.set_files(file(33))
    assert answered(page) == CARDS[33].class_name


def test_no_card_is_said_kindly_and_may_be_corrected(visit, server):
    page = visit("phone")
    buffer = io.BytesIO()
    Image.new("RGB", (300, 400), (42, 42, 42)).save(buffer, "PNG")  # as far from eight of the colours
    choose(page, {"name": "floor.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.wait_for_selector("#answer .rejected")
    assert "No card recognised" in page.inner_text("#answer")
    correct(page, "joker")
    thanked(page)
    assert server.notes("feedback")[-1]["right"] == "joker"
    page.get_by_role("button", name="There is no card").click()
    page.wait_for_selector("#answer .thanks:has-text('that this is right')")
    assert server.notes("feedback")[-1]["right"] == "no card"


def test_what_is_no_photo_gets_a_sentence(visit):
    page = visit()
    choose(page, TEXT)
    page.wait_for_selector("#answer .refused")
    assert "I can’t read that photo" in page.inner_text("#answer")
    assert "text, not an image" in page.inner_text("#answer")
    assert not page.locator("#answer .correct").count(), "nothing to correct"
    choose(page, file(3))
    assert answered(page) == CARDS[3].class_name


def test_a_busy_service_is_asked_again_and_then_says_so(visit, server):
    page = visit()
    with server.state("busy"):
        choose(page, file(4))
        page.wait_for_selector("#answer .refused")
        assert "One moment, please" in page.inner_text("#answer")
    page.get_by_role("button", name="Try again").click()
    assert answered(page) == CARDS[4].class_name
    with server.state("busy"):
        correct(page, "joker")
        page.wait_for_selector("#answer .thanks.problem")
    assert "records are away" in page.inner_text("#answer .thanks")


def test_many_photos_are_answered_each_on_its_own(visit, server):
    page = visit("phone")
    page.get_by_role("tab", name="Many photos").click()
    choose(page, file(0, "first.png"), TEXT, file(52, "<b>third</b>.png"), box="photos")
    page.wait_for_selector(".many[data-state=answered]")
    captions = page.locator(".gallery figcaption b").all_inner_texts()
    assert captions == [CARDS[0].short_name, "I can’t read that photo", CARDS[52].short_name]
    assert "<b>third" in page.inner_text(".gallery figure:nth-of-type(3) .file") and fits(page)
    assert page.inner_text(".count") == "3 of 3 photos read. 2 cards recognised."
    assert page.locator(".results tbody tr").count() == 3
    page.get_by_role("button", name="Look closer: 3.").click()
    panel = page.locator("dialog .card-panel")
    panel.locator("select").select_option("ten of hearts")
    panel.locator(".send").click()
    page.wait_for_selector("dialog .thanks:not(.problem)")
    told = server.notes("feedback")[-1]
    assert (told["right"], told["answered"]) == ("ten of hearts", CARDS[52].class_name)
    page.get_by_role("button", name="Close", exact=True).click()
    with page.expect_download() as table:
        page.get_by_role("button", name="Download the table").click()
    rows = list(csv.DictReader(io.StringIO(Path(table.value.path()).read_text(encoding="utf-8-sig"))))
    assert [row["card"] for row in rows] == [CARDS[0].class_name, "", CARDS[52].class_name]
    assert [(row["seen"], bool(row["problem"])) for row in rows] == [("card", False), ("", True), ("card", False)]
    with page.expect_download() as pictures:
        page.get_by_role("button", name="Download the pictures").click()
    with zipfile.ZipFile(pictures.value.path()) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["01-first.jpg", "03-_b_third__b_.jpg", "cards.csv"]
        assert Image.open(archive.open("01-first.jpg")).size == (300, 400)


def test_of_too_many_the_first_are_taken_and_too_large_ones_do_not_travel(visit, server):
    page = visit("phone")
    page.get_by_role("tab", name="Many photos").click()
    choose(page, *(file(index, f"{index}.png") for index in range(MAX_FILES + 2)), box="photos")
    page.wait_for_selector(".many[data-state=answered]")
    notice = page.inner_text("#photos .notice")
    assert f"You chose {MAX_FILES + 2} photos" in notice and "the other 2 afterwards" in notice
    assert page.locator(".gallery figure[data-state=answered]").count() == MAX_FILES
    before = len(server.notes("request"))
    large = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff" + bytes(MAX_BODY)}
    choose(page, large, box="photos")
    page.wait_for_selector(".gallery figure[data-state=refused]")
    assert "That photo is too large" in page.inner_text(".gallery") and len(server.notes("request")) == before
    assert not page.locator("#photos .notice").is_visible()


def test_a_photo_of_many_megapixels_is_made_smaller_before_it_is_sent(visit, server):
    page = visit()
    buffer = io.BytesIO()
    Image.effect_noise((4000, 3000), 60).convert("RGB").save(buffer, "JPEG", quality=90)
    assert len(buffer.getvalue()) > MAX_BODY
    choose(page, {"name": "phone.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    page.wait_for_selector("#answer .recognised, #answer .rejected")
    assert server.notes("answer")[-1]["n_bytes"] < MAX_BODY


def test_what_only_the_service_can_read_is_shown_by_its_copy(visit):
    page = visit(script="window.createImageBitmap = () => Promise.reject(new Error('as with HEIC'))")
    choose(page, file(34))
    assert answered(page) == CARDS[34].class_name
    assert page.locator("#photo .hero img").get_attribute("src").startswith("data:image/jpeg")


def test_one_deck_is_a_switch_that_is_remembered_and_asks_again(visit, server):
    page = visit("phone")
    named = page.get_by_role("switch", name="All cards are from one deck")
    choose(page, file(11))
    assert answered(page) == CARDS[11].class_name and not server.notes("answer")[-1]["is_one_deck"]
    before = len(server.notes("answer"))
    named.locator("visible=true").focus()
    page.keyboard.press("Space")
    page.wait_for_selector(".one[data-state=waiting], .one[data-state=answered]")
    assert answered(page) == CARDS[11].class_name
    asked = server.notes("answer")[before:]
    assert [note["is_one_deck"] for note in asked] == [True], "the photo that is seen is asked about again"
    page.reload()
    page.wait_for_selector(".one[data-is-ready]")
    assert named.locator("visible=true").is_checked(), "it is remembered"
    page.get_by_role("tab", name="Many photos").click()
    page.wait_for_selector(".many[data-is-ready]")
    assert named.locator("visible=true").is_checked(), "it says the same in both tabs"
    choose(page, file(12), file(13), box="photos")
    page.wait_for_selector(".many[data-state=answered]")
    assert [note["is_one_deck"] for note in server.notes("answer")[-2:]] == [True] * 2
    page.get_by_text("All cards are from one deck").locator("visible=true").click()
    page.wait_for_selector(".many[data-state=answered]")
    page.wait_for_selector(".results:not([hidden])")
    assert [note["is_one_deck"] for note in server.notes("answer")[-2:]] == [False] * 2
    assert page.locator(".gallery figure[data-state=answered]").count() == 2 and fits(page)


def test_the_model_says_what_it_is(visit):
    page = visit("phone")
    page.get_by_role("tab", name="The model").click()
    page.wait_for_selector("#model .model")
    text = page.inner_text("#model")
    for words in ("colours-1", "has not been measured", "not learned from real photographs"):
        assert words in text
    assert "recorded for 90 days" in page.inner_text(".about")
    assert fits(page)


def test_each_click_may_reach_another_worker(visit, server):
    "Answer, correction: before each, the worker that took the one before is put to sleep."
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
        page.route(re.compile("/demo/(answer|correction)"), hand_over)
        for index in (30, 31):
            choose(page, file(index))
            said_again(page, CARDS[index].class_name)
            correct(page, "joker")
            thanked(page)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    posts = [note for note in server.notes("request")[before:] if note["method"] == "POST"]
    taken = [(note["path"].rpartition("/")[2], note["worker"]) for note in posts]
    assert [what for what, _ in taken] == ["answer", "correction"] * 2
    assert [worker for _, worker in taken] == [workers[1], workers[0]] * 2
    assert [note["right"] for note in server.notes("feedback")[-2:]] == ["joker"] * 2


def test_gradio_opens_nothing_that_the_page_does_not_need(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(5, (301, 401)))
    for path in (str(secret), "/etc/passwd", "http://127.0.0.1:1/card.jpg"):
        event = {"fn_index": 0, "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        assert server.status("/gradio_api/run/predict", json.dumps(event).encode()) == 422
        assert server.status(f"/gradio_api/file={path}") == 404
    assert not server.left_over(), "nothing that was sent or named lies anywhere"
    strange = ((-1, "[]"), (0, "[7]"), (0, '[{"path": 7}]'))
    gradio_api = ("info", "queue/data", "heartbeat/x", "proxy=http://127.0.0.1:1/")
    for path in ("/config", "/monitoring", "/docs", "/openapi.json", *(f"/gradio_api/{path}" for path in gradio_api)):
        assert server.status(path) == 404
    events = [f'{{"fn_index": {number}, "data": {data}}}'.encode() for number, data in strange]
    for body in (b"", b"{", b"[]", b"null", *events, b"[" * 100_000, b" " * 300_000):
        assert server.status("/gradio_api/run/predict", body) in (413, 422)


def test_photos_keep_the_bounds_of_the_service(server):
    assert server.status("/demo/answer", picture(1)) == 200
    with contextlib.suppress(OSError):  # It may hang up on whoever goes on sending
        assert server.status("/demo/answer", bytes(MAX_BODY + 1)) == 413
    assert server.status("/demo/answer", b"") == 422
    assert server.status("/demo/answer") == 405
    for body in (b"", b"{}", b"[" * 100_000):
        assert server.status("/demo/correction", body) in (200, 413)
    assert not server.left_over()


def test_one_client_leaves_room_for_others(server):
    "Forty photos at the same time from one address, while answers are slow: another address is served all the same."

    def send(address: str, statuses: list) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120, source_address=(address, 0))
        connection.request("POST", "/demo/answer", picture(1))
        statuses.append(connection.getresponse().status)

    def sending(address: str, n_photos: int) -> tuple[list, list]:
        statuses: list = []
        threads = [threading.Thread(target=send, args=(address, statuses)) for _ in range(n_photos)]
        for thread in threads:
            thread.start()
        return threads, statuses

    with server.state("slow"):
        greedy, refused = sending("127.0.0.1", 40)
        for _ in range(600):
            if len(refused) >= 40 - 2 * SHARE:
                break
            time.sleep(0.1)
        assert len(refused) >= 40 - 2 * SHARE and set(refused) == {429}
        others, served = sending("127.0.0.2", 3)
        time.sleep(0.5)
        assert not served, "they are not sent away"
    for thread in (*greedy, *others):
        thread.join(60)
    assert served == [200] * 3
    assert server.status("/demo/answer", picture(1)) == 200, "the room came back"


def test_importing_it_does_not_import_gradio():
    code = "import card_classifier.demo.app, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"gradio", "torch", "fastai", "timm", "wandb", "dvc", "pandas", "cv2", "openvino", "onnxruntime"}
    assert not set(run.stdout.split()) & heavy


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    "The command itself with the released bundle and records, serving the demo alone."
    folder = tmp_path_factory.mktemp("service")
    command = [Path(sys.executable).with_name("card-classifier"), "serve", "--demo-only", "--port", "0"]
    command += ["--workers", "1", "--database", "sqlite:///records.sqlite"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        address = re.search(r"http://\S+:\d+", line)[0]
        assert "curl" not in line, "it does not offer an API that is not there"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health/ready", timeout=5) as response:
                if response.status == 200:
                    break
            time.sleep(0.1)
        yield Server(folder, int(address.rpartition(":")[2]), process)
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert (folder / "records.sqlite").exists()


def test_every_card_is_outlined_and_corrected_on_its_own(browser, service):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(urllib.request.Request(f"{service.url}/v1/predict", b"photo"), timeout=60)
    page = browser.new_page(viewport=SIZES["phone"])
    page.set_default_timeout(PATIENCE)
    page.goto(service.url)
    page.wait_for_selector(".one[data-is-ready]")
    page.get_by_role("button", name=f"Example {EXAMPLE_NAMES.index('three-cards') + 1}").click()
    page.wait_for_selector("#photo .hero polygon")
    tags = page.locator("#photo .hero button.tag")
    assert page.locator("#photo .hero polygon").count() == tags.count() == page.locator("#answer .chip").count() == 3
    assert [text.strip() for text in tags.all_inner_texts()] == ["Q♦", "A♥", "7♣"], "as they lie"
    assert page.inner_text("#answer h2") == "3 cards"
    assert fits(page)
    box = page.locator("#photo .hero .picture").bounding_box()
    assert box["y"] + box["height"] <= SIZES["phone"]["height"], "all outlines are above the fold"
    tags.nth(1).focus()
    page.keyboard.press("Enter")
    panel = page.locator("#answer .card-panel:visible")
    assert panel.locator("h3").inner_text() == "ace of hearts"
    assert panel.locator("canvas.crop").evaluate("crop => crop.width") == 250
    panel.get_by_role("button", name="That is right").click()
    page.wait_for_selector("#answer .card-panel:not([hidden]) .thanks")
    page.locator("#photo .hero polygon").nth(2).dispatch_event("click")
    panel.locator("select").select_option("joker")
    panel.locator(".send").click()
    page.wait_for_selector("#answer .card-panel:not([hidden]) .thanks")
    page.get_by_role("button", name="A card is missing").click()
    page.locator("#photo .hero .picture").click(position={"x": 300, "y": 20})
    page.locator(".missing-form select").select_option("two of clubs")
    page.locator(".missing-form .send").click()
    page.wait_for_selector(".missing-form .thanks")
    page.close()
    url = f"sqlite:///{service.folder / 'records.sqlite'}"
    with opened(url, is_reader=True) as connection:
        rows = [export_row(row) for row in connection.execute(export_query([], False)).mappings()]
        add_feedback(connection, rows)
    assert len(rows) == 1 and len(rows[0]["cards"]) == 3
    said = {one["number"]: (one["card"], bool(one["corners"])) for one in rows[0]["feedback_cards"]}
    by_name = {card["card"]: number for number, card in enumerate(rows[0]["cards"])}
    right, wrong = by_name["ace of hearts"], by_name["seven of clubs"]
    assert said == {right: ("ace of hearts", False), wrong: ("joker", False), 3: ("two of clubs", True)}


def test_outlines_follow_what_the_camera_sees(browser, service, tmp_path):
    film = f"--use-file-for-fake-video-capture={camera_file(tmp_path)}"
    watching = browser.browser_type.launch(executable_path=CHROMIUM, args=[*FLAGS, *CAMERA, film])
    page = watching.new_page(viewport=SIZES["phone"], permissions=["camera"])
    page.set_default_timeout(PATIENCE)
    page.goto(service.url)
    page.wait_for_selector(".one[data-is-ready]")
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("document.querySelectorAll('.live .tag').length === 3")
    assert page.inner_text(".live .caption") == "Q♦ A♥ 7♣"
    page.get_by_role("button", name="Keep this picture").click()
    page.wait_for_selector("#answer h2:has-text('3 cards')")
    watching.close()


def test_a_phone_in_the_network_is_told_how_to_get_here_over_https(tmp_path):
    command = [Path(sys.executable).with_name("card-classifier"), "serve", "--host", "0.0.0.0", "--port", "0"]
    command += ["--https", "--workers", "1", "--database", "none"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line.decode())
            if "trust this certificate" in said[-1]:
                break
        text = "".join(said)
        port = re.search(r"serving at https://0.0.0.0:(\d+)", text)[1]
        address = re.search(rf"same network: https://([\d.]+):{port}", text)[1]
        assert sum("█" in line for line in said) > 10, "the QR code"
        trusted = ssl.create_default_context(cafile=tmp_path / "card_classifier" / "https" / "certificate.pem")
        for _ in range(600):
            with contextlib.suppress(OSError):
                url = f"https://{address}:{port}/health/live"
                with urllib.request.urlopen(url, timeout=5, context=trusted) as response:
                    assert response.status == 200
                    break
            time.sleep(0.1)
        else:
            raise AssertionError("it is not reached over HTTPS")
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(60)


def accessible(page, state: str) -> None:
    "Fails if axe-core finds a violation, once colours have stopped changing."
    ends = "document.getAnimations().filter(one => one.effect.getTiming().iterations < 99).map(one => one.finished)"
    page.evaluate(f"Promise.allSettled({ends}).then(() => 0)")
    violations = "axe.run().then(found => found.violations.map(one => [one.id, one.impact, one.nodes[0].html]))"
    found = page.evaluate(violations)
    assert not found, (state, found)


def test_everybody_can_use_the_page(browser, service, tmp_path):
    "No violation that axe-core finds in any state, by day and by night."
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("npm is not installed")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(tmp_path), "axe-core@4"]
    if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("the npm registry can't be reached, so there is no axe-core")
    axe = (tmp_path / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport=SIZES["desktop"], color_scheme=scheme, reduced_motion="reduce")
        page.set_default_timeout(PATIENCE)
        page.goto(service.url)
        page.wait_for_selector(".one[data-is-ready]")
        page.evaluate(axe)

        accessible(page, "empty")
        page.get_by_role("button", name=f"Example {EXAMPLE_NAMES.index('three-cards') + 1}").click()
        page.wait_for_selector("#photo .hero polygon")
        accessible(page, "an answer")
        page.locator("#photo .hero button.tag").first.click()
        page.get_by_role("button", name="A card is missing").click()
        accessible(page, "a card closer")
        choose(page, TEXT)
        page.wait_for_selector("#answer .refused")
        accessible(page, "a refusal")
        page.get_by_role("tab", name="Many photos").click()
        choose(page, file(1), TEXT, box="photos")
        page.wait_for_selector(".many[data-state=answered]")
        accessible(page, "many")
        page.get_by_role("tab", name="The model").click()
        accessible(page, "the model")
        page.close()
