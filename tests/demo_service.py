"A small real service for the demo's tests: the predictor of a bundle, in as many worker processes as uvicorn starts."
import json
import os
import time
from pathlib import Path

from card_classifier.cards import CLASS_NAMES
from card_classifier.demo.app import demo_app
from card_classifier.demo.backend import PredictorBackend
from card_classifier.recognition.predictor import Predictor

MAX_FILES, MAX_BODY = int(os.environ.get("DEMO_MAX_FILES", "4")), 2_000_000


class NotingBackend(PredictorBackend):
    "What the demo talks to; it notes in a file, which all workers share, who did what."

    def __init__(self, bundle: str | None, folder: Path):
        super().__init__(Predictor(bundle), MAX_FILES, MAX_BODY)
        self.folder = folder

    def note(self, what: str, **details) -> None:
        "One line for each thing that happened; short enough to be written whole."
        with (self.folder / "notes.jsonl").open("a", encoding="utf-8") as notes:
            notes.write(json.dumps({"what": what, "worker": os.getpid(), "time": time.time(), **details}) + "\n")

    def answer(self, content: bytes, top_k: int = 5) -> dict:
        "The predictor's answer, or a refusal; always a refusal while a file called `busy` is there."
        answer = super().answer(content, top_k)
        self.note("answer", request_id=answer["request_id"], n_bytes=len(content))
        if (self.folder / "busy").exists():
            return answer | {"error": {"status": 503, "title": "Busy", "detail": "256 requests are waiting"}}
        return answer

    def feedback(self, request_id: str, index: int, card: str) -> str | None:
        "Notes what the card really was."
        assert card in CLASS_NAMES
        if (self.folder / "busy").exists():
            return "The records are away just now."
        self.note("feedback", request_id=request_id, index=index, card=card)
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
