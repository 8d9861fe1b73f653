"""Experiment trackers, told how training goes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.errors import SettingError
from holdfast.train.result import Progress

__all__ = ["TRACKERS", "tracking"]

TRACKERS = ("tensorboard", "mlflow", "wandb")
# Updates are quick, and some trackers ask a server.
_EVERY = 10


@contextmanager
def tracking(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[Callable[[Progress], None]]:
    """Pass progress on to trackers, through accelerate: the loss, and what is measured after every epoch.

    Parameters
    ----------
    names : sequence of str
        Of :data:`TRACKERS`; none for no tracker.
    folder : Path
        Where those that write files do so.
    settings : mapping
        What the run is: text and numbers by name.

    Raises
    ------
    SettingError
        When there is no such tracker, or its library is not installed.
    """
    if not names:
        yield lambda progress: None
        return
    from accelerate import tracking as accelerated

    known = {str(kind) for kind in accelerated.get_available_trackers()}
    for name in names:
        if name not in TRACKERS:
            raise SettingError(f"track: {name!r} is not known; choose of {', '.join(TRACKERS)}")
        if name not in known:
            raise SettingError(f"track: {name} is not installed (pip install {name})")
    kinds = [accelerated.LOGGER_TYPE_TO_CLASS[name] for name in names]
    trackers = [kind("holdfast", *[folder] * kind.requires_logging_directory) for kind in kinds]
    for tracker in trackers:
        tracker.start()
        tracker.store_init_configuration(dict(settings))

    def tell(progress: Progress) -> None:
        values = {} if progress.step % _EVERY else {"loss": progress.loss}
        if progress.epoch is not None:
            found = progress.epoch.evaluation
            values |= {
                "clean accuracy": found.clean,
                "single-step accuracy": found.single_step,
                "multi-step accuracy": found.multi_step,
                "gap": found.gap,
                "alignment": found.alignment,
            }
        if values:
            for tracker in trackers:
                tracker.log(values, step=progress.step)

    try:
        yield tell
    finally:
        for tracker in trackers:
            tracker.finish()
