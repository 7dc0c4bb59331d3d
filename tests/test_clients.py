"Clients that well-known generators make of the OpenAPI document, in an environment of their own, call every route."

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from test_api import encoded, serving

from card_classifier.cards import CARDS

UV = str(Path(sys.executable).with_name("uv"))
CALLS = '''
import io, json, sys
from pathlib import Path
from client.client import AuthenticatedClient
from client.api.cards import feedback, predict
from client.api.model import drift, model
from client.api.operations import live, metrics, ready
from client.models import FeedbackRequest, PredictFilesBody, PredictRecord, ProblemAnswer
from client.types import File

address, photo = sys.argv[1], Path("photo.png").read_bytes()
client = AuthenticatedClient(base_url=address, token="first", timeout=60)

def file(name):
    return File(payload=io.BytesIO(photo), file_name=name, mime_type="image/png")

plain = predict.sync(client=client, body=file("photo.png"), top_k=2, record=PredictRecord.WAIT)
form = predict.sync(client=client, body=PredictFilesBody(files=[file("one.png"), file("two.png")]))
told = feedback.sync(client=client, body=FeedbackRequest(request_id=plain.request_id, card="10h"))
refused = predict.sync(client=client, body=File(payload=io.BytesIO(b"no picture")))
stranger = model.sync(client=AuthenticatedClient(base_url=address, token="wrong"))
print(json.dumps({
    "plain": [plain.recorded, plain.predictions[0].card, len(plain.predictions[0].top)],
    "form": [one.file for one in form.predictions],
    "feedback": told.card,
    "refused": [type(refused).__name__, refused.status],
    "stranger": [type(stranger).__name__, stranger.status],
    "model": model.sync(client=client).model_version,
    "drift": type(drift.sync(client=client)).__name__,
    "live": live.sync(client=client).status,
    "ready": ready.sync(client=client).status,
    "metrics": b"card_classifier_requests_total" in metrics.sync_detailed(client=client).content,
}))
'''


def run(*command, folder: Path) -> str:
    "What a command prints; its complaint, if it fails."
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_client_made_by_openapi_python_client_calls_every_route(tiny_bundle, tmp_path):
    environment = tmp_path / "environment"
    run(UV, "venv", "--quiet", "--python", sys.executable, environment, folder=tmp_path)
    commands = environment / ("Scripts" if sys.platform == "win32" else "bin")
    # Not among our own packages: it asks for an older typer
    install = [UV, "pip", "install", "--quiet", "--python", commands / "python", "openapi-python-client>=0.29,<0.30"]
    installed = subprocess.run([str(word) for word in install], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"openapi-python-client can't be installed here: {installed.stderr[-200:]}")
    keys = {"CARD_CLASSIFIER_API_KEYS": "first"}
    with serving(tmp_path / "service", tiny_bundle, "--no-demo", environment=keys, database="sqlite:///r.sqlite") as (
        address,
        _,
        _,
    ):
        (tmp_path / "openapi.json").write_text(httpx.get(f"{address}/openapi.json").text)
        generate = ["generate", "--path", "openapi.json", "--output-path", "client", "--meta", "none"]
        run(commands / "openapi-python-client", *generate, "--fail-on-warning", folder=tmp_path)
        (tmp_path / "photo.png").write_bytes(encoded(7))
        (tmp_path / "calls.py").write_text(CALLS)
        said = json.loads(run(commands / "python", "calls.py", address, folder=tmp_path))
    assert said == {
        "plain": ["written", CARDS[7].class_name, 2],
        "form": ["one.png", "two.png"],
        "feedback": "ten of hearts",
        "refused": ["ProblemAnswer", 415],
        "stranger": ["ProblemAnswer", 401],
        "model": "colours-1",
        "drift": "ProblemAnswer",  # The tiny bundle has no reference to compare with
        "live": "live",
        "ready": "ready",
        "metrics": True,
    }
