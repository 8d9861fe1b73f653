"""Bounds of a network over a set of inputs.

A module becomes a graph of operations (:mod:`~holdfast.certify.bounds.capture`), sets of inputs are regions, and
intervals, forward and backward linear bounds are carried through the graph, with what rounding may do on the way
counted in.
"""
