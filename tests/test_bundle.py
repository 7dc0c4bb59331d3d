"Images of every kind, damaged images, and damaged bundles."

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import colour_network
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from card_classifier.bundle import (
    BUNDLE_FILE,
    CLASSIFIER_FILE,
    RUN_NAME,
    BundleError,
    convert_bundle,
    model_version_of,
    read_bundle,
    released_bundle,
    softmax,
    write_bundle,
)
from card_classifier.images import (
    BrokenImageError, EmptyImageError, ImageError, ImageTooLargeError, MAX_PIXELS, NotAnImageError,
    UnreadableFileError, decode_image, prepare_image, resize_image,
)

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).with_name("card-classifier")
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def encoded(picture: Image.Image, file_format: str, **options) -> bytes:
    "The bytes of a picture file."
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    "A smooth RGB picture, brighter and redder to the right."
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, axis=0)
    return Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=-1))


def corner_marked() -> Image.Image:
    "White, 64 x 32, with its top left quarter black."
    picture = Image.new("RGB", (64, 32), "white")
    picture.paste("black", (0, 0, 32, 16))
    return picture


# --- every kind of picture ---


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_gives_the_same_picture(file_format):
    decoded = decode_image(encoded(gradient(), file_format))
    assert (decoded.shape, decoded.dtype) == ((40, 60, 3), np.uint8)
    assert np.abs(decoded.astype(int) - np.asarray(gradient())).mean() < 12  # GIF has 256 colours, JPEG and WebP lose detail
    assert decoded.flags.writeable and decoded.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, file_format):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corner_marked().transpose(undo[orientation]) if orientation in undo else corner_marked()
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, file_format, exif=exif)
    for source in (content, Image.open(io.BytesIO(content))):
        upright = decode_image(source)
        assert upright.shape == (32, 64, 3)
        assert upright[4:12, 4:28].mean() < 10 and upright[20:].mean() > 245 and upright[:, 36:].mean() > 245


def test_damaged_exif_leaves_the_picture_as_it_is():
    content = encoded(corner_marked(), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    assert decode_image(content).shape == (32, 64, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBa", "La", "RGBX", "LAB"])
def test_every_mode_of_pil_pictures_becomes_rgb(mode):
    via = {"PA": "P", "RGBa": "RGBA", "La": "LA", "I;16": "I"}.get(mode)
    if mode == "LAB":
        profile = ImageCms.createProfile
        picture = ImageCms.profileToProfile(gradient(), profile("sRGB"), profile("LAB"), outputMode="LAB")
    else:
        picture = (gradient().convert(via) if via else gradient()).convert(mode)
    decoded = decode_image(picture)
    assert decoded.shape == (40, 60, 3) and decoded.dtype == np.uint8
    if mode != "I;16":  # Pillow doesn't scale when it converts to this one
        assert abs(decoded.mean() - np.asarray(gradient()).mean()) < 30


def test_grey_of_eight_and_sixteen_bits_agree():
    grey = np.asarray(gradient().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for file_format in ("PNG", "TIFF"):
        decoded = decode_image(encoded(deep, file_format))
        assert np.array_equal(decoded, decode_image(encoded(Image.fromarray(grey), file_format)))
        assert np.array_equal(decoded[..., 0], grey)
    big_endian = Image.frombytes("I;16B", deep.size, (grey.astype(">u2") * 257).tobytes())
    assert np.array_equal(decode_image(big_endian)[..., 0], grey)


def test_colour_png_of_sixteen_bits():
    pixels = np.asarray(gradient()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    assert np.array_equal(decode_image(png(60, 40, 16, 2, rows)), np.asarray(gradient()))


def test_float_tiff_in_either_range():
    grey = np.asarray(gradient().convert("L"))
    for values in (grey.astype(np.float32), grey.astype(np.float32) / 255):
        assert np.array_equal(decode_image(encoded(Image.fromarray(values), "TIFF"))[..., 0], grey)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(file_format):
    picture = Image.new("RGBA", (10, 10), (255, 0, 0, 255))
    picture.paste((0, 0, 255, 0), (5, 0, 10, 10))
    decoded = decode_image(encoded(picture, file_format, **({"lossless": True} if file_format == "WEBP" else {})))
    assert decoded[0, 0].tolist() == [255, 0, 0] and decoded[0, 9].tolist() == [255, 255, 255]


def test_transparent_palettes_are_laid_on_white():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.putpixel((0, 0), 0)
    for file_format in ("PNG", "GIF"):
        decoded = decode_image(encoded(picture, file_format, transparency=0))
        assert decoded[0, 0].tolist() == [255, 255, 255] and decoded[3, 3].tolist() == [200, 0, 0]
    grey = decode_image(encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7))
    assert grey[0, 0].tolist() == [255, 255, 255]


def test_cmyk_jpeg_keeps_its_colours():
    picture = Image.new("RGB", (32, 32), (220, 30, 40)).convert("CMYK")
    content = encoded(picture, "JPEG", quality=95)
    assert b"Adobe" in content  # inverted, as Photoshop writes it
    assert np.abs(decode_image(content).mean(axis=(0, 1)) - [220, 30, 40]).max() < 4


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(file_format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert np.abs(decode_image(content).astype(int) - [255, 0, 0]).max() < 8


def test_the_callers_picture_is_not_changed():
    picture = Image.open(io.BytesIO(encoded(gradient(2000, 1000), "JPEG")))
    decode_image(picture, target=50)
    assert (picture.size, picture.mode) == ((2000, 1000), "RGB")
    array = np.asarray(gradient()).copy()
    decode_image(array)[:] = 0
    assert np.array_equal(array, np.asarray(gradient()))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3), (5, 6, 4)])
def test_arrays_of_any_memory_layout(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if shape[2:] == (4,):
        array[..., 3] = 255
    expected = np.stack([array] * 3, axis=-1) if array.ndim == 2 else array[..., :3]
    assert np.array_equal(decode_image(array), expected)
    assert np.array_equal(decode_image(array[::-1, ::-1]), expected[::-1, ::-1])
    assert np.array_equal(decode_image(np.asfortranarray(array)), expected)


# --- size ---


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    "A PNG file written by hand."
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it, in KiB")
def test_a_pixel_bomb_is_refused_without_a_warning_or_memory():
    bomb = png(40_000, 40_000, 8, 2, bytes(1_500_000))
    assert len(bomb) < 2048
    code = (
        "import resource, sys, warnings; warnings.simplefilter('error')\n"
        "from card_classifier.images import ImageTooLargeError, decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode_image(sys.stdin.buffer.read(), target=224)\n"
        "except ImageTooLargeError as error: print(error)\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "40,000 x 40,000 pixels is too large" in done.stdout.decode()
    assert not done.stderr


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_limit_holds_for_every_format(file_format):
    content = encoded(Image.new("L", (100, 101)), file_format)
    assert decode_image(content, max_pixels=10_100).shape == (101, 100, 3)
    with pytest.raises(ImageTooLargeError, match="100 x 101 pixels is too large"):
        decode_image(content, max_pixels=10_099)
    with pytest.raises(ImageTooLargeError):
        decode_image(Image.open(io.BytesIO(content)), max_pixels=10_099)


def test_a_large_jpeg_is_decoded_at_reduced_size():
    content = encoded(gradient(3200, 2400), "JPEG", quality=90)
    assert decode_image(content, target=224).shape == (600, 800, 3)
    assert decode_image(content).shape == (2400, 3200, 3)
    reduced, full = prepare_image(content, 224).astype(int), resize_image(decode_image(content), 224)
    assert np.abs(reduced - full).max() <= 3


def test_a_reduced_jpeg_may_be_larger_but_not_a_progressive_one():
    picture = gradient(1000, 1000)
    assert decode_image(encoded(picture, "JPEG"), max_pixels=300_000, target=100).shape == (250, 250, 3)
    with pytest.raises(ImageTooLargeError):
        decode_image(encoded(picture, "JPEG", progressive=True), max_pixels=300_000, target=100)
    with pytest.raises(ImageTooLargeError):
        decode_image(encoded(picture, "JPEG"), max_pixels=200_000, target=100)
    with pytest.raises(ImageTooLargeError):
        decode_image(encoded(picture, "JPEG"), max_pixels=300_000)
    assert 200_000_000 < 4 * MAX_PIXELS < 4 * Image.MAX_IMAGE_PIXELS


# --- what is no picture ---


@pytest.mark.parametrize(
    "content, error, words",
    [
        (b"", EmptyImageError, "0 bytes"),
        (b"hello", NotAnImageError, "text"),
        ("Pik Aß".encode() * 500, NotAnImageError, "text"),
        (b"%PDF-1.7\n%\xe2\xe3", NotAnImageError, "PDF"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", NotAnImageError, "HEIC.*JPEG or PNG"),
        (b"\0\0\0\x1cftypavif", NotAnImageError, "AVIF"),
        (b"\0\0\0\x1cftypisom", NotAnImageError, "video"),
        (b"PK\x03\x04rest", NotAnImageError, "zip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NotAnImageError, "vector"),
        (b"\x89PNG\r\n\x1a\n", BrokenImageError, "PNG"),
        (b"\xff\xd8\xff", BrokenImageError, "JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", BrokenImageError, "WebP"),
        (b"GIF89a", BrokenImageError, "GIF"),
        (b"II*\0", BrokenImageError, "TIFF"),
        (bytes(1000), NotAnImageError, "no image"),
        (b"8BPS\0\x01", NotAnImageError, "no image"),
    ],
)
def test_everything_else_has_its_error(content, error, words):
    with pytest.raises(error, match=words):
        decode_image(content)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_half_a_picture_is_an_image_error_or_a_whole_picture(file_format, share):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
    content = encoded(noise, file_format)
    with pytest.raises(BrokenImageError):
        decode_image(content[: int(len(content) * share)])


def test_files_that_can_not_be_read(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(EmptyImageError):
        decode_image(tmp_path / "empty.jpg")
    for path in (tmp_path, tmp_path / "none.jpg", "", "a\0b", "x" * 9999, tmp_path / "empty.jpg" / "below"):
        with pytest.raises(UnreadableFileError):
            decode_image(path)
    with pytest.raises(OSError):  # the same error for who expects the usual kind
        decode_image("none.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UnreadableFileError):
            decode_image(tmp_path / "pipe")


@pytest.mark.parametrize("source", [None, 7, 1.5, ["a.jpg"], io.BytesIO(b""), np.zeros((4, 4, 3)), np.zeros((4, 4), bool)])
def test_what_is_no_source_is_a_type_error(source):
    with pytest.raises(TypeError):
        decode_image(source)


def test_a_closed_picture_is_an_image_error(tmp_path):
    gradient().save(tmp_path / "card.png")
    picture = Image.open(tmp_path / "card.png")
    picture.close()
    with pytest.raises(BrokenImageError):
        decode_image(picture)


SEEDS = [encoded(gradient(24, 16), file_format) for file_format in FORMATS] + [
    encoded(gradient(24, 16).convert("CMYK"), "JPEG"),
    encoded(gradient(24, 16).convert("P"), "PNG"),
    encoded(gradient(24, 16).convert("L"), "TIFF", compression="tiff_deflate"),
    encoded(gradient(24, 16), "PNG", save_all=True, append_images=[gradient(24, 16).rotate(180)]),
    encoded(gradient(24, 16), "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
]


@settings(max_examples=600)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1), st.sampled_from([None, 8]))
def test_mutated_images_are_pictures_or_image_errors(seed, changes, cut, target):
    content = bytearray(seed)
    for place, value in changes:
        content[min(int(place**2 * len(content)), len(content) - 1)] = value  # squared: more of them in the header
    if cut < 0.3:
        content = content[: int(len(content) * cut / 0.3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            decoded = decode_image(bytes(content), max_pixels=1_000_000, target=target)
        except ImageError as error:
            assert str(error)
        else:
            assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3 and 0 < decoded.size <= 3_000_000


@given(st.binary(max_size=300))
@example(b"GIF87a\x00\x00\x00\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x01\x00")  # a picture of one pixel
def test_arbitrary_bytes_are_image_errors_unless_they_are_a_picture(content):
    try:
        decoded = decode_image(content)
    except ImageError as error:
        assert str(error)
    else:
        assert decoded.shape == (*Image.open(io.BytesIO(content)).size[::-1], 3)


# --- numbers ---


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=53), st.floats(0.01, 100))
def test_softmax_gives_probabilities_in_the_order_of_the_logits(logits, temperature):
    probabilities = softmax(logits, temperature)
    assert abs(probabilities.sum() - 1) < 1e-9 and (probabilities >= 0).all()
    assert probabilities[int(np.argmax(logits))] == probabilities.max()


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64]))
def test_preparing_is_decoding_and_resizing(width, height, size):
    content = encoded(gradient(width, height), "PNG")
    prepared = prepare_image(content, size)
    assert (prepared.shape, prepared.dtype) == ((size, size, 3), np.uint8)
    assert np.array_equal(prepared, resize_image(decode_image(content), size))
    assert np.array_equal(prepare_image(prepared, size), prepared)


# --- bundles ---


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    "A copy of the tiny bundle that a test may damage."
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def change(bundle, where=None, **values) -> None:
    "Changes keys of a bundle's description, or of one of its networks; None removes a key."
    content = json.loads((bundle / BUNDLE_FILE).read_text())
    changed = content if where is None else content["networks"][where]
    changed.update(values)
    for key in [key for key, value in changed.items() if value is None and key in values]:
        del changed[key]
    (bundle / BUNDLE_FILE).write_text(json.dumps(content))


def test_a_bundle_is_read_as_it_was_written(tiny_info, tmp_path):
    described = tiny_info.with_network("classifier", mean=(0.1, 0.2, 0.3), metrics={"accuracy": 0.97}, training={"seed": 1})
    info = dataclasses.replace(described, metrics={"note": "gemessen ♥"})
    (tmp_path / "somewhere.onnx").write_bytes(colour_network())
    folder = write_bundle(tmp_path / "deep" / "bundle", info, {"classifier": tmp_path / "somewhere.onnx"})
    found = read_bundle(folder)
    assert found == info.with_network("classifier", file=CLASSIFIER_FILE, sha256=found.classifier.sha256)
    first = (folder / BUNDLE_FILE).read_bytes()
    assert b"\r" not in first and write_bundle(folder, info, {"classifier": colour_network()}) == folder
    assert (folder / BUNDLE_FILE).read_bytes() == first


@pytest.mark.parametrize(
    "values, words",
    [
        ({"format": 4}, "update card_classifier"),
        ({"format": 2}, "card-classifier bundle convert"),
        ({"format": 1}, "export the model again"),
        ({"format": "1"}, "does not describe a bundle"),
        ({"format": True}, "does not describe a bundle"),
        ({"class_names": ["ace of clubs"]}, "53 cards"),
        ({"class_names": [{}] * 53}, "53 cards"),
        ({"surprise": 1}, r"keys \['surprise'\]"),
        ({"data": None}, r"keys \['data'\]"),
        ({"networks": {}}, "networks must be a classifier"),
        ({"networks": []}, "networks must be a dict"),
        ({"networks": {"classifier": []}}, "lacks or adds the keys"),
    ],
)
def test_a_wrong_description_is_refused_with_advice(bundle, values, words):
    change(bundle, **values)
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": "hot"}, "temperature must be a finite number"),
        ({"temperature": True}, "temperature must be a finite number"),
        ({"temperature": float("inf")}, "temperature must be a finite number"),
        ({"temperature": None}, r"classifier, lacks or adds the keys \['temperature'\]"),
        ({"thresholds": {"rejection": 1.5, "whole_photo": 0.9}}, "thresholds must be rejection and whole_photo, from 0 to 1"),
        ({"thresholds": {"rejection": 0.5}}, "thresholds must be rejection and whole_photo, from 0 to 1"),
        ({"thresholds": {"rejection": True, "whole_photo": 0.9}}, "thresholds must be rejection and whole_photo, from 0 to 1"),
        ({"thresholds": 0.5}, "thresholds must be a dict"),
        ({"input_size": 0}, "input_size must be from 16"),
        ({"input_size": 16.5}, "input_size must be"),
        ({"mean": [1, 2]}, "three numbers each"),
        ({"mean": 5}, "mean must be a list"),
        ({"precision": "f8"}, "precision must be f32 or bf16"),
        ({"precision": []}, "precision must be a str"),
        ({"bits": 4}, "bits must be 8 or 32"),
        ({"sha256": "00"}, "SHA-256"),
        ({"sha256": 7}, "sha256 must be a str"),
        ({"sha256": "0" * 64}, "checksum differs.*get the bundle again"),
        ({"file": ""}, "plain name"),
        ({"file": "../../etc/passwd"}, "plain name"),
        ({"file": ".."}, "plain name"),
        ({"file": "a/b"}, "plain name"),
        ({"file": "classifier.onnx\n"}, "plain name"),
        ({"file": "bundle.json"}, "plain name"),
    ],
)
def test_a_wrong_network_is_refused_with_advice(bundle, values, words):
    change(bundle, "classifier", **values)
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format": 1}', b'"format"'])
def test_a_damaged_description_is_refused(bundle, content):
    (bundle / BUNDLE_FILE).write_bytes(content)
    with pytest.raises(BundleError):
        read_bundle(bundle)


def test_missing_files_are_named(bundle, tmp_path):
    (bundle / CLASSIFIER_FILE).unlink()
    with pytest.raises(BundleError, match=r"classifier.onnx can.t be read"):
        read_bundle(bundle)
    with pytest.raises(BundleError, match="there is no bundle folder"):
        read_bundle(tmp_path / "nowhere")


@given(st.binary(max_size=200))
def test_arbitrary_descriptions_are_bundle_errors(content):
    with TemporaryDirectory() as folder:
        with open(os.path.join(folder, BUNDLE_FILE), "wb") as file:
            file.write(content)
        with pytest.raises(BundleError):
            read_bundle(folder)


def test_nothing_is_overwritten_silently(bundle, tiny_info, tmp_path):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(BundleError, match="another bundle lies in"):
        write_bundle(bundle, tiny_info, {"classifier": b"other"})
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="something that is no bundle"):
            write_bundle(tmp_path / "notes", tiny_info, {"classifier": b"other"}, overwrite=overwrite)
    write_bundle(bundle, tiny_info, {"classifier": b"other"}, overwrite=True)
    assert (bundle / CLASSIFIER_FILE).read_bytes() == b"other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "notes"]


def test_two_writers_leave_one_whole_bundle(tiny_info, tmp_path):
    results = []

    def write(content: bytes) -> None:
        try:
            results.append(write_bundle(tmp_path / "bundle", tiny_info, {"classifier": content}))
        except (BundleError, OSError) as error:
            results.append(error)

    writers = [threading.Thread(target=write, args=(bytes([number]) * 100_000,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sum(not isinstance(result, Exception) for result in results) == 1
    read_bundle(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_nothing(tiny_info, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_bundle(tmp_path / "file" / "bundle", tiny_info, {"classifier": b"model"})
    with pytest.raises(BundleError, match="JSON"):
        write_bundle(tmp_path / "bundle", dataclasses.replace(tiny_info, metrics={"loss": float("nan")}), {"classifier": b"model"})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- the format before ---


@pytest.fixture
def old_bundle(tmp_path):
    "The released bundle as it was in format 2: today's networks under their old names, and the description that stood beside them."
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(released_bundle() / "classifier.onnx", folder / "model.onnx")
    shutil.copy(released_bundle() / "detector.onnx", folder / "finder.onnx")
    shutil.copy(ROOT / "tests" / "data" / "bundle-format-2.json", folder / "bundle.json")
    return folder


def test_the_format_before_is_refused_with_the_command_that_converts_it(old_bundle):
    with pytest.raises(BundleError, match=f"convert it with: card-classifier bundle convert {re.escape(str(old_bundle))}"):
        read_bundle(old_bundle)


@pytest.mark.parametrize("to", ["", "new"])
def test_the_format_before_is_converted_and_nothing_is_lost(old_bundle, tmp_path, to):
    old = json.loads((old_bundle / "bundle.json").read_text())
    command = [COMMAND, "bundle", "convert", str(old_bundle), *(["--to", str(tmp_path / to)] if to else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / to if to else old_bundle
    assert (old_bundle / "finder.onnx").exists() is bool(to), "what is converted elsewhere stays"
    info, released = read_bundle(folder), read_bundle(released_bundle())
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "classifier.onnx", "detector.onnx"]
    assert (info.model_version, info.name, info.created) == (released.model_version, released.name, released.created)
    assert (info.model_version, info.name) == (old["model_version"], old["name"])
    for kind, network in info.networks.items():
        known = released.networks[kind]
        for field in ("input_size", "mean", "std", "architecture", "thresholds", "temperature", "precision", "bits", "run", "sha256"):
            assert getattr(network, field) == getattr(known, field), (kind, field)
        assert network.ancestors and all(one["settings"] is None for one in network.ancestors), "unknown, not invented"
    assert info.classifier.metrics.keys() | info.metrics.keys() == old["metrics"].keys()
    assert info.classifier.training == old["training"] and info.detector.metrics == {"corner_error": old["finder"]["corner_error"]}


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"swapped"), "checksum differs"),
        (lambda folder: (folder / "finder.onnx").unlink(), "can't be read"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 2}'), "export the model again"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 3}'), "nothing to convert"),
        (lambda folder: (folder / "bundle.json").write_bytes(b"\xff"), "not JSON"),
    ],
)
def test_what_cannot_be_converted_stays_as_it_is(old_bundle, break_it, words):
    break_it(old_bundle)
    before = {path.name: path.read_bytes() for path in old_bundle.iterdir()}
    with pytest.raises(BundleError, match=words):
        convert_bundle(old_bundle)
    assert {path.name: path.read_bytes() for path in old_bundle.iterdir()} == before


def test_a_tricky_file_name_in_the_format_before_is_no_way_out_of_the_folder(old_bundle, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    old = json.loads((old_bundle / "bundle.json").read_text())
    old["files"]["../secret"] = hashlib.sha256(b"secret").hexdigest()
    (old_bundle / "bundle.json").write_text(json.dumps(old))
    with pytest.raises(BundleError, match="export the model again"):
        convert_bundle(old_bundle, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- the released one ---


def test_the_released_bundle_knows_its_ancestors_back_to_public_weights():
    info = read_bundle(released_bundle())
    contents = {kind: (released_bundle() / network.file).read_bytes() for kind, network in info.networks.items()}
    assert info.model_version == model_version_of(contents) == "c4360eb17ffb"
    for network in info.networks.values():
        runs = {one["run"]: one for one in network.ancestors}
        named = {name for text in (network.training["weights"], *(one["weights"] for one in runs.values())) for name in RUN_NAME.findall(text)}
        assert named == set(runs), "every run that is named as a start is described"
        assert "ImageNet" in list(runs.values())[-1]["weights"]
