"""The demo as a Hugging Face Space: the same service as everywhere, without records, on the port that a Space has."""

import os

from card_classifier.serving.server import serve
from card_classifier.settings import ServeSettings

if __name__ == "__main__":
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    settings = ServeSettings(host="0.0.0.0", port=port, workers=2, database="none", trusted_proxies="*", logs="json")
    serve(settings, lambda started: print(f"serving at {started.address}", flush=True))
