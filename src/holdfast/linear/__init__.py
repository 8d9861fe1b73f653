"""Linear models fitted to the worst case exactly, as scikit-learn estimators."""

from holdfast.linear.classifiers import RobustLinearClassifier, RobustLinearSVC, RobustLogisticRegression
from holdfast.linear.module import as_module
from holdfast.linear.regression import RobustRidge

__all__ = ["RobustLinearClassifier", "RobustLinearSVC", "RobustLogisticRegression", "RobustRidge", "as_module"]
