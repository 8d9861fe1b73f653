"""The audit: a cascade of attacks, the checks that go with it, and a result to trust or not."""

from holdfast.audit.audit import Progress, audit
from holdfast.audit.certification import Certification
from holdfast.audit.custom import single
from holdfast.audit.protocols import EvaluationProtocol
from holdfast.audit.result import AuditResult

__all__ = ["AuditResult", "Certification", "EvaluationProtocol", "Progress", "audit", "single"]
