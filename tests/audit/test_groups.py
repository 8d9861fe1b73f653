import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

import holdfast
from holdfast import DataError, Linf, ModelError
from holdfast.audit.groups import matthews
from holdfast.audit.interval import clopper_pearson


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_correlation_is_that_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    for _ in range(30):
        y, answers = rng.integers(0, classes, (2, rng.integers(1, 30)))
        if rng.random() < 0.3:
            answers[:] = answers[0]
        counts = {}
        for pair in zip(y.tolist(), answers.tolist(), strict=True):
            counts[pair] = counts.get(pair, 0) + 1
        assert matthews(counts) == pytest.approx(matthews_corrcoef(y, answers), abs=1e-12)


class Line(nn.Module):
    """Class 1 where the input lies above 0: robust at 0.1 is who lies farther than that."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x[:, :1] * self.weight


VALUES = [-1.0, -0.05, 0.3, 0.05, 0.5, 0.02, -0.4, 0.9]
LABELS = [0, 0, 1, 1, 0, 1, 1, 1]
SEXES = ["f", "m", "f", "m", "f", "m", "f", "m"]


def people():
    return torch.tensor(VALUES)[:, None], torch.tensor(LABELS)


def test_each_group_s_shares_by_hand():
    result = holdfast.audit(Line(), people(), Linf(0.1, box=None), group=SEXES, certify="ibp")
    right = [True, True, True, True, False, True, False, True]
    robust = [True, False, True, False, False, False, False, True]
    assert result.groups.column == "group"
    assert result.groups.positive == "1"
    assert [group.name for group in result.groups.groups] == ["f", "m"]
    for group in result.groups.groups:
        mine = [sex == group.name for sex in SEXES]
        for who, shares in (
            (mine, (group.clean, group.robust, group.certified)),
            ([m and y == 1 for m, y in zip(mine, LABELS, strict=True)],
             (group.sensitivity, group.robust_sensitivity, group.certified_sensitivity)),
        ):  # fmt: skip
            for flags, share in zip((right, robust, robust), shares, strict=True):
                count = sum(a and b for a, b in zip(who, flags, strict=True))
                assert (share.share, share.examples) == (count / sum(who), sum(who))
                assert share.interval == clopper_pearson(count, sum(who))
    women, men = result.groups.groups
    assert (women.examples, women.positives, men.positives) == (4, 2, 3)
    assert result.groups.gaps["clean"] == 0.5
    assert result.groups.gaps["robust"] == 0.25
    assert result.groups.gaps["certified_sensitivity"] == pytest.approx(1 / 2 - 1 / 3)
    answers = [int(v > 0) for v in VALUES]
    attacked = [a if r or not c else 1 - a for a, r, c in zip(answers, robust, right, strict=True)]
    assert result.clean_mcc == pytest.approx(matthews_corrcoef(LABELS, answers))
    assert result.robust_mcc == pytest.approx(matthews_corrcoef(LABELS, attacked))


def test_groups_of_a_table_and_a_run(tmp_path):
    rows = "\n".join(f"{v},{s},{y}" for v, s, y in zip(VALUES, SEXES, LABELS, strict=True))
    (tmp_path / "people.csv").write_text(f"value,sex,label\n{rows}\n")
    data = f"csv:{tmp_path}/people.csv?label=label&drop=sex"
    plain = holdfast.audit(Line(), data, Linf(0.1, box=None), run=tmp_path / "run")
    assert plain.groups is None
    again = holdfast.audit(Line(), data, Linf(0.1, box=None), run=tmp_path / "run", group="sex", examples=None)
    assert again.cost.forwards == plain.cost.forwards
    assert [group.robust.share for group in again.groups.groups] == [0.5, 0.25]
    part = holdfast.audit(Line(), data, Linf(0.1, box=None), examples="2:5", group="sex")
    assert [(group.name, group.examples) for group in part.groups.groups] == [("f", 2), ("m", 1)]
    with pytest.raises(DataError, match="no column race to group by; its columns are value, sex, label"):
        holdfast.audit(Line(), data, Linf(0.1), group="race")


def test_more_classes_have_no_sensitivity():
    x, y = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    result = holdfast.audit(model, (x, y), Linf(0.1, box=(0, 10)), group=x[:, 0] > 5.8)
    assert result.robust_mcc is None
    assert result.clean_mcc == pytest.approx(matthews_corrcoef(y, model.predict(x)))
    assert result.groups.positive is None
    assert {group.name for group in result.groups.groups} == {"False", "True"}
    assert all(group.sensitivity is None and group.positives is None for group in result.groups.groups)
    assert set(result.groups.gaps) == {"clean", "robust"}


def test_one_answer_to_all():
    x = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    result = holdfast.audit(Line(), (x, torch.tensor([1, 1, 1, 0])), Linf(0.05))
    assert (result.clean_accuracy, result.robust_accuracy, result.majority_class_rate) == (0.75, 0.75, 0.75)
    assert (result.clean_mcc, result.robust_mcc) == (0, 0)


def test_models_without_gradients_are_asked_for_scores():
    x, y = load_breast_cancer(return_X_y=True)
    model = RandomForestClassifier(5, random_state=0).fit(x, y)
    result = holdfast.audit(model, (x[:12], y[:12]), Linf(0.5, box=(0, 5000)), max_forwards=30)
    assert result.protocol["name"] == "blackbox"
    assert result.knowledge.startswith("black box: the attacker asks the model for its logits")
    assert result.clean_accuracy == (model.predict(x[:12]) == y[:12]).mean()


def test_models_and_data_that_do_not_belong_together(tmp_path):
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(x, y)
    (tmp_path / "a.csv").write_text("a,b,c,d,y\n" + "".join(f"1,2,3,{n},{n + 1}\n" for n in range(3)))
    with pytest.raises(ModelError, match=r"^the model knows the classes 0, 1, 2, but the data have 1, 2, 3: give the"):
        holdfast.audit(model, f"csv:{tmp_path}/a.csv?label=y", "linf:0.1")
    astray = SVC(kernel="rbf").fit(x, y)
    astray.predict = lambda rows: np.zeros(len(rows), int)
    astray.break_ties = True
    with pytest.raises(
        ModelError, match=r"^the SVC predicts 0 for an input whose highest score is that of 1: nothing can"
    ):
        holdfast.audit(astray, (x, y), Linf(0.1, box=(0, 10)))
