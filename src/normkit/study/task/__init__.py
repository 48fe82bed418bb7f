"""The task: a model, data in three disjoint parts, loss and metric; the same model under each variant."""

from normkit.study.task.part import Part
from normkit.study.task.task import Task, subset

__all__ = ["Part", "Task", "subset"]
