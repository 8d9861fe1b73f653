"""The experiments there are."""

from importlib import import_module
from typing import Final

from holdfast.errors import SettingError
from holdfast.lab.experiment import Experiment

__all__ = ["EXPERIMENTS", "load"]

# What each shows; a file of this name in `experiments` holds `run` and `draw`, and is imported only to be run.
EXPERIMENTS: Final = {
    "holder": "one step of steepest ascent attains what Hölder's inequality allows; random steps fall far short",
    "linear-attack": "two Gaussian classes: a logistic model falls to one step, and retraining hardly helps",
    "eps-min": "the smallest budget that changes a linear model's answer, by formula and by search",
    "robust-svm": "the robust hinge loss, the soft-margin SVM, and the bound between them",
    "tsipras": "one robust feature and many weak ones: accuracy and robustness at odds",
    "dimension": "the budget an adversary needs shrinks with the dimension, at the same accuracy",
    "regions": "the linear pieces of a ReLU network, counted, and three distances that one piece tells",
    "curvature": "when a loss reaches a threshold, and when its tangent says: convex ones early, linear ones on time",
    "saturation": "what a gradient step promises as confidence grows: cross-entropy falls silent, the margin does not",
    "gradient-penalty": "adversarial training is a penalty on the gradient's dual norm, to first order",
    "games": "who converges, cycles and diverges: best responses, gradients, and gradients that look ahead",
    "catastrophic-overfitting": "training on single steps: one step withstood, many steps not, and the guard's rescue",
    "trade-off": "TRADES: what its weight beta buys in robustness, and costs in accuracy and margins",
    "distillation": "defensive distillation blinds attacks on cross-entropy, and no others",
    "smoothing": "votes under noise: what they prove, as sigma grows, beside the truth and beside attacks",
    "transfer": "examples made on one model and tried on others: who falls, and what it has to do with gradients",
    "patch": "a small patch anywhere: where it hurts, what is proved without a defence, and behind pairs of masks",
    "fairness": "who pays for robustness: the class that is spread out, and the class that is rare",
    "spatial": "turned and moved digits: who withstands them, which search finds what breaks, and what is proved",
    "table": "measurements of tumours within rules: attacks beside the exact value, and what each rule saves",
}


def load(name: str) -> Experiment:
    """An experiment by its name.

    Raises
    ------
    SettingError
        When there is none.
    """
    if name not in EXPERIMENTS:
        raise SettingError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    module = import_module(f"holdfast.lab.experiments.{name.replace('-', '_')}")
    return Experiment(name, EXPERIMENTS[name], module.run, module.draw)
