"BentoML: bentoml serve bento:Cards --port PORT"

from pathlib import Path

import bentoml
from classify import Classifier


@bentoml.service(workers=2)
class Cards:
    "The classifier in BentoML's frame."

    def __init__(self):
        self.classifier = Classifier()

    @bentoml.api
    def predict(self, request: Path) -> dict:
        "The best card."
        return self.classifier(request.read_bytes())
