"""The program's minimum is the least lead over all combinations of cells."""

import itertools

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from holdfast.certify.milp.solver import proved, solve
from holdfast.certify.milp.trees import encode_trees
from holdfast.models.trees import read_trees


@pytest.mark.parametrize("seed", range(6))
def test_minimum_is_that_of_all_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(60, 3)).astype(np.float32)
    model = RandomForestClassifier(5, max_depth=3, random_state=seed).fit(x, (3 * x[:, 0] + x[:, 1] * x[:, 2]) // 1.2)
    ensemble = read_trees(model)
    lower, upper = (np.float32(end) * np.ones(3) for end in (0.2, 0.7))
    encoding = encode_trees([tree.reached(lower, upper) for tree in ensemble.trees], lower, np.inf)
    axes = [[*encoding.thresholds.get(f, []), float(upper[f])] for f in range(3)]
    points = np.array(list(itertools.product(*axes)), np.float32)
    scores = ensemble.scores(points)
    for y, k in itertools.permutations(range(len(model.classes_)), 2):
        least = float((scores[:, y] - scores[:, k]).min())
        lead = encoding.lead(y, k)
        minimum = solve(encoding.program, lead, seconds=20)
        assert minimum.status == "optimal"
        assert minimum.upper == pytest.approx(least, abs=1e-6)
        assert proved(encoding.program, lead, goal=least - 1e-6, seconds=20) == pytest.approx(least - 1e-6)
        assert proved(encoding.program, lead, goal=least + 1e-3, seconds=20) < least + 1e-6
        assert minimum.variables is not None
        point = [max(lower[f], min(upper[f], encoding.ranges(minimum.variables).get(f, (0, 1))[1])) for f in range(3)]
        there = ensemble.scores(np.array([point], np.float32))[0]
        assert there[y] - there[k] == pytest.approx(least, abs=1e-6)
