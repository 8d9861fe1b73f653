"""What is read of estimators is held against what they answer."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from holdfast.models.trees import read_trees

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(max_depth=2),
        RandomForestClassifier(7, max_depth=2, class_weight="balanced", random_state=0),
        ExtraTreesClassifier(7, max_leaf_nodes=5, random_state=0),
        GradientBoostingClassifier(n_estimators=7, random_state=0),
        GradientBoostingClassifier(n_estimators=7, subsample=0.5, init="zero", random_state=0),
        GradientBoostingClassifier(n_estimators=7, loss="exponential", random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_scores_are_the_estimators_own(model: Any, classes: int) -> None:
    if getattr(model, "loss", "") == "exponential" and classes == 3:
        pytest.skip("the exponential loss is for two classes")
    rows = classes > Y
    model.fit(X[rows], Y[rows])
    ensemble = read_trees(model)
    boosted = isinstance(model, GradientBoostingClassifier)
    own = model.decision_function(X) if boosted else model.predict_proba(X)
    own = np.stack([np.zeros(len(X)), own], 1) if own.ndim == 1 else own
    scores = ensemble.scores(X)
    assert np.allclose(scores / ensemble.share, own, rtol=0, atol=1e-13)
    assert (own.argmax(1) == model.predict(X)).all()
    # What was read leads as the estimator does, up to what it says that rounding does.
    for y in range(classes):
        off = np.abs((scores[:, [y]] - scores) / ensemble.share - (own[:, [y]] - own))
        assert (off <= ensemble.rounding(y) / ensemble.share + 1e-15).all()


def test_reached_leaves_are_those_that_some_input_reaches() -> None:
    model = RandomForestClassifier(5, random_state=0).fit(X, Y)
    rng = np.random.default_rng(0)
    for row in X[::15]:
        lower, upper = (row - np.float32(0.3)), (row + np.float32(0.3))
        near = rng.uniform(lower, upper, size=(4000, 4)).astype(np.float32).clip(lower, upper)
        for tree, own in zip(read_trees(model).trees, model.estimators_, strict=True):
            found = tree.reached(lower.astype(float), upper.astype(float))
            seen = {tuple(votes) for votes in tree.votes[own.apply(near)]}
            assert seen <= {tuple(leaf.votes) for leaf in found}
            for leaf in found:  # each has a corner that goes there
                point = row.clip(
                    [max(lower[f], np.nextafter(np.float32(leaf.ranges.get(f, (-np.inf, 0))[0]), np.float32(99)))
                     for f in range(4)],
                    [min(upper[f], leaf.ranges.get(f, (0, np.inf))[1]) for f in range(4)],
                ).astype(np.float32)  # fmt: skip
                assert (tree.votes[own.apply(point[None])[0]] == leaf.votes).all()


def test_rounding_bounds_every_order_of_summation() -> None:
    for model in (
        RandomForestClassifier(30, max_depth=2, random_state=0),
        GradientBoostingClassifier(n_estimators=30, random_state=0),
    ):
        ensemble = read_trees(model.fit(X, Y))
        rng, rounds = np.random.default_rng(0), ensemble.rounding(0)
        assert ensemble.lattice == 0
        assert (rounds > 0).all()
        leaves = np.array([[tree.votes[rng.choice(np.flatnonzero(tree.left < 0))] for tree in ensemble.trees]])[0]
        sums = np.array([sum(leaves[rng.permutation(len(leaves))], ensemble.constant) for _ in range(300)])
        leads = sums[:, :1] - sums
        assert 0 < np.ptp(leads, 0).max() <= rounds.max() < 1e-10


def test_whole_votes_are_summed_without_rounding() -> None:
    pure = read_trees(RandomForestClassifier(30, random_state=0).fit(X, Y))
    assert pure.lattice == 1.0
    assert (pure.rounding(0) == 0).all()
    assert pure.needed(1).tolist() == [1.0, 0.0, 0.0]  # of classes that tie the first wins
    binary = read_trees(GradientBoostingClassifier(n_estimators=2).fit(X[:100], Y[:100]))
    assert binary.needed(0)[1] > binary.needed(1)[0]  # the second class has a score of 0
