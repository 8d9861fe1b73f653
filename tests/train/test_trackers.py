"""What trackers are told."""

from typing import Any

import pytest
from accelerate import tracking as accelerated

from holdfast import SettingError
from holdfast.train import Epoch, Evaluation, Progress
from holdfast.train.trackers import tracking

TOLD: list[Any] = []


class Tracker:
    requires_logging_directory = True

    def __init__(self, name, folder):
        TOLD.append((name, folder))

    def start(self):
        TOLD.append("start")

    def store_init_configuration(self, values):
        TOLD.append(values)

    def log(self, values, step):
        TOLD.append((step, values))

    def finish(self):
        TOLD.append("finish")


def test_losses_and_accuracies_are_told(monkeypatch, tmp_path):
    monkeypatch.setitem(accelerated.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr(accelerated, "_available_trackers", ["tensorboard"])
    TOLD.clear()
    epoch = Epoch(1, 12, 0.4, Evaluation(0.9, 0.6, 0.5, 0.7, (0.5, 0.5)))
    with tracking(["tensorboard"], tmp_path, {"method": "pgd"}) as tell:
        for step in range(9, 13):
            tell(Progress(step, 12, step / 10, epoch if step == 12 else None, None, 0.0))
    names = ("clean accuracy", "single-step accuracy", "multi-step accuracy", "gap", "alignment")
    accuracies = dict(zip(names, (0.9, 0.6, 0.5, pytest.approx(0.1), 0.7), strict=True))
    assert [
        ("holdfast", tmp_path),
        "start",
        {"method": "pgd"},
        (10, {"loss": 1.0}),
        (12, accuracies),
        "finish",
    ] == TOLD


def test_trackers_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerated, "_available_trackers", [])
    with (
        pytest.raises(SettingError, match="'guestbook' is not known; choose of tensorboard"),
        tracking(["guestbook"], tmp_path, {}),
    ):
        pass
    with pytest.raises(SettingError, match="wandb is not installed"), tracking(["wandb"], tmp_path, {}):
        pass
