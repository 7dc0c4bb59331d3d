"A small real service for the demo's tests: the predictor of a bundle, in as many worker processes as uvicorn starts."
import json
import os
import secrets
import time
from pathlib import Path

from card_classifier.images import ImageError
from card_classifier.cards import CLASS_NAMES
from card_classifier.demo.app import demo_app
from card_classifier.recognition.predictor import Predictor

MAX_FILES, MAX_BODY = int(os.environ.get("DEMO_MAX_FILES", "4")), 2_000_000


class SmallService:
    "What the demo talks to; it notes in a file, which all workers share, who did what."

    max_files, max_body = MAX_FILES, MAX_BODY

    def __init__(self, bundle: str | None, folder: Path):
        self.predictor, self.folder = Predictor(bundle), folder
        self.info = self.predictor.info

    def note(self, what: str, **details) -> None:
        "One line for each thing that happened; short enough to be written whole."
        with (self.folder / "notes.jsonl").open("a", encoding="utf-8") as notes:
            notes.write(json.dumps({"what": what, "worker": os.getpid(), "time": time.time(), **details}) + "\n")

    def answer(self, content: bytes, top_k: int = 5) -> dict:
        "The predictor's answer, or a refusal; always a refusal while a file called `busy` is there."
        request_id = secrets.token_hex(16)
        self.note("answer", request_id=request_id, n_bytes=len(content))
        common = {"request_id": request_id, "index": 0, "error": None}
        if (self.folder / "busy").exists():
            return common | {"error": {"status": 503, "title": "Busy", "detail": "256 requests are waiting"}}
        try:
            return common | self.predictor.predict(content, top_k).to_dict()
        except ImageError as error:
            return common | {"error": {"status": 422, "title": "Unreadable image", "detail": str(error)}}

    def feedback(self, request_id: str, index: int, card: str) -> str | None:
        "Notes what the card really was."
        assert card in CLASS_NAMES
        if (self.folder / "busy").exists():
            return "The records are away just now."
        self.note("feedback", request_id=request_id, index=index, card=card)
        return None


def make_app():
    "The demo as uvicorn starts it, with a note of which worker took which request; each request finds a worker anew."
    service = SmallService(os.environ.get("DEMO_BUNDLE") or None, Path(os.environ["DEMO_FOLDER"]))
    door = demo_app(service)

    async def app(scope, receive, send):
        async def send_and_close(message):
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        if scope["type"] == "http":
            service.note("request", method=scope["method"], path=scope["path"])
        await door(scope, receive, send_and_close)

    return app
