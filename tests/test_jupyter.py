"JupyterLab as `make lab` starts it: what is saved there is clean."

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab on a folder with the project's settings, and that folder."
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(ROOT / ".jupyter", folder / ".jupyter")
    (folder / "nbs").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", f"--ServerApp.port={port}", "--IdentityProvider.token=open", "--notebook-dir", "nbs"]
    options += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    environment = os.environ | {"JUPYTER_CONFIG_PATH": str(folder / ".jupyter"), "HOME": str(folder / "home")}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            try:
                httpx.get(f"{address}/api/status?token=open").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield address, folder
    finally:
        process.terminate()
        process.wait(30)


def test_a_saved_notebook_is_clean(lab):
    address, folder = lab
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=17, metadata={"collapsed": True, "tags": ["parameters"]})
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=17)]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.99"}})
    sent = {"type": "notebook", "format": "json", "content": notebook}
    httpx.put(f"{address}/api/contents/page.ipynb?token=open", json=sent, timeout=60).raise_for_status()
    saved = json.loads((folder / "nbs" / "page.ipynb").read_text(encoding="utf-8"))["cells"][0]
    assert saved["execution_count"] is None
    assert saved["outputs"][0]["execution_count"] is None
    assert saved["metadata"] == {"tags": ["parameters"]}, "tags are kept, because papermill needs them"
    assert saved["outputs"][0]["data"] == {"text/plain": ["2"]}
