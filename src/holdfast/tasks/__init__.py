"""What a model's answer means: which objectives an adversary may raise, and what counts as broken.

Attacks see objectives, one number an example, and never know the task. The engine asks the task how much of an answer
is wrong, and calls an example broken where that is more than the task allows.
"""

from holdfast.tasks.classification import CLASSIFICATION, Classification
from holdfast.tasks.task import Task

__all__ = ["CLASSIFICATION", "Classification", "Task"]
