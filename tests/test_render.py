"Rendered decks: the same bytes in every process and order; whole after a kill; true corners; nothing mirrored."
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from card_classifier.cards import CARDS, Card
from card_classifier.files import STALE_SECONDS
from card_classifier.render.composition import compose, rendered_deck
from card_classifier.render.dataset import DATA_SET_FILE, DeckError, render_data_set, render_image, renderer_key
from card_classifier.render.faces import render_back, render_face
from card_classifier.render.photograph import POSES, photograph, pose
from card_classifier.render.scenes import render_scene
from card_classifier.render.styles import random_style

SAMPLES = Path(__file__).parent/"renderer_samples"
COUNTS = {"train": 2, "valid": 1}
SIZE = 48
SAMPLE_SIZE = 56

def checksums(folder:Path)->dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}

@pytest.fixture(scope="module")
def rendered(tmp_path_factory)->Path:
    return render_data_set(tmp_path_factory.mktemp("deck")/"one", COUNTS, seed=5, size=SIZE)

def test_layout_is_the_public_one(rendered):
    rows = (rendered/"cards.csv").read_text().splitlines()
    assert rows[0] == "class index,filepaths,labels,card type,data set"
    assert len(rows) == 1 + 53*3
    for row in rows[1:]:
        index, path, label, rank, split = row.split(",")
        assert (rendered/path).is_file()
        assert path.startswith(f"{split}/{label}/")
        card = CARDS[int(index)]
        assert (card.class_name, card.rank.value) == (label, rank)
    image = cv2.imread(str(rendered/"train"/"ace of clubs"/"001.jpg"))
    assert image.shape == (SIZE, SIZE, 3)

def test_workers_and_order_do_not_change_the_bytes(rendered, tmp_path):
    steps = []
    other = render_data_set(tmp_path/"two", COUNTS, seed=5, size=SIZE, n_workers=2,
                            progress=lambda *step: steps.append(step))
    assert checksums(other) == checksums(rendered)
    assert steps == [(53*done, 53*3) for done in range(1, 4)]

def test_another_seed_gives_other_images(rendered, tmp_path):
    other = checksums(render_data_set(tmp_path/"three", {"valid": 1}, seed=6, size=SIZE))
    here = checksums(rendered)
    assert not [path for path in other if path.endswith(".jpg") and other[path] == here[path]]

def test_more_images_keep_the_first_ones(rendered, tmp_path):
    fewer, here = checksums(render_data_set(tmp_path/"four", {"train": 1}, seed=5, size=SIZE)), checksums(rendered)
    images = [path for path in fewer if path.endswith(".jpg")]
    assert len(images) == 53 and all(fewer[path] == here[path] for path in images)

def test_goes_on_after_a_kill(rendered, tmp_path):
    folder = tmp_path/"killed"
    code = ("from card_classifier.render.dataset import render_data_set\n"
            f"render_data_set({str(folder)!r}, {COUNTS}, seed=5, size={SIZE})")
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 300  # a busy machine is slow, not wrong
    while sum(1 for _ in folder.rglob("*.jpg")) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_there = sum(1 for _ in folder.rglob("*.jpg"))
    assert 20 <= n_there < 53*3, "the kill came too late to show anything"
    assert not json.loads((folder/DATA_SET_FILE).read_text())["is_complete"]
    drafts = (".cards.csv.0123abcd.draft", "train/joker/.001.jpg.0123abcd.draft") # What a kill leaves
    for path in (folder/draft for draft in drafts):
        path.write_bytes(b"half a picture")
        os.utime(path, (time.time() - 2*STALE_SECONDS,)*2) # Where there are no locks, their age tells
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    render_data_set(folder, COUNTS, seed=5, size=SIZE)
    assert checksums(folder) == checksums(rendered)
    is_same = [path.stat().st_mtime_ns == changed for path, changed in kept.items()]
    assert all(is_same), "what was there is not rendered again"

def test_two_at_once_do_not_disturb_each_other(rendered, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(render_data_set, tmp_path/"both", {"valid": 1}, seed=5, size=SIZE) for _ in range(2)]
        folders = [call.result() for call in calls]
    assert folders[0] == folders[1]
    both, here = checksums(folders[0]), checksums(rendered)
    images = [path for path in both if path.endswith(".jpg")]
    assert len(images) == 53 and all(both[path] == here[path] for path in images)
    assert sorted(both) == sorted([*images, "cards.csv", DATA_SET_FILE])

def test_complete_data_set_is_left_alone(rendered):
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*")}
    assert render_data_set(rendered, COUNTS, seed=5, size=SIZE) == rendered
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*")} == before

def test_refuses_folders_that_hold_something_else(rendered, tmp_path):
    with pytest.raises(DeckError, match="other settings: remove it, or choose another folder"):
        render_data_set(rendered, COUNTS, seed=7, size=SIZE)
    (tmp_path/"thesis.txt").write_text("do not touch")
    with pytest.raises(DeckError, match="is not empty and holds no rendered data set"):
        render_data_set(tmp_path, COUNTS)
    for text in ("{", "[]", '{"seed": 0}'):
        broken = tmp_path/"broken"
        broken.mkdir(exist_ok=True)
        (broken/DATA_SET_FILE).write_text(text)
        with pytest.raises(DeckError, match=r"deck\.json cannot be read"):
            render_data_set(broken, COUNTS)
    for counts in ({"train": -1}, {"train": 1000}, {"training": 1}):
        with pytest.raises(DeckError, match="0 to 999 images for train, valid and test"):
            render_data_set(tmp_path/"new", counts)
    assert not (tmp_path/"new").exists()

def test_bytes_do_not_depend_on_the_process():
    code = ("import hashlib, numpy as np\nfrom card_classifier.cards import CARDS\n"
            "from card_classifier.render.composition import compose, rendered_deck\n"
            "from card_classifier.render.dataset import render_image\n"
            "from card_classifier.render.scenes import render_scene\n"
            "from card_classifier.render.styles import random_style\n"
            "images = [render_image(1, 'train', CARDS[i], 0, 96) for i in range(0, 53, 18)]\n"
            "images.append(render_scene(CARDS[:3], random_style(2), np.random.default_rng(2), 120, 160).image)\n"
            "images.append(compose([rendered_deck(1)], np.random.default_rng(3), 160).image)\n"
            "print(hashlib.sha256(b''.join(image.tobytes() for image in images)).hexdigest())")
    runs = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone},
                           capture_output=True, text=True, check=True).stdout
            for seed, zone in (("1", "UTC"), ("77", "Asia/Tokyo"))}
    assert len(runs) == 1

def renderer_samples()->np.ndarray:
    "Faces, backs, images of a data set and a scene, side by side and small: what the renderer draws, in one picture."
    styles = [random_style(seed, family) for family in ("train", "unseen") for seed in (1, 2, 3)]
    tiles = [render_face(CARDS[index], style, 40)[..., :3] for style in styles for index in (0, 20, 23, 34, 44, 52)]
    tiles += [render_back(style, 40)[..., :3] for style in styles]
    places = [(split, index) for split in ("train", "valid") for index in range(0, 53, 5)]
    tiles += [render_image(2, split, CARDS[index], 0, SAMPLE_SIZE) for split, index in places]
    tiles.append(compose([rendered_deck(1)], np.random.default_rng(5), SAMPLE_SIZE, "row").image)
    sheet = np.zeros((5*SAMPLE_SIZE, 13*SAMPLE_SIZE, 3), np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number//13*SAMPLE_SIZE, number%13*SAMPLE_SIZE
        sheet[top:top + tile.shape[0], left:left + tile.shape[1]] = tile
    return sheet

def test_renderer_version_follows_what_is_drawn():
    "Rendered data sets and caches are named by `renderer_key`: it has to change when the pictures do."
    saved = SAMPLES/f"{renderer_key()}.png"
    how = (f"look at the pictures of nbs/render, then save the samples: python {Path(__file__).name} "
           "(and remove the older file from tests/renderer_samples)")
    assert saved.exists(), f"the renderer's tables or its version have changed: {how}"
    before, now = cv2.imread(str(saved))[..., ::-1].astype(int), renderer_samples().astype(int)
    assert before.shape == now.shape, how
    # Other processors round now and then; another drawing changes thousands of pixels
    n_changed = (np.abs(before - now).max(axis=2) > 8).sum()
    assert n_changed < 50, f"{n_changed} pixels differ: raise RENDERER_VERSION in nbs/render/10_dataset.ipynb, {how}"
    assert len(list(SAMPLES.glob("*.png"))) == 1, "only the samples of today's renderer are kept"

def test_a_small_change_of_a_drawing_is_noticed():
    style = random_style(1)
    king, other = (render_face(CARDS[22], replace(style, court_seed=seed), 64).astype(int) for seed in (1, 5))
    assert (np.abs(king - other).max(axis=2) > 8).sum() > 50, "another robe is enough"

def test_import_is_light():
    code = ("import sys, card_classifier.render.dataset\n"
            "print([name for name in ('matplotlib', 'torch', 'fastai', 'pandas') if name in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

def test_families_share_nothing_that_is_drawn():
    styles = {family: [random_style(seed, family) for seed in range(300)] for family in ("train", "unseen")}
    for name in (lambda style: style.font, lambda style: style.layout.name, lambda style: style.palette.name,
                 lambda style: style.shape.name):
        train, unseen = ({name(style) for style in styles[family]} for family in ("train", "unseen"))
        assert train and unseen and not train & unseen

@pytest.mark.parametrize(("seed", "family"), [(3, "train"), (21, "train"), (6, "unseen")])
def test_all_53_faces_differ(seed, family):
    style = random_style(seed, family)
    faces = np.stack([cv2.resize(render_face(card, style), (48, 67), interpolation=cv2.INTER_AREA) for card in CARDS])
    faces = faces[..., :3].astype(np.float32)
    # A suit or a rank is at least a hundredth of the picture, in another colour or another place
    for i in range(52):
        distance = np.abs(faces[i + 1:] - faces[i]).max(axis=3).reshape(52 - i, -1)
        assert (distance > 40).mean(axis=1).min() > 0.003, (style, CARDS[i].class_name)

def test_faces_are_shared_and_cannot_be_changed():
    face = render_face(Card.parse("two of hearts"), random_style(1))
    with pytest.raises(ValueError, match="read-only"):
        face[0, 0, 0] = 1

def test_back_looks_the_same_upside_down():
    for seed in range(12):
        back = render_back(random_style(seed, "unseen"), 100)[..., :3].astype(int)
        assert np.abs(back - back[::-1, ::-1]).mean() < 12

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(list(POSES)))
def test_a_pose_never_mirrors(seed, kind):
    corners = pose(np.random.default_rng(seed), 224, kind)
    assert cv2.contourArea(np.float32(corners), oriented=True) > 0
    assert cv2.isContourConvex(np.float32(corners))

@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 4), st.sampled_from([0.0, 0.3]))
def test_scene_tells_the_truth(seed, n_cards, max_overlap):
    generator = np.random.default_rng(seed)
    cards = [CARDS[i] for i in generator.permutation(53)[:n_cards]]
    scene = render_scene(cards, random_style(seed), generator, 200, 260, max_overlap=max_overlap)
    assert scene.cards == tuple(cards)
    assert scene.corners.shape == (n_cards, 4, 2) and scene.corners.dtype == np.float32
    assert scene.visible.shape == (n_cards,) and (scene.visible >= 0).all() and (scene.visible <= 1).all()
    for corners in scene.corners:
        assert (corners >= 0).all() and (corners < (260, 200)).all()
        assert cv2.contourArea(corners, oriented=True) > 0, "clockwise from the top left: not mirrored"
    if max_overlap == 0:
        assert (scene.visible > 0.99).all()

def test_corners_straighten_the_card():
    upright = np.float32([(0, 0), (120, 0), (120, 168), (0, 168)])
    style, found = random_style(50), []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        scene = render_scene([Card.parse("king of hearts")], style, generator, 400, 500, table_kind="plain")
        straight = cv2.warpPerspective(scene.image, cv2.getPerspectiveTransform(scene.corners[0], upright), (120, 168))
        face = cv2.resize(render_face(scene.cards[0], style)[..., :3], (120, 168), interpolation=cv2.INTER_AREA)
        inner = (slice(8, -8), slice(6, -6))
        likeness = [np.corrcoef(straight[inner].ravel(), other[inner].ravel())[0, 1] for other in (face, face[:, ::-1])]
        found.append(likeness)
    as_told, mirrored = np.median(found, axis=0)
    assert as_told > 0.8 and as_told > mirrored + 0.2, found

def test_photograph_uses_only_its_generator():
    face, states = render_face(Card.parse("9h"), random_style(2)), []
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    for _ in range(2):
        generator = np.random.default_rng(11)
        states.append((photograph(face, generator).tobytes(), generator.integers(1 << 30)))
    assert states[0] == states[1]
    assert np.random.get_state()[1].tolist() == before

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_composed_scene_tells_the_truth(seed):
    scene = compose([rendered_deck(1)], np.random.default_rng(seed), 200)
    n_cards = len(scene.cards)
    assert max(scene.image.shape) == 200 and scene.corners.shape == (n_cards, 4, 2)
    assert scene.visible.shape == scene.index_visible.shape == (n_cards,)
    for fractions in (scene.visible, scene.index_visible):
        assert (fractions >= 0).all() and (fractions <= 1).all()
    for corners in (*scene.corners, *scene.objects):
        assert cv2.contourArea(corners, oriented=True) > 0, "clockwise from the top left: not mirrored"

def test_tables_and_drawings_are_installed_with_the_package(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=root, capture_output=True, check=True)
    package = root/"card_classifier"
    files = [*(package/"render").glob("*.toml"), *(package/"render"/"figures").iterdir(), package/"pips.toml"]
    assert len(files) > 12
    for file in files:
        assert (tmp_path/file.relative_to(root)).read_bytes() == file.read_bytes()

if __name__ == "__main__":
    SAMPLES.mkdir(exist_ok=True)
    file = SAMPLES/f"{renderer_key()}.png"
    cv2.imwrite(str(file), renderer_samples()[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{file} holds what the renderer draws today")
