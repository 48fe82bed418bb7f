"""The name of a metric, and what it says: which values are better, and whether they are fractions or never negative."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from normkit.study.task.scoring.scores import torch_loss


def words(name: str) -> list[str]:
    """The words of a name, in lower case.

    >>> words("BinaryF1Score"), words("mean_squared_error"), words("MulticlassAUROC"), words("R2Score")
    (['binary', 'f1', 'score'], ['mean', 'squared', 'error'], ['multiclass', 'auroc'], ['r2', 'score'])
    """
    return [part.lower() for part in _parts(name)]


def _parts(name: str) -> list[str]:
    return re.findall(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*|\d+", name.replace("IoU", "IOU"))


HIGHER = frozenset(
    words(
        "accuracy acc f1 f2 fbeta auc auroc roc auprc precision recall sensitivity specificity dice iou miou "
        "jaccard r2 psnr ssim bleu rouge meteor kappa mcc matthews ndcg mrr correlation corrcoef pearson "
        "spearman kendall concordance likelihood top1 top5"
    )
)
"""Words of metrics of which higher values are better."""
LOWER = frozenset(
    words(
        "error errors err wrong loss nll mse rmse msle rmsle mae mape smape wer cer perplexity ppl entropy "
        "fid kid lpips brier hamming distance divergence kl crps eer deviation residual negative minus cost "
        "miss mistakes"
    )
)
"""Words of metrics of which lower values are better; they decide before those above, as in "dice loss"."""
SHARES = frozenset(
    words(
        "accuracy acc f1 f2 fbeta auc auroc auprc precision recall sensitivity specificity dice iou miou "
        "jaccard top1 top5"
    )
)
"""Words of metrics that are fractions from 0 to 1."""
NONNEGATIVE = frozenset(
    words(
        "mse rmse msle rmsle mae mape smape wer cer perplexity ppl squared absolute distance brier hamming "
        "deviation fid"
    )
)
"""Words of metrics that are never below 0."""
_LIBRARIES = ("torchmetrics.", "torcheval.")
"""Libraries whose functions are known by their names, and take (outputs, targets)."""
_COMPLEMENT = re.compile(r"\s*(1|one)(\s*-|[\s_]*minus)", re.IGNORECASE)
_TASKS = {"binary", "multiclass", "multilabel", "retrieval"}


def looks_higher(name: str) -> bool | None:
    """Whether higher values are better, from the name; None if it does not say.

    >>> looks_higher("accuracy"), looks_higher("1 - accuracy"), looks_higher("DiceLoss"), looks_higher("surprise")
    (True, False, False, None)
    """
    if _COMPLEMENT.match(name):
        return False
    found = {*words(name), "".join(words(name))}
    return False if found & LOWER else True if found & HIGHER else None


def looks_share(name: str) -> bool:
    """Whether the values are fractions from 0 to 1, from the name.

    >>> looks_share("MulticlassF1Score"), looks_share("1 - dice"), looks_share("dice loss"), looks_share("error rate")
    (True, True, False, True)
    """
    found = {*words(name), "".join(words(name))}
    if "rate" in found and found & {"error", "miss"}:
        return True
    return bool(found & SHARES) and ("loss" not in found)


def looks_nonnegative(metric: Any, name: str) -> bool:
    """Whether the values are never below 0, from the metric and its name.

    >>> from torch import nn
    >>> looks_nonnegative(None, "RMSE"), looks_nonnegative(nn.MSELoss(), ""), looks_nonnegative(None, "log likelihood")
    (True, True, False)
    """
    return torch_loss(metric) is not None or bool({*words(name)} & NONNEGATIVE)


def name_of(metric: Any) -> str:
    """The name of a function, or of the class of a metric object without its kind of task.

    >>> from torch import nn
    >>> name_of(nn.MSELoss()), name_of(partial(nn.functional.l1_loss, reduction="mean")), name_of(lambda a, b: 0)
    ('MSE loss', 'l1_loss', '')
    """
    metric = metric.func if isinstance(metric, partial) else metric
    named = metric if hasattr(metric, "__name__") else type(metric)
    name = str(named.__name__)
    if not isinstance(named, type):
        return "" if name.startswith("<") else name
    parts = _parts(name)
    kept = [part for part in parts if part.lower() not in _TASKS] or parts
    return " ".join(part if part.isupper() or part[-1].isdigit() else part.lower() for part in kept)


def known_higher(metric: Any) -> bool | None:
    """The direction that a metric states: its attribute, or the name of a function of a known library."""
    function = metric.func if isinstance(metric, partial) else metric
    stated = getattr(function, "higher_is_better", None)
    if isinstance(stated, bool):
        return stated
    if torch_loss(metric) is not None:
        return False
    if str(getattr(function, "__module__", "")).startswith(_LIBRARIES):
        return looks_higher(name_of(metric))
    return None
