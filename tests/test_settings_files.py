"Settings files: what they compose to, and what a person is told when they don't."

import dataclasses
from pathlib import Path

import pytest

from card_classifier.configuration import as_settings, checkout, choice_groups, compose, experiments
from card_classifier.settings import Settings, SettingsError

LITE = {"model.arch": "tf_efficientnet_lite0"}
DETECTOR = {**LITE, "model.task": "detector", "model.drop_rate": 0.0, "train.learning_rate": 0.003}
PLAIN = ("half_turn", "shear", "perspective", "noise", "erase")
DECK = {"data.source": "deck", "model.pretrained": False}
AUGMENT = {"scale": 0.05, "shift": 0.04, "rotation": 3.0, "hue": 3.0, "light": 0.1, "colour": 0.05, "saturation": 0.1}
# What the released model's runs were made with: all that differs from the defaults
EXPECTED = {
    "cpu": LITE | {"train.epochs": 20, "train.size": 176, "train.start_epochs": 8, "train.start_size": 128},
    "gpu": {"model.arch": "tf_efficientnet_b0", "train.batch_size": 64, "train.epochs": 30, "train.size": 224},
    "photo": LITE
    | {"evaluation.test": False, "scenes.crops_per_image": 0.4, "train.backbone_rate": 1.0, "train.ema_decay": 0.997}
    | {"train.epochs": 6, "train.learning_rate": 0.001, "train.size": 192, "train.warm_up": 0.15},
    "detector": DETECTOR
    | {"evaluation.size": 320, "scenes.n_train": 3200, "train.backbone_rate": 0.3, "train.ema_decay": 0.995}
    | {"train.epochs": 11, "train.size": 320, "train.start_epochs": 6, "train.start_size": 256},
    "quick": DECK
    | {f"augment.{name}": 0.0 for name in PLAIN}
    | {f"augment.{name}": value for name, value in AUGMENT.items()}
    | {"data.deck_size": 128, "data.deck_train": 110, "evaluation.size": 96, "model.arch": "test_resnet"}
    | {"model.drop_rate": 0.0, "train.backbone_rate": 1.0, "train.epochs": 14, "train.learning_rate": 0.008}
    | {"train.size": 96},
    "quick_detector": DETECTOR
    | DECK
    | {"data.deck_test": 1, "data.deck_train": 1, "data.deck_valid": 1, "evaluation.size": 160, "scenes.n_decks": 2}
    | {"scenes.n_photographed": 0, "scenes.n_train": 64, "scenes.n_valid": 32}
    | {"train.batch_size": 16, "train.ema_decay": 0.9, "train.epochs": 2},
}


def changed(settings: Settings) -> dict:
    "What differs from the defaults, by dotted name."
    defaults = dataclasses.asdict(Settings())
    return {
        f"{group}.{name}": value
        for group, values in dataclasses.asdict(settings).items()
        for name, value in values.items()
        if value != defaults[group][name]
    }


@pytest.mark.parametrize("experiment", EXPECTED)
def test_an_experiment_is_what_it_was_before_there_were_groups(experiment):
    assert changed(compose(experiment)) == EXPECTED[experiment]


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_composes_and_is_kept_as_it_is(experiment):
    settings = compose(experiment)
    assert as_settings(dataclasses.asdict(settings)) == settings


def test_every_file_of_a_group_can_be_chosen():
    for group, names in choice_groups(checkout() / "configs").items():
        for name in names:
            compose("cpu", [f"{group}={name}"])


def test_what_a_file_lacks_is_named_with_what_there_is(tmp_path):
    configs = tmp_path / "Größen und Maße"
    for name, text in {
        "config.yaml": (Path(checkout()) / "configs" / "config.yaml").read_text(encoding="utf-8"),
        "data/cards.yaml": "source: auto",
        "model/mobilenet.yaml": "arch: mobilenetv2_100",
        "train/standard.yaml": "",
        "experiment/empty.yaml": "",
        "experiment/mine.yaml": "defaults: [override /model: huge]",
        "experiment/nested.yaml": "train: 3",
        "experiment/list.yaml": "- train",
    }.items():
        (configs / name).parent.mkdir(parents=True, exist_ok=True)
        (configs / name).write_text(text, encoding="utf-8")
    assert compose("empty", configs=configs) == Settings()
    for experiment, said in {
        "mine": "no 'huge' in configs/model; there are: mobilenet",
        "nested": "there is no setting 'train'",
        "list": "must be groups of settings",
        "absent": "there are: empty, list, mine, nested",
    }.items():
        with pytest.raises(SettingsError, match=said):
            compose(experiment, configs=configs)
