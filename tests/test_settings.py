"""Settings by name."""

from dataclasses import dataclass

import pytest

from holdfast.errors import SettingError
from holdfast.settings import build, names, read


@dataclass(frozen=True)
class Kind:
    threat: str
    steps: int = 3
    size: float | None = None
    on: bool = True


def test_text_is_read_as_what_the_field_holds():
    assert build(Kind, "kind", {"steps": "5", "size": "0.5", "on": "false"}, threat="linf") == Kind(
        "linf", 5, 0.5, False
    )
    assert read(Kind, "kind", {"steps": 7}, "threat") == {"steps": 7}
    assert names(Kind, "threat") == ["steps", "size", "on"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 5}, "kind has no setting 'step': its settings are steps, size, on"),
        ({"threat": "l2"}, "kind has no setting 'threat'"),
        ({"steps": "many"}, "kind: setting 'steps': .* integer"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, message):
    with pytest.raises(SettingError, match=message):
        build(Kind, "kind", settings, threat="linf")
