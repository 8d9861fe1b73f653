import pytest

import holdfast
from helpers.attacks import predict
from helpers.zoo import mlp, uniform
from holdfast import Linf, SettingError
from holdfast.attacks import FGSM, PGD, AnnealedPGD, Square, Stage
from holdfast.audit.custom import ATTACKS, find_protocol, single
from holdfast.audit.protocols import PROTOCOLS, EvaluationProtocol

THREAT = Linf(0.1)

WHOLE = """
name = "mine"
caveat = "two attacks and a walk"
samples = 2

[[stages]]
attack = "pgd"
settings = { steps = 5, objective = "dlr" }

[[stages]]
attack = "pgd"
settings = { steps = 7 }

[[stages]]
name = "walk"
attack = "square"
settings = { queries = 40, rounds = 2 }
polish = { attack = "annealed-pgd", settings = { steps = 4, start = "best" } }
margins = [0.5, 0.25]
"""


def test_a_file_says_it_all(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE)
    expected = EvaluationProtocol(
        "mine",
        (
            Stage("pgd-1", PGD(steps=5, objective="dlr")),
            Stage("pgd-2", PGD(steps=7)),
            Stage("walk", Square(queries=40, rounds=2), AnnealedPGD(steps=4, start="best"), (0.5, 0.25)),
        ),
        "two attacks and a walk",
        2,
    )
    assert find_protocol(path, THREAT) == find_protocol(str(path), THREAT) == expected
    path.write_text('[[stages]]\nattack = "fgsm"')
    assert find_protocol(path, THREAT) == EvaluationProtocol(
        "mine", (Stage("fgsm", FGSM()),), "mine is a protocol of your own"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages = []", "stages: List should have at least 1 item"),
        ("", "stages: Field required"),
        ("stages = 3 4", "not a TOML file"),
        ("[[stages]]\nattack = 'best'", "unknown attack 'best': choose one of fgsm, bim"),
        ("[[stages]]\nattack = 'pgd'\nsettings = { step = 3 }", "pgd has no setting 'step': its settings are steps"),
        ("[[stages]]\nattack = 'pgd'\nsettings = { steps = 'x' }", "pgd: setting 'steps'"),
        ("[[stages]]\nattack = 'pgd'\nsettings = { steps = 0 }", "pgd: steps, restarts and step_size must be positive"),
        ("[[stages]]\nattack = 'pgd'\nmargin = [1]", "stages.0.margin: Extra inputs"),
        ("[[stages]]\nattack = 'pgd'\nmargins = [-1.0]", "stages.0.margins.0"),
        ("[[stages]]\nattack = 'pgd'\npolish = 'fgsm'", "stages.0.polish"),
    ],
)
def test_files_that_make_no_sense(tmp_path, text, message):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(SettingError) as error:
        find_protocol(path, THREAT)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_there():
    with pytest.raises(SettingError, match=r"nowhere\.toml: no such file"):
        find_protocol("nowhere.toml", THREAT)


def test_a_list_of_attacks_is_a_protocol():
    protocol = find_protocol([FGSM(), PGD(steps=3), Stage("again", PGD(steps=9))], THREAT)
    assert [stage.name for stage in protocol.stages] == ["fgsm", "pgd", "again"]
    model, x = mlp(), uniform(8, 6)
    result = holdfast.audit(model, (x, predict(model, x)), THREAT, protocol=[FGSM(), PGD(steps=3)])
    assert [stage.name for stage in result.stages] == ["fgsm", "pgd"]
    for nothing in ("", []):
        with pytest.raises(SettingError, match=r"a \.toml file or a list of attacks"):
            find_protocol(nothing, THREAT)


def test_a_name_is_a_protocol():
    assert [find_protocol(name, THREAT).name for name in PROTOCOLS] == list(PROTOCOLS)
    with pytest.raises(SettingError, match="unknown protocol 'best': choose one of quick, fast, standard"):
        find_protocol("best", THREAT)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_known_by_the_name_of_its_class(name):
    (stage,) = single(name, {}).stages
    assert type(stage.attack) is ATTACKS[name]
    assert name.replace("-", "") == type(stage.attack).__name__.lower()
    first = next(iter(vars(stage.attack)))
    value = getattr(stage.attack, first)
    assert single(name, {first: str(value)}) == single(name, {first: value})
