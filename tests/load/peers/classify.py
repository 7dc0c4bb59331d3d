"What all peers do with an image: the package's own preprocessing, ONNX Runtime on one thread, the best card."

import os

import onnxruntime

from card_classifier.bundle import read_bundle, softmax
from card_classifier.images import prepare_image
from card_classifier.cards import CARDS


class Classifier:
    "The bundle in BUNDLE on ONNX Runtime."

    def __init__(self):
        folder = os.environ["BUNDLE"]
        self.info = read_bundle(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, self.info.classifier.file), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, content: bytes) -> dict:
        "The best card of an image."
        image = prepare_image(content, self.info.classifier.input_size)
        [logits] = self.session.run(["logits"], {"images": image[None]})[0]
        probabilities = softmax(logits, self.info.classifier.temperature)
        best = int(probabilities.argmax())
        return {"card": CARDS[best].class_name, "probability": float(probabilities[best])}
