"The predictor as others meet it: what it imports, what it refuses, and many threads at once."

import contextlib
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from conftest import COLOURS, colour_network, colour_picture
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from card_classifier.bundle import BundleError, CLASSIFIER_FILE, softmax, write_bundle
from card_classifier.formats import (
    BrokenImageError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    UnreadableFileError,
)
from card_classifier.images import prepare_image
from card_classifier.cards import CARDS, Card
from card_classifier.recognition.answer import Prediction
from card_classifier.recognition.predictor import BATCH_SIZE, Predictor

NEVER_IN_SERVING = [
    "torch",
    "torchvision",
    "fastai",
    "timm",
    "wandb",
    "dvc",
    "pandas",
    "matplotlib",
    "cv2",
    "onnx",
    "fastcore",
    "gradio",
]


@pytest.fixture(scope="module")
def predictor(tiny_bundle) -> Predictor:
    "One predictor for the whole file; nothing in it changes."
    return Predictor(tiny_bundle)


def encoded(picture: Image.Image, file_format: str = "PNG", **options) -> bytes:
    "The bytes of a picture file."
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def loaded_after(code: str) -> set[str]:
    "The top-level modules that a fresh Python has loaded after running `code`."
    report = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_it_loads_neither_an_engine_nor_a_training_stack():
    assert not loaded_after("import card_classifier.recognition.predictor") & {
        *NEVER_IN_SERVING,
        "openvino",
        "onnxruntime",
    }


def test_predicting_loads_only_the_engine(tiny_bundle):
    code = (
        "import numpy, card_classifier.recognition.predictor as serving\n"
        f"serving.Predictor({str(tiny_bundle)!r}).predict(numpy.zeros((9, 9, 3), 'uint8'))"
    )
    loaded = loaded_after(code)
    assert (
        "openvino" in loaded
        and not loaded & {"onnxruntime", "openvino_telemetry"}
        and not loaded & set(NEVER_IN_SERVING)
    )


def test_many_threads_may_need_the_engine_first():
    code = (
        "import faulthandler, sys, threading\n"
        "from card_classifier.recognition.engine import import_openvino\n"
        "faulthandler.dump_traceback_later(60, exit=True)\n"  # Who hangs holds Python's lock: nothing else would end it
        "sys.setswitchinterval(1e-6)\n"
        "start = threading.Barrier(4)\n"
        "def need():\n"
        "    openvino = import_openvino()\n"
        "    start.wait()\n"
        "    openvino.Type.u8.to_dtype()\n"
        "threads = [threading.Thread(target=need) for _ in range(4)]\n"
        "[one.start() for one in threads]; [one.join() for one in threads]"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_every_card_from_every_source(tiny_bundle, tmp_path, n_threads):
    predictor = Predictor(str(tiny_bundle), n_threads=n_threads)
    for index, card in enumerate(CARDS):
        picture = colour_picture(index, size=(50, 30))
        path = tmp_path / f"{index}.bmp"
        picture.save(path)
        sources = [picture, encoded(picture), bytearray(encoded(picture)), np.asarray(picture), path, str(path)]
        assert {predictor.predict(source).card for source in sources} == {card}


def test_what_a_prediction_says(predictor, tiny_info):
    prediction = predictor.predict(colour_picture(20), top_k=53)
    assert (prediction.card.class_name, prediction.is_rejected, prediction.rejection_reason) == ("joker", False, None)
    assert tuple(prediction.top[0]) == (prediction.card, prediction.probability)
    probabilities = [probability for _, probability in prediction.top]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1)
    assert len({card for card, _ in prediction.top}) == len(CARDS)
    assert prediction.model_version == tiny_info.model_version
    assert (
        list(prediction.milliseconds) == ["decode", "detect", "classify"] and min(prediction.milliseconds.values()) >= 0
    )
    assert "joker" in str(prediction) and "JKR" in prediction._repr_html_()


def test_a_prediction_is_json(predictor):
    for source in (colour_picture(3), Image.new("RGB", (16, 16), (42, 42, 127))):
        prediction = predictor.predict(source)
        content = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
        assert list(content) == [
            "card",
            "probability",
            "top",
            "is_rejected",
            "rejection_reason",
            "cards",
            "model_version",
            "milliseconds",
        ]
        assert Card.parse(content["card"]) == prediction.card
        assert [(Card.parse(item["card"]), item["probability"]) for item in content["top"]] == [
            tuple(one) for one in prediction.top
        ]


def test_the_temperature_and_the_threshold_come_from_the_bundle(tiny_info, tmp_path):
    cooler = tiny_info.with_network("classifier", temperature=9.0, thresholds={"rejection": 0.9, "whole_photo": 0.9})
    predictor = Predictor(write_bundle(tmp_path / "bundle", cooler, {"classifier": colour_network()}))
    prediction = predictor.predict(colour_picture(8))
    logits = predictor.logits(prepare_image(colour_picture(8), 16)[None])[0]
    assert prediction.card == CARDS[8]
    assert prediction.probability == pytest.approx(softmax(logits, 9.0).max())
    assert prediction.is_rejected and prediction.rejection_reason.startswith("no card recognised: the best guess has ")
    assert prediction.rejection_reason.endswith(" %, below the threshold of 90 %")


# --- bad input ---


BAD_IMAGES = [
    (b"", EmptyImageError),
    (np.zeros((0, 5, 3), np.uint8), EmptyImageError),
    (b"a text file called ace.jpg", NotAnImageError),
    (b"%PDF-1.4", NotAnImageError),
    (encoded(colour_picture(1, (300, 300)), "JPEG")[:300], BrokenImageError),
    (encoded(colour_picture(1), "PNG")[:60], BrokenImageError),
    (encoded(Image.new("1", (15_000, 15_000)), "PNG"), ImageTooLargeError),
    (np.zeros((4, 4, 7), np.uint8), ImageError),
    ("no/such/file.png", UnreadableFileError),
]


@pytest.mark.parametrize("source, error", BAD_IMAGES)
def test_a_bad_image_raises_its_own_error(predictor, source, error):
    with pytest.raises(error):
        predictor.predict(source)


def test_a_batch_goes_on_after_bad_images_and_keeps_the_order(predictor):
    sources, expected = [], []
    for index in range(3 * BATCH_SIZE + 5):
        bad, error = BAD_IMAGES[index % len(BAD_IMAGES)]
        sources += [bad] * (index % 3) + [colour_picture(index % 53)]
        expected += [error] * (index % 3) + [CARDS[index % 53]]
    answers = predictor.predict_batch(iter(sources), top_k=2)
    assert len(answers) == len(sources)
    for answer, wanted in zip(answers, expected, strict=True):
        if isinstance(wanted, Card):
            assert isinstance(answer, Prediction) and answer.card == wanted
        else:
            assert isinstance(answer, wanted)


def test_batches_of_nothing_and_of_bad_images_only(predictor):
    assert predictor.predict_batch([]) == []
    assert [type(answer) for answer in predictor.predict_batch([b"", b"text"])] == [EmptyImageError, NotAnImageError]
    assert predictor.logits(np.empty((0, 16, 16, 3), np.uint8)).shape == (0, 53)


def test_a_batch_reads_its_sources_in_chunks(predictor):
    n_read = 0

    def sources():
        nonlocal n_read
        for number in range(3 * BATCH_SIZE):
            n_read += 1
            yield 7 if number == BATCH_SIZE else colour_picture(number % 53)

    with pytest.raises(TypeError):
        predictor.predict_batch(sources())
    assert n_read == 2 * BATCH_SIZE


@pytest.mark.parametrize("top_k", [0, -1, 54])
def test_top_k_out_of_range(predictor, top_k):
    for ask in (
        lambda: predictor.predict(colour_picture(1), top_k),
        lambda: predictor.predict_batch([colour_picture(1)], top_k),
    ):
        with pytest.raises(ValueError, match="top_k must be from 1 to 53"):
            ask()


@settings(max_examples=100)
@given(st.binary(max_size=200))
@example(b"GIF87a\0\0\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\0\1\0")  # a whole picture, of one pixel
def test_any_bytes_are_an_answer_or_an_image_error(predictor, content):
    with contextlib.suppress(ImageError):
        assert predictor.predict(content).top


# --- batches and threads ---


def test_a_batch_agrees_with_its_images_alone(predictor):
    generator = np.random.default_rng(4)
    images = [
        generator.integers(0, 256, (generator.integers(5, 50), 20, 3), np.uint8) for _ in range(2 * BATCH_SIZE + 3)
    ]
    together, alone = predictor.predict_batch(images), [predictor.predict(image) for image in images]
    for answer, single in zip(together, alone, strict=True):
        assert (answer.card, answer.is_rejected) == (single.card, single.is_rejected)
        assert answer.probability == pytest.approx(single.probability, abs=1e-5)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_threads_that_share_a_predictor_get_their_own_answers(tiny_bundle, n_threads):
    predictor = Predictor(tiny_bundle, n_threads=n_threads)
    contents = [encoded(colour_picture(index, (64, 64))) for index in range(len(COLOURS))]
    asked = [(7 * number) % 53 for number in range(600)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda index: predictor.predict(contents[index]), asked))
    assert [answer.card.index for answer in answers] == asked


# --- bad bundles ---


def test_a_replaced_network_is_refused(tiny_bundle, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    (copy / CLASSIFIER_FILE).write_bytes(colour_network(sharpness=3))
    with pytest.raises(BundleError, match=r"classifier.onnx is not the file that bundle.json describes"):
        Predictor(copy)


def other_network(replacement: tuple[str, str]) -> bytes:
    "The colour network with one part of its text replaced, so that it is a network but not one of ours."
    text = onnx.printer.to_text(onnx.load_model_from_string(colour_network()))
    assert replacement[0] in text
    return onnx.parser.parse_model(text.replace(*replacement)).SerializeToString()


@pytest.mark.parametrize(
    "model, words",
    [
        (b"", "can't be loaded|takes and gives"),
        (b"\x08\x07garbage", "can't be loaded"),
        (colour_network()[:-99], "can't be loaded"),
        (colour_network(size=32), "takes and gives"),
        (other_network(("images", "pictures")), "takes and gives"),
        (other_network(("uint8[", "float[")), "takes and gives"),
    ],
)
def test_a_network_that_is_not_ours_is_refused(tiny_info, tmp_path, model, words):
    folder = write_bundle(tmp_path / "bundle", tiny_info, {"classifier": model})
    with pytest.raises(BundleError, match=words):
        Predictor(folder)


def test_a_network_that_answers_nonsense_is_refused(tiny_info, tmp_path):
    predictor = Predictor(
        write_bundle(tmp_path / "bundle", tiny_info, {"classifier": colour_network(sharpness=float("nan"))})
    )
    with pytest.raises(BundleError, match="not finite"):
        predictor.predict(colour_picture(1))


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, "2", None])
def test_a_wrong_number_of_threads(tiny_bundle, n_threads):
    with pytest.raises(ValueError, match="n_threads must be a whole number"):
        Predictor(tiny_bundle, n_threads=n_threads)


def test_a_missing_bundle_says_what_to_do(tmp_path):
    with pytest.raises(BundleError, match="there is no bundle folder"):
        Predictor(tmp_path / "nowhere")
