"""What the attacks of a cascade tell about each other."""

from holdfast.audit.protocols import EvaluationProtocol
from holdfast.audit.result import Diagnostic, StageResult

__all__ = ["examine_stages"]


def examine_stages(protocol: EvaluationProtocol, stages: list[StageResult], examples: int) -> list[Diagnostic]:
    """What the attacks tell about each other: one that sees no gradient should not find what those that do have not.

    The threshold is that of the published ensemble, 0.2 % of the examples.
    """
    seen = False
    for stage, result in zip(protocol.stages, stages, strict=True):
        sighted = stage.attack.knowledge == "gradient"
        if seen and not sighted and stage.polish is None and result.broken > 0.002 * examples:
            return [
                Diagnostic(
                    name="black box beats white box",
                    verdict="warn",
                    message=f"{stage.name}, which sees no gradient, broke {result.broken} examples that the gradient "
                    "attacks before it had left: the model's gradients mislead, and stronger attacks may break more",
                )
            ]
        seen = seen or sighted
    return []
