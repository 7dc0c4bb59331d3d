"A small real service for the demo's tests: the predictor of a bundle, in as many worker processes as uvicorn starts."
import dataclasses
import json
import os
import time
from pathlib import Path

from card_classifier.demo.about import Keeping
from card_classifier.demo.app import demo_app
from card_classifier.demo.backend import PredictorBackend
from card_classifier.demo.corrections import Correction
from card_classifier.recognition.predictor import Predictor

MAX_FILES, MAX_BODY = int(os.environ.get("DEMO_MAX_FILES", "4")), 2_000_000


class NotingBackend(PredictorBackend):
    "What the demo talks to; it notes in a file, which all workers share, who did what."

    def __init__(self, bundle: str | None, folder: Path):
        super().__init__(Predictor(bundle), MAX_FILES, MAX_BODY)
        self.folder, self.keeping = folder, Keeping(os.environ.get("DEMO_RECORDS") != "none", record_days=90)

    def note(self, what: str, **details) -> None:
        "One line for each thing that happened; short enough to be written whole."
        with (self.folder / "notes.jsonl").open("a", encoding="utf-8") as notes:
            notes.write(json.dumps({"what": what, "worker": os.getpid(), "time": time.time(), **details}) + "\n")

    def answer(self, content: bytes, top_k: int = 5, is_one_deck: bool = False) -> dict:
        "The predictor's answer, late while a file `slow` is there, a refusal while there is one called `busy`."
        while (self.folder / "slow").exists():
            time.sleep(0.05)
        answer = super().answer(content, top_k, is_one_deck)
        self.note("answer", request_id=answer["request_id"], n_bytes=len(content), is_one_deck=is_one_deck)
        if (self.folder / "busy").exists():
            return answer | {"error": {"status": 503, "title": "Busy", "detail": "256 requests are waiting"}}
        return answer

    def look(self, content: bytes, is_one_deck: bool = False) -> dict:
        "What the camera sees: looked at, noted, and a refusal while the service is busy."
        self.note("look", n_bytes=len(content))
        return super().answer(content, 1, is_one_deck)

    def feedback(self, correction: Correction) -> str | None:
        "Notes what the card really was."
        if (self.folder / "busy").exists():
            return "The records are away just now."
        self.note("feedback", **dataclasses.asdict(correction))
        return None


def make_app():
    "The demo as uvicorn starts it, with a note of which worker took which request; each request finds a worker anew."
    backend = NotingBackend(os.environ.get("DEMO_BUNDLE") or None, Path(os.environ["DEMO_FOLDER"]))
    demo = demo_app(backend)

    async def app(scope, receive, send):
        async def send_and_close(message):
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        if scope["type"] == "http":
            backend.note("request", method=scope["method"], path=scope["path"])
        await demo(scope, receive, send_and_close)

    return app
