"LitServe: python lit.py PORT"

import sys

import litserve
from classify import Classifier
from fastapi import UploadFile


class CardAPI(litserve.LitAPI):
    "The classifier in LitServe's frame."

    def setup(self, device):
        self.classifier = Classifier()

    def decode_request(self, request: UploadFile):
        return request.file.read()

    def predict(self, content):
        return self.classifier(content)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    litserve.LitServer(CardAPI(), accelerator="cpu", workers_per_device=2).run(
        port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1
    )
