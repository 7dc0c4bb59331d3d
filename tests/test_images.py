"Images of every kind, and damaged ones: each becomes pixels, or a sentence that says what to do."

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from tiny_data import tiny_files, write_files

from card_classifier.bundle import DETECTOR_STRIDE
from card_classifier.cards import CARDS, Card
from card_classifier.data.cache import cache_images
from card_classifier.data.shards import prepare
from card_classifier.data.source import scan_folder
from card_classifier.formats import (
    BrokenImageError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    UnreadableFileError,
)
from card_classifier.images import (
    KEPT_PIXELS,
    MAX_PIXELS,
    decode_image,
    letterbox,
    prepare_image,
    resize_image,
    straighten,
)
from card_classifier.recognition.detection import detect_once
from card_classifier.recognition.predictor import Predictor, crops_of, examine
from card_classifier.render.faces import render_face
from card_classifier.render.scenes import render_scene
from card_classifier.render.styles import random_style
from card_classifier.training.detector import into_square

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


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


@pytest.fixture(scope="module")
def released() -> Predictor:
    return Predictor()


# --- every kind of picture ---


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_gives_the_same_picture(file_format):
    decoded = decode_image(encoded(gradient(), file_format))
    assert (decoded.shape, decoded.dtype) == ((40, 60, 3), np.uint8)
    assert (
        np.abs(decoded.astype(int) - np.asarray(gradient())).mean() < 12
    )  # GIF has 256 colours, JPEG and WebP lose detail
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


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBa", "La", "RGBX", "LAB"]
)
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


def test_what_is_kept_is_bounded_and_what_is_read_is_the_same_for_every_format():
    panorama = Image.new("L", (33_000, 2000), 200)
    for content in (encoded(panorama, file_format) for file_format in ("JPEG", "GIF")):
        decoded = decode_image(content)
        assert decoded.shape == (1000, 16_500, 3) and decoded[::400, ::1500].min() > 195
    assert MAX_PIXELS >= 16_320 * 12_240 and KEPT_PIXELS * 3 < 200_000_000


# --- what is not a picture ---


@pytest.mark.parametrize(
    "content, error, words",
    [
        (b"", EmptyImageError, "0 bytes"),
        (b"hello", NotAnImageError, "text"),
        ("Pik Aß".encode() * 500, NotAnImageError, "text"),
        (b"%PDF-1.7\n%\xe2\xe3", NotAnImageError, "PDF"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", BrokenImageError, "HEIC"),
        (b"\0\0\0\x1cftypavif", BrokenImageError, "AVIF"),
        (b"\0\0\0\x1cftypisom", NotAnImageError, "video"),
        (b"PK\x03\x04rest", NotAnImageError, "zip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NotAnImageError, "vector"),
        (b"\x89PNG\r\n\x1a\n", BrokenImageError, "PNG"),
        (b"\xff\xd8\xff", BrokenImageError, "JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", BrokenImageError, "WebP"),
        (b"GIF89a", BrokenImageError, "GIF"),
        (b"II*\0", BrokenImageError, "TIFF"),
        (bytes(1000), NotAnImageError, "not an image"),
        (b"8BPS\0\x01", NotAnImageError, "Photoshop"),
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


@pytest.mark.parametrize(
    "source", [None, 7, 1.5, ["a.jpg"], io.BytesIO(b""), np.zeros((4, 4, 3)), np.zeros((4, 4), bool)]
)
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
    encoded(
        gradient(24, 16),
        "JPEG",
        progressive=True,
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
]


@settings(max_examples=600)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.sampled_from([None, 8]),
)
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
            assert (
                decoded.dtype == np.uint8
                and decoded.ndim == 3
                and decoded.shape[2] == 3
                and 0 < decoded.size <= 3_000_000
            )


@given(st.binary(max_size=300))
@example(
    b"GIF87a\x00\x00\x00\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x01\x00"
)  # a picture of one pixel
def test_arbitrary_bytes_are_image_errors_unless_they_are_a_picture(content):
    try:
        decoded = decode_image(content)
    except ImageError as error:
        assert str(error)
    else:
        assert decoded.shape == (*Image.open(io.BytesIO(content)).size[::-1], 3)


# --- resizing ---


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64]))
def test_preparing_is_decoding_and_resizing(width, height, size):
    content = encoded(gradient(width, height), "PNG")
    prepared = prepare_image(content, size)
    assert (prepared.shape, prepared.dtype) == ((size, size, 3), np.uint8)
    assert np.array_equal(prepared, resize_image(decode_image(content), size))
    assert np.array_equal(prepare_image(prepared, size), prepared)


# --- a photo in a square, a card straightened ---


def test_straightening_undoes_any_perspective():
    face = render_face(CARDS[40], random_style(3), 300)[..., :3]
    generator = np.random.default_rng(2)
    for _ in range(10):
        corners = np.float32([(200, 150), (500, 150), (500, 570), (200, 570)]) + generator.uniform(
            -60, 60, (4, 2)
        ).astype(np.float32)
        source = np.float32([(0, 0), (face.shape[1], 0), (face.shape[1], face.shape[0]), (0, face.shape[0])])
        photo = cv2.warpPerspective(face, cv2.getPerspectiveTransform(source, corners), (800, 700))
        ours = straighten(photo, corners, 224, margin=0)[20:-20, 20:-20].astype(float).ravel()
        truth = cv2.resize(face, (224, 224), interpolation=cv2.INTER_AREA)[20:-20, 20:-20].astype(float).ravel()
        assert np.corrcoef(ours, truth)[0, 1] > 0.9


@pytest.mark.parametrize("shape", [(10, 10000), (10000, 10), (1, 1), (320, 320)])
def test_any_format_fits_into_the_square(shape):
    square, scale = letterbox(np.full((*shape, 3), 200, np.uint8), 320)
    assert square.shape == (320, 320, 3) and scale == max(shape) / 320


# --- the same in training and in use ---


class Watched:
    "A detector that finds nothing and keeps what it was shown."

    def __init__(self):
        self.images = []

    def __call__(self, images):
        self.images.append(images[0].copy())
        n = images.shape[1] // DETECTOR_STRIDE
        return np.zeros((1, n, n), np.float32), np.zeros((1, n, n, 4, 2), np.float32)


def test_the_cache_of_training_holds_what_the_classifier_is_shown(tiny_bundle, tmp_path):
    "What training has decoded once is, pixel for pixel, what the predictor makes of the same file."
    raw = write_files(tmp_path / "raw", tiny_files())
    shards = prepare(scan_folder(raw), tmp_path / "shards")
    size, predictor = 16, Predictor(tiny_bundle)
    cached, samples = cache_images(shards, "valid", size, tmp_path / "cache"), shards.samples("valid")
    assert len(cached) == len(samples) > 0
    for image, sample in zip(cached.images, samples, strict=True):
        (examined,) = examine(predictor, [shards.read(sample)])
        assert np.array_equal(image, examined.image)


def test_a_training_scene_reaches_the_detector_as_a_photo_does():
    "A scene composed for training, given to recognition as a photo, arrives at the detector with the same pixels."
    cards, generator = [Card.parse("ace of spades"), Card.parse("ten of hearts")], np.random.default_rng(3)
    for height, width in ((160, 120), (120, 160), (160, 160), (480, 640)):
        scene, detector = render_scene(cards, random_style(4), generator, height, width), Watched()
        detect_once(detector, 160, 0.5, scene.image)
        assert np.array_equal(detector.images[0], into_square(scene, 160, is_stretched=False).image)


def test_a_training_crop_is_cut_as_recognition_cuts_it(released):
    "The corners that the detector gives, cut out by recognition and by training's function, are the same pixels."
    cards = [Card.parse("ace of spades"), Card.parse("ten of hearts")]
    scene = render_scene(cards, random_style(4), np.random.default_rng(3), 480, 640)
    found = released.detect(scene.image)
    crops, _ = crops_of(released, scene.image, scene.image)
    assert len(found) == len(crops) == 2
    for detection, crop in zip(found, crops, strict=True):
        assert np.array_equal(
            crop.image, straighten(scene.image, detection.corners, released.info.classifier.input_size)
        )
