"""Models: loading them, and the one way in which the rest of the library touches them."""

from holdfast.models.bpda import BPDA
from holdfast.models.load import load_model
from holdfast.models.model import Model
from holdfast.models.one_logit import OneLogit
from holdfast.models.onnx import OnnxModule, load_onnx
from holdfast.models.query import Query
from holdfast.models.weights import load_weights

__all__ = ["BPDA", "Model", "OneLogit", "OnnxModule", "Query", "load_model", "load_onnx", "load_weights"]
