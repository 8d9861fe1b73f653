"""ONNX networks as PyTorch modules, by a converter small enough to read."""

from holdfast.models.onnx.convert import load_onnx
from holdfast.models.onnx.module import OnnxModule

__all__ = ["OnnxModule", "load_onnx"]
