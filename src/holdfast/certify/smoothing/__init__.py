"""Certificates of votes: classifiers asked many times about inputs with noise, or with most of them hidden.

Defences that vote (:mod:`~holdfast.certify.smoothing.smoothing`, :mod:`~holdfast.certify.smoothing.ablation`), the
statistics that turn counts into radii, and the logs in which certificates are published.
"""
