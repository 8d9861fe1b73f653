"""Every operator that a network may use, by its domain and name.

Every rule follows the operator's text in the ONNX specification (https://onnx.ai/onnx/operators), in the version that
the graph's opset names; rules that changed between opsets take the attribute form and the input form alike. To add an
operator, write a rule and name it, with what it honours, in the table of its module.
"""

from holdfast.models.onnx.classic import CLASSIC
from holdfast.models.onnx.elementwise import ELEMENTWISE
from holdfast.models.onnx.moves import MOVES
from holdfast.models.onnx.node import Operator
from holdfast.models.onnx.products import PRODUCTS
from holdfast.models.onnx.recurrent import RECURRENT
from holdfast.models.onnx.reductions import REDUCTIONS
from holdfast.models.onnx.resizing import RESIZING
from holdfast.models.onnx.windows import WINDOWS

__all__ = ["OPERATORS"]

OPERATORS: dict[str, dict[str, Operator]] = {
    "": {**ELEMENTWISE, **MOVES, **PRODUCTS, **RECURRENT, **REDUCTIONS, **RESIZING, **WINDOWS},
    "ai.onnx.ml": CLASSIC,
}
