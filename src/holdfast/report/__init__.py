"""Views of an audit's result."""

from holdfast.report.terminal import show_result

__all__ = ["show_result"]
