"""Gradients of what a model executes, operation by operation, whatever its own backward passes say."""
