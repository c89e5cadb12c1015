"""
Evaluation tasks: a table of benchmarks, and readers of their own formats, on the Hub, in a copy, or shipped with the package.

    for item in find_task("librispeech_clean").items(limit=10): ...
"""

from .local_set import LOCAL_TASK, read_local_set
from .registry import aliases, find_task, group_tasks, task_names, task_table, tasks_named
from .task import KINDS, Item, Task, TaskDataError, TaskError

__all__ = [
    "KINDS",
    "LOCAL_TASK",
    "Item",
    "Task",
    "TaskDataError",
    "TaskError",
    "aliases",
    "find_task",
    "group_tasks",
    "read_local_set",
    "task_names",
    "task_table",
    "tasks_named",
]
