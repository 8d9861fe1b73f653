"""Fitted classifiers of scikit-learn as modules: written out in torch where that is exact, asked from outside else."""
