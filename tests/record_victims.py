"""Records under load in processes that are killed: `python record_victims.py URL ROUNDS`.

Each round forks two processes that write into the same database and say on a pipe what was acknowledged to them.
A random moment after the first words both are killed with SIGKILL. At the end what was acknowledged is printed as JSON.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from datetime import UTC, datetime

import numpy as np

from card_classifier.records.database import make_engine
from card_classifier.records.schema import Record, pack_logits
from card_classifier.records.writer import Records


def make_record(request_id: str | None = None, **changes) -> Record:
    "A record like those of the service."
    values = {
        "request_id": request_id or uuid.uuid4().hex,
        "index": 0,
        "time": datetime.now(UTC),
        "model_version": "colours-1",
        "sha256": "ab" * 32,
        "n_bytes": 12_345,
        "file_format": "JPEG",
        "width": 640,
        "height": 480,
        "statistics": {"brightness": 0.5, "contrast": 0.25, "saturation": 0.125, "sharpness": 0.0625},
        "logits": pack_logits(np.arange(53) / 8),
        "top": [{"card": "joker", "probability": 0.75}, {"card": "two of clubs", "probability": 0.25}],
        "is_rejected": False,
        "rejection_reason": None,
        "milliseconds": {"decode": 0.5, "classify": 1.5},
    }
    return Record(**values | changes)


def live(url: str, mouth: int) -> None:
    "Records as fast as it can until it is killed, and says what it was promised."
    records = Records(url, flush_seconds=0.01)

    def flood() -> None:
        while True:
            records.add(make_record())
            time.sleep(0.001)

    threading.Thread(target=flood, daemon=True).start()
    while True:
        promised = [(one, records.add_and_wait(one)) for one in (make_record() for _ in range(3))]
        for one, future in promised:
            if future.result():
                os.write(mouth, f"r{one.request_id}\n".encode())
        records.feedback(promised[0][0].request_id, 0, "ace of clubs")
        os.write(mouth, f"f{promised[0][0].request_id}\n".encode())


def main(url: str, rounds: int) -> None:
    "Brings up the victims, kills them, and prints what had been acknowledged to them."
    make_engine(url)  # imports what all of them need
    spoken, killed = [], 0
    for _ in range(rounds):
        victims = []
        for _ in range(2):
            ear, mouth = os.pipe()
            victim = os.fork()
            if not victim:
                try:
                    live(url, mouth)
                finally:
                    os._exit(1)
            os.close(mouth)
            victims.append((victim, open(ear, encoding="ascii")))
        spoken += [ear.readline() for _, ear in victims]
        time.sleep(random.uniform(0, 0.05))
        for victim, _ in victims:
            os.kill(victim, signal.SIGKILL)
        for victim, ear in victims:
            _, status = os.waitpid(victim, 0)
            killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            spoken += ear.readlines()
            ear.close()
    words = [word.strip() for word in spoken if word.endswith("\n")]
    print(
        json.dumps(
            {
                "killed": killed,
                "records": [word[1:] for word in words if word[0] == "r"],
                "feedback": [word[1:] for word in words if word[0] == "f"],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
