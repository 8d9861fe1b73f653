"""Adversarial learning in one vocabulary: attack, certify, train, audit, understand."""
