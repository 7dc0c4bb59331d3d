"A flat folder of class folders as a data set: split reproducibly, by class, with repeated pictures on one side."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import noise_jpeg, write_files, write_zip

from card_classifier.cards import CLASS_NAMES
from card_classifier.data.audit import Pair
from card_classifier.data.layout import SPLITS, SourceError, scan_folder
from card_classifier.data.shards import prepare
from card_classifier.data.source import find_source
from card_classifier.data.splits import assign_groups, picture_groups, split_sizes
from card_classifier.settings import DataSettings

FRACTIONS = st.floats(0.01, 0.3)


def flat_files(n_images: int = 10) -> dict[str, bytes]:
    "Paths and contents of a flat data set."
    return {f"{name}/{number:02d}.jpg": noise_jpeg(100 * index + number)
            for index, name in enumerate(CLASS_NAMES) for number in range(n_images)}


FILES = flat_files()


def splits_by_content(shards) -> dict[bytes, str]:
    "The split of each image, by the bytes of its file."
    return {shards.read(sample): split for split in SPLITS for sample in shards.samples(split, with_excluded=True)}


# --------------------------------------------------------------------------------------- properties

@given(st.lists(st.integers(1, 9), min_size=3, max_size=40), FRACTIONS, FRACTIONS)
def test_every_split_gets_whole_groups_of_every_class(group_sizes, valid_fraction, test_fraction):
    groups = [[f"{number}-{copy}" for copy in range(size)] for number, size in enumerate(group_sizes)]
    n_images = sum(group_sizes)
    sizes = split_sizes(n_images, DataSettings(valid_fraction=valid_fraction, test_fraction=test_fraction))
    splits = assign_groups(groups, sizes)
    assert len(splits) == n_images
    assert set(splits.values()) == set(SPLITS)
    assert all(len({splits[path] for path in group}) == 1 for group in groups)
    for split, wanted in sizes.items():
        held = [group for group in groups if splits[group[0]] == split]
        assert sum(map(len, held)) <= wanted or len(held) == 1  # more only where no group was small enough


@given(st.integers(3, 5000), FRACTIONS, FRACTIONS)
def test_single_images_are_divided_as_asked_for(n_images, valid_fraction, test_fraction):
    sizes = split_sizes(n_images, DataSettings(valid_fraction=valid_fraction, test_fraction=test_fraction))
    splits = list(assign_groups([[str(number)] for number in range(n_images)], sizes).values())
    assert {split: splits.count(split) for split in sizes} == sizes
    assert all(abs(sizes[split] - fraction * n_images) < 1 for split, fraction in
               (("valid", valid_fraction), ("test", test_fraction)))
    assert "train" in splits


@given(
    st.sets(st.sampled_from("abcdefgh")), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")))
)
def test_groups_are_what_pairs_connect(paths, connected):
    repeats = [Pair(*sorted(pair), 1.0, 0.0) for pair in connected if pair[0] != pair[1]]
    groups = picture_groups(sorted(paths), repeats)
    assert sorted(path for group in groups for path in group) == sorted(paths)
    assert groups == picture_groups(sorted(paths, reverse=True), repeats[::-1])
    group_of = {path: number for number, group in enumerate(groups) for path in group}
    assert all(group_of[pair.first] == group_of[pair.second] for pair in repeats if {pair.first, pair.second} <= paths)
    reached = {path: {path} for path in paths}  # the transitive closure, the slow way
    for _ in paths:
        for pair in repeats:
            if {pair.first, pair.second} <= paths:
                both = reached[pair.first] | reached[pair.second]
                for path in both:
                    reached[path] |= both
    assert all(reached[path] == set(groups[group_of[path]]) for path in paths)


# --------------------------------------------------------------------------------------- real files

def test_folder_zip_and_renamed_copy_are_split_alike(tmp_path):
    folder = write_files(tmp_path / "mydata", FILES, shuffle=1)
    renamed = write_files(tmp_path / "elsewhere" / "mydata", {
        path.replace("/0", "/IMG_9"): content for path, content in FILES.items()}, shuffle=2)
    packed = write_zip(tmp_path / "mydata.zip", {f"mydata/{path}": content for path, content in FILES.items()})
    made = [prepare(find_source(source, tmp_path / "raw"), tmp_path / f"shards-{number}")
            for number, source in enumerate((folder, packed, renamed))]
    assert made[0].counts == {"train": 53 * 8, "valid": 53, "test": 53}
    assert made[0].checksum == made[1].checksum
    assert splits_by_content(made[0]) == splits_by_content(made[1]) == splits_by_content(made[2])
    assert {sample.class_name for sample in made[0].samples("test")} == set(CLASS_NAMES)


def test_repeats_stay_together_and_nothing_leaks(tmp_path):
    files = dict(FILES)
    for name in CLASS_NAMES[:20]:
        files[f"{name}/98.jpg"] = files[f"{name}/00.jpg"]
        files[f"{name}/99.jpg"] = files[f"{name}/01.jpg"]
    files["joker/98.jpg"] = files["ace of clubs/02.jpg"]  # under two names: nobody can be tested on it
    files["joker/97.jpg"] = b"no image"
    shards = prepare(scan_folder(write_files(tmp_path / "raw", files)), tmp_path / "data")
    assert shards.leaking("valid") == shards.leaking("test") == set()
    assert {item.path for item in shards.exclusions} == {"train/joker/98.jpg", "train/ace of clubs/02.jpg"}
    assert [item["path"] for item in shards.description["audit"]["corrupt"]] == ["train/joker/97.jpg"]
    assert sum(shards.counts.values()) == len(files) - 1
    where = {
        sample.path.split("/", 1)[1]: split for split in SPLITS for sample in shards.samples(split, with_excluded=True)
    }
    assert all(where[f"{name}/98.jpg"] == where[f"{name}/00.jpg"] for name in CLASS_NAMES[:20])


def test_the_split_is_told_and_done_once(tmp_path):
    flat = scan_folder(write_files(tmp_path / "raw", FILES))
    settings = DataSettings(valid_fraction=0.2, test_fraction=0.3, split_seed=7)
    shards = prepare(flat, tmp_path / "data", settings=settings)
    told = json.loads((tmp_path / "data" / "dataset.json").read_text())["split"]
    assert (told["seed"], told["valid_fraction"], told["test_fraction"]) == (7, 0.2, 0.3)
    assert "split here into 265 train, 106 valid, 159 test" in shards.split_note
    written = {file.name: file.stat().st_mtime_ns for file in shards.folder.iterdir()}
    assert prepare(flat, tmp_path / "data", settings=settings).checksum == shards.checksum
    assert {file.name: file.stat().st_mtime_ns for file in shards.folder.iterdir()} == written
    assert prepare(flat, tmp_path / "data").checksum != shards.checksum  # other settings, other split


@pytest.mark.parametrize(("left", "message"), [
    (0, r"too few images of ace of clubs \(none\)"), (2, r"too few images of ace of clubs \(2\)")])
def test_too_few_images_name_the_class(tmp_path, left, message):
    names = sorted(path for path in FILES if path.startswith("ace of clubs/"))
    few = {path: content for path, content in FILES.items() if path not in names[left:]}
    with pytest.raises(SourceError, match=message) as error:
        find_source(write_zip(tmp_path / "few.zip", few), tmp_path / "raw")
    assert "at least 3" in str(error.value)
    assert "\n" not in str(error.value)


def test_too_few_different_pictures_name_the_class(tmp_path):
    files = FILES | {path: FILES["joker/00.jpg"] for path in FILES if path.startswith("joker/")}
    with pytest.raises(SourceError, match="joker: 10 readable images, but only 1 different ones"):
        prepare(scan_folder(write_files(tmp_path / "raw", files)), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_one_split_of_a_data_set_is_not_split_again(tmp_path):
    root = write_files(
        tmp_path / "cards", {f"{split}/{path}": content for split in SPLITS for path, content in FILES.items()}
    )
    for split in SPLITS:
        with pytest.raises(SourceError, match="no `train` folder in it; name the folder that holds train/"):
            scan_folder(root / split)


def test_class_folders_in_another_spelling_are_named(tmp_path):
    files = {path.replace("ace of clubs", "Ace of Clubs"): content for path, content in FILES.items()}
    for source in (write_files(tmp_path / "raw", files), write_zip(tmp_path / "raw.zip", files)):
        with pytest.raises(SourceError, match="Ace of Clubs is not one of the 53 classes: rename it to 'ace of clubs'"):
            find_source(source, tmp_path / "work")


def test_other_machines_split_alike(tmp_path):
    write_files(tmp_path / "raw", FILES)
    code = (
        "import sys; from card_classifier.data.layout import scan_folder\n"
        "from card_classifier.data.shards import prepare\n"
        "print(prepare(scan_folder(sys.argv[1]), sys.argv[2]).checksum)"
    )
    checksums = set()
    for number, environment in enumerate(
        ({"PYTHONHASHSEED": "0", "LC_ALL": "C"}, {"PYTHONHASHSEED": "9", "OPENBLAS_NUM_THREADS": "1"})
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "raw", tmp_path / f"data-{number}"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        checksums.add(done.stdout.strip())
    assert len(checksums) == 1
    assert (
        Path(tmp_path / "data-0" / "train-000.tar").read_bytes()
        == Path(tmp_path / "data-1" / "train-000.tar").read_bytes()
    )
