"""How good a trained model is: lm-evaluation-harness, with the protocol of the ADG paper as a preset."""

from adg_plugin.tools.evaluation.results import Evaluation as Evaluation
from adg_plugin.tools.evaluation.results import TaskResult as TaskResult
from adg_plugin.tools.evaluation.run import evaluate as evaluate
from adg_plugin.tools.evaluation.tasks import Average as Average

__all__ = ["Average", "Evaluation", "TaskResult", "evaluate"]
