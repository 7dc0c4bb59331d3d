"Photographs that are built to exhaust their reader: each is an error in a sentence, in little time and memory."

import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_api import serving

from card_classifier.formats import (
    BrokenImageError,
    ImageError,
    ImageTooLargeError,
    UnsupportedImageError,
    inspect_image,
)
from card_classifier.images import decode_image
from card_classifier.recognition.decoding import Decoder, Patience, StoppedError, is_quick
from card_classifier.recognition.predictor import Predictor, examine


def encoded(picture: Image.Image, file_format: str, **options) -> bytes:
    "The bytes of a picture file."
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    "One chunk of a PNG file."
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff_bomb(n_entries: int, n_bytes: int) -> bytes:
    "A TIFF, or EXIF data, whose entries all point at the same bytes."
    entries = b"".join(struct.pack("<HHII", 1000 + number, 7, n_bytes, 8) for number in range(n_entries))
    return struct.pack("<2sHI", b"II", 42, 8 + n_bytes) + bytes(n_bytes) + struct.pack("<H", n_entries) + entries


def many_scans(n_scans: int, side: int = 2000) -> bytes:
    "A progressive JPEG whose last scan is repeated."
    content = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * n_scans + content[-2:]


def run_length_bitmap(side: int) -> bytes:
    "A BMP in runs of one pixel, which Pillow unpacks in Python."
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    pixels = b"\1\0" * (side * side)
    return struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(pixels), 0, 0, 54 + 1024) + header + bytes(1024) + pixels


RED = Image.new("RGB", (64, 48), (200, 30, 40))
JPEG, PNG, GIF, WEBP = (encoded(RED, name) for name in ("JPEG", "PNG", "GIF", "WEBP"))
GIF_START = 13 + (3 << (GIF[10] & 7) + 1)
GIF_HEAD, GIF_REST = GIF[:GIF_START], GIF[GIF_START:]
ATTACKS = {
    "a directory of entries at the same bytes": (tiff_bomb(8000, 3_000_000), "8,000 entries"),
    "fewer entries at the same bytes": (tiff_bomb(900, 1_000_000), "points at 900,000,000 bytes"),
    "comments in blocks of a byte": (GIF_HEAD + b"\x21\xfe" + b"\1c" * 10**6 + b"\0" + GIF_REST, "pieces"),
    "many comments": (GIF_HEAD + b"\x21\xfe\1c\0" * 400_000 + GIF_REST, "pieces"),
    "scans without end": (many_scans(3000), "more scans"),
    "segments without end": (JPEG[:2] + b"\xff\xfe\0\3c" * 400_000 + JPEG[2:], "more segments"),
    "fill bytes without end": (JPEG[:2] + b"\xff" * 2_000_000 + JPEG[2:], "belong to no part"),
    "camera notes in pieces": (JPEG[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 300 + JPEG[2:], "pieces"),
    "chunks without end": (PNG[:33] + chunk(b"IDAT", b"") * 160_000 + PNG[33:], "more chunks"),
    "frames without end": (WEBP + b"ANMF\0\0\0\0" * 250_000, "more chunks"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_is_not_built_like_a_photograph_is_refused_before_it_is_decoded(name):
    content, words = ATTACKS[name]
    started = time.process_time()
    with pytest.raises(BrokenImageError, match=words):
        decode_image(content)
    assert time.process_time() - started < 2  # tens of milliseconds; Pillow took seconds, or gigabytes


def segments(marker: int, content: bytes, head: bytes = b"") -> bytes:
    "As many segments of a JPEG as a content needs, each of which begins with `head`."
    pieces = (head + content[start : start + 65_000] for start in range(0, len(content), 65_000))
    return b"".join(b"\xff%c" % marker + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)


BARE = JPEG[:2] + JPEG[4 + int.from_bytes(JPEG[4:6], "big") :]  # Without JFIF Pillow looks into EXIF as it opens it
RESOURCES = b"".join(b"8BIM" + struct.pack(">HHI", 2000 + number, 0, 0) for number in range(5400))
PREFIXES = b"Exif\0\0" * 100_000
NOTES = {
    "JPEG, entries at the same bytes": (BARE, segments(0xE1, tiff_bomb(900, 1_900_000), b"Exif\0\0"), 2),
    "JPEG, prefixes without end": (JPEG, segments(0xE1, PREFIXES, b"Exif\0\0"), 2),
    "JPEG, Photoshop's notes": (JPEG, segments(0xED, b"Photoshop 3.0\0" + RESOURCES) * 300, 2),
    "PNG, entries at the same bytes": (PNG, chunk(b"eXIf", tiff_bomb(900, 1_000_000)), 33),
    "PNG, prefixes without end": (PNG, chunk(b"eXIf", PREFIXES), 33),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_beyond_all_measure_are_not_read(name):
    plain, notes, place = NOTES[name]
    pixels, started = decode_image(plain), time.process_time()
    tracemalloc.start()
    try:
        assert np.array_equal(decode_image(plain[:place] + notes + plain[place:]), pixels)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(notes) + 20_000_000  # Pillow took gigabytes
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2


def test_the_notes_of_a_camera_turn_a_picture():
    picture = Image.new("RGB", (40, 20), "navy")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert decode_image(encoded(picture, name, exif=exif)).shape == (40, 20, 3)


def test_a_good_image_is_not_called_damaged():
    novel = PngImagePlugin.PngInfo()
    novel.add_text("Novel", "It was a dark and stormy night. " * 100_000, zip=True)
    novel.add_itxt("XML:com.adobe.xmp", "<x/>" * 400_000, zip=True)
    profile = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
    for options in ({"pnginfo": novel}, {"icc_profile": profile}):
        assert np.array_equal(decode_image(encoded(RED, "PNG", **options)), decode_image(PNG))
    story = GIF_HEAD + b"\x21\xfe" + (b"\xff" + b"c" * 255) * 4000 + b"\0" + GIF_REST
    assert np.array_equal(decode_image(story), decode_image(GIF))
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8))
    for options in ({}, {"progressive": True}, {"quality": 100}, {"restart_marker_blocks": 3}):
        whole = encoded(noise, "JPEG", **options)
        assert np.array_equal(decode_image(whole[:-2]), decode_image(whole))
        for n_missing in (5, 40, 1000, len(whole) // 2):
            with pytest.raises(BrokenImageError, match="cut off"):
                decode_image(whole[:-n_missing])


def with_frame(marker: int, depth: int) -> bytes:
    "A JPEG of a rare kind."
    place = JPEG.index(b"\xff\xc0")
    return JPEG[: place + 1] + bytes((marker,)) + JPEG[place + 2 : place + 4] + bytes((depth,)) + JPEG[place + 5 :]


@pytest.mark.parametrize(
    "content",
    [
        with_frame(0xC1, 12),
        with_frame(0xC7, 8),
        PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:],
        encoded(RED, "BMP").replace(struct.pack("<HHI", 1, 24, 0), struct.pack("<HHI", 1, 24, 4), 1),
        b"\xff\x0a" + bytes(range(40)),
        b"8BPS\0\1" + bytes(20),
    ],
    ids=["12-bit JPEG", "lossless JPEG", "Xcode's PNG", "JPEG in BMP", "JPEG XL", "Photoshop"],
)
def test_a_rare_kind_is_not_called_damaged(content):
    with pytest.raises(ImageError, match=r"not supported|save it as JPEG or PNG") as raised:
        decode_image(content)
    assert not isinstance(raised.value, BrokenImageError)


def test_photos_of_iphones_are_read():
    heif = pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (96, 64), "white")
    picture.paste("black", (0, 0, 48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # as an iPhone says it: libheif has turned the picture by then
    buffer = io.BytesIO()
    heif.from_pillow(picture).save(buffer, quality=90, exif=exif.tobytes())
    decoded = decode_image(buffer.getvalue())
    turned = decoded if decoded.shape == (64, 96, 3) else np.rot90(decoded)
    assert turned.shape == (64, 96, 3) and decoded.mean() > 150
    with Decoder() as decoder:
        assert np.array_equal(decoder.decode(buffer.getvalue()), decoded)
    assert decode_image(encoded(picture, "AVIF")).shape == (64, 96, 3)
    with pytest.raises(ImageTooLargeError):
        decode_image(buffer.getvalue(), max_pixels=1000)


def test_without_pillow_heif_a_photo_of_an_iphone_is_not_supported():
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from card_classifier.images import decode_image\n"
        "from card_classifier.formats import UnsupportedImageError\n"
        "try: decode_image(sys.stdin.buffer.read())\n"
        "except UnsupportedImageError as error: print(error)"
    )
    size = struct.pack(">I4sIII", 20, b"ispe", 0, 8, 8)
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + struct.pack(">I4sI", 40, b"meta", 0) + b"\0\0\0\0iprp"
    content += b"\0\0\0\0ipco" + size
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert "HEIC" in done.stdout.decode() and "JPEG or PNG" in done.stdout.decode()


def test_a_deadline_is_kept_whatever_the_decoder_does():
    bomb = run_length_bitmap(2400)
    assert not is_quick(inspect_image(bomb))
    with Decoder(seconds=0.3) as decoder:
        with pytest.raises(ImageTooLargeError, match=r"longer than 0\.3 s"):
            decoder.decode(bomb)
        assert decoder.decode(encoded(RED, "TIFF")).shape == (48, 64, 3)


def test_who_leaves_stops_the_work_and_who_waits_in_line_can_leave_it():
    bomb, patience, errors = run_length_bitmap(2400), [Patience(), Patience()], []
    with Decoder(seconds=60) as decoder:
        decoder.decode(encoded(RED, "TIFF"))

        def ask(one: Patience) -> None:
            try:
                decoder.decode(bomb, patience=one)
            except StoppedError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, args=(one,)) for one in patience]
        for thread in threads:
            thread.start()
        for one in reversed(patience):
            one.leave()
        for thread in threads:
            thread.join(20)
        assert len(errors) == 2 and not any(thread.is_alive() for thread in threads)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("signal_number, error", [(9, ImageTooLargeError), (11, BrokenImageError)])
def test_a_decoder_that_dies_takes_only_its_photograph_along(signal_number, error):
    with Decoder(seconds=60) as decoder:
        decoder.decode(encoded(RED, "TIFF"))
        threading.Timer(0.2, os.kill, (decoder.processes[0].pid, signal_number)).start()
        with pytest.raises(error, match="decode"):
            decoder.decode(run_length_bitmap(2400))
        assert decoder.decode(encoded(RED, "TIFF")).shape == (48, 64, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_decoder_ends_with_whoever_started_it():
    code = (
        "import io, os, sys, time\nfrom PIL import Image\nfrom card_classifier.recognition.decoding import Decoder\n"
        "decoder, file = Decoder(), io.BytesIO()\nImage.new('L', (9, 9)).save(file, 'TIFF')\n"
        "decoder.decode(file.getvalue())\nprint(decoder.processes[0].pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    for _ in range(200):
        if not os.path.exists(f"/proc/{pid}") or " Z " in open(f"/proc/{pid}/stat").read():
            return
        time.sleep(0.05)
    raise AssertionError("the decoder goes on without its parent")


def test_photographs_of_a_request_are_held_one_at_a_time(tiny_bundle):
    predictor, content = Predictor(tiny_bundle), encoded(Image.new("L", (3000, 3000), 90), "PNG")
    peaks = []
    for n_photographs in (1, 4):
        tracemalloc.start()
        assert len(list(examine(predictor, [content] * n_photographs))) == n_photographs
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]  # the array of one takes 27 MB


def test_what_is_inspected_twice_and_decoded_apart_is_the_same(tiny_bundle):
    exif = Image.Exif()
    exif[0x0112] = 8
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8))
    with Decoder() as decoder:
        for file_format in ("TIFF", "AVIF"):
            content = encoded(noise, file_format, exif=exif)
            assert not is_quick(inspect_image(content))
            assert np.array_equal(decoder.decode(content), decode_image(content))
        with pytest.raises(UnsupportedImageError, match="not supported"):
            decoder.decode(with_frame(0xC1, 12))


# --- the service ---


def test_slow_photographs_leave_room_for_quick_ones_and_end_with_their_clients(tiny_bundle, tmp_path):
    "Each worker has one of them in its decoder; ordinary clients go on, and a service that is stopped ends at once."
    bomb, good = run_length_bitmap(3500), encoded(Image.new("RGB", (60, 40), "navy"), "JPEG")
    with serving(tmp_path, tiny_bundle, "--no-demo", "--max-body", "40000000", "--grace-seconds", "5") as running:
        address, process, _ = running
        for _ in range(6):
            body = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(bomb) + bomb
            client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
            client.sendall(body)
            client.close()  # who sent it doesn't wait for the answer
        answers = [httpx.post(address + "/v1/predict", content=good, timeout=30) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        small = httpx.post(address + "/v1/predict", content=encoded(RED, "TIFF"), timeout=60)
        assert small.status_code == 200  # the lane is free again: nobody waited for what was in it
        threads = [threading.Thread(target=ask, args=(address, bomb)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.terminate()
        assert process.wait(20) is not None
        for thread in threads:
            thread.join(10)


def ask(address: str, content: bytes) -> None:
    "A request of which nobody reads the answer."
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(address + "/v1/predict", content=content, timeout=30)
