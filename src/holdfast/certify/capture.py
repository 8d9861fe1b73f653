"""What a model is to proofs: a graph of operations, each with rules of its own for bounds."""

from holdfast.certify.bounds.capture import capture

__all__ = ["capture"]
