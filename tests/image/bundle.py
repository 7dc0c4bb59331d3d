"""`make image-bundle-test BUNDLE=folder`: the built image serves that bundle, as it would once it is in production.

usage: bundle.py BUNDLE

The image's service is started with the bundle mounted, without a network's help and without the right to write to it.
It must say that it serves this very bundle, answer photographs as the bundle itself does on this machine, keep its
answers as the OpenAPI document describes them, refuse what is not a picture, and end at SIGTERM.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from check import ask, picture, require, served
from engine import ImageProblem, main, say, tag

COMMAND = str(Path(sys.executable).with_name("card-classifier"))
N_PICTURES = 8


def expected(bundle: Path, content: bytes) -> dict:
    "What the bundle answers here, by the installed package."
    done = subprocess.run([COMMAND, "predict", "--bundle", str(bundle), "--json", "-"], input=content,
                          capture_output=True, check=False)
    if done.returncode not in (0, 3):
        raise ImageProblem(f"predict ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    return json.loads(done.stdout)


def same(ours: dict, theirs: dict) -> bool:
    "Whether two answers to one picture say the same."
    pairs = zip(ours["top"], theirs["top"], strict=True)
    return all(one["card"] == other["card"] and abs(one["probability"] - other["probability"]) < 0.01
               for one, other in pairs)


def check_bundle() -> int:
    "Starts the service and asks it."
    if len(sys.argv) != 2 or not Path(sys.argv[1], "bundle.json").is_file():
        raise ImageProblem("usage: bundle.py BUNDLE, the folder of a bundle")
    bundle = Path(sys.argv[1]).resolve()
    version = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["model_version"]
    image = tag("serve")
    mount = ["--volume", f"{bundle}:/bundle:ro", "--env", "CARD_CLASSIFIER_BUNDLE=/bundle"]
    with served(image, *mount) as service:
        status, _, body = ask(service.port, "GET", "/v1/model")
        is_right = status == 200 and json.loads(body)["model_version"] == version
        require(is_right, f"it serves {body[:200]!r}, not {version}")
        for number in range(N_PICTURES):
            content = picture(image, f"{number}")
            status, _, body = ask(service.port, "POST", "/v1/predict", content)
            answer = json.loads(body)["predictions"][0]
            require(status == 200 and answer["error"] is None, f"it answered {status}: {body[:300]!r}")
            require(same(expected(bundle, content), answer), f"picture {number} is answered otherwise here: {answer}")
        status, _, _ = ask(service.port, "POST", "/v1/predict", b"no picture")
        require(status == 415, f"a text file is answered with {status}")
        status, _, body = ask(service.port, "GET", "/openapi.json")
        require(status == 200 and "/v1/predict" in json.loads(body)["paths"], "no description of the API")
        code, seconds = service.stop()
        require(code == 0, f"SIGTERM ended it with {code}: {service.logs()[-1000:]}")
    say(f"{image} serves {version}: {N_PICTURES} pictures answered as here, ended in {seconds:.1f} s")
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(os.environ["GITHUB_STEP_SUMMARY"], "a", encoding="utf-8") as summary:
            summary.write("The image serves the promoted bundle and answers as the bundle does here.\n")
    return 0


if __name__ == "__main__":
    main(check_bundle)
