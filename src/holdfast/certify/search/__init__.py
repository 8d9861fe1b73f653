"""Branch and bound: parts of a set of inputs, bounded one by one, until each is proved or holds a counterexample.

Parts are made by the signs of neurons (:mod:`~holdfast.certify.search.branch`) or by cutting boxes of inputs
(:mod:`~holdfast.certify.search.split`); falsifiers look for a counterexample first, and witnesses say what it is.
"""
