"""A task from a Hugging Face `Trainer`: its model, arguments, data, collator and metrics."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.evaluation import call
from normkit.study.task.batches import LABELS
from normkit.tools.param_groups import param_groups

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
"""The schedules of the library that normkit has too."""
DECADE = 10.0


class Prediction(NamedTuple):
    """What `compute_metrics` gets: an `EvalPrediction` by its names and by its order."""

    predictions: Any
    label_ids: Any


def options_of(trainer: Any) -> dict[str, Any]:
    """The arguments of a `Task` for a trainer.

    Raises:
        ArgumentError: it has no data, or a schedule or optimizer that normkit cannot repeat.
    """
    arguments = trainer.args
    for name in ("train_dataset", "eval_dataset"):
        if getattr(trainer, name, None) is None or isinstance(getattr(trainer, name), Mapping):
            raise ArgumentError(f"trainer must have one {name}, got {type(getattr(trainer, name, None)).__name__}")
    schedule = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    if schedule not in SCHEDULES:
        raise ArgumentError(
            f"lr_scheduler_type must be one of {', '.join(SCHEDULES)}, got {schedule!r}: make a normkit.Task with "
            "schedule=, a function of (step, steps)"
        )
    make = _maker(trainer)
    rate = float(arguments.learning_rate)
    warmup = getattr(arguments, "warmup_steps", 0) or getattr(arguments, "warmup_ratio", 0) or 0
    length = (
        {"max_steps": int(arguments.max_steps)}
        if arguments.max_steps > 0
        else {"max_epochs": float(arguments.num_train_epochs)}
    )
    return {
        "model": make,
        "train": trainer.train_dataset,
        "test": trainer.eval_dataset,
        "collate_fn": Collate(trainer.data_collator, tuple(inspect.signature(make().forward).parameters)),
        "optimizer": partial(
            torch.optim.AdamW, betas=(arguments.adam_beta1, arguments.adam_beta2), eps=arguments.adam_epsilon
        ),
        "parameters": partial(param_groups, weight_decay=float(arguments.weight_decay)),
        "rates": (rate / DECADE, rate * DECADE),
        "schedule": SCHEDULES[schedule],
        "warmup": warmup,
        "clip": arguments.max_grad_norm or None,
        "accumulate": arguments.gradient_accumulation_steps,
        "evaluation_batch": arguments.per_device_eval_batch_size,
        **_metric(trainer),
        **length,
    }


def _maker(trainer: Any) -> Callable[[], nn.Module]:
    """A function that makes the model; without `model_init` each run starts from a copy of the trainer's model."""
    if getattr(trainer, "model_init", None) is not None:
        make: Callable[[], nn.Module] = trainer.model_init
        return make
    return partial(copy.deepcopy, trainer.model)


@dataclass(frozen=True)
class Collate:
    """The collator of the trainer, without the columns of the samples that the model does not take."""

    collator: Callable[[list[Any]], Any]
    names: tuple[str, ...]

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        """A batch of samples."""
        kept = (*self.names, *LABELS, "label_ids")
        if isinstance(samples[0], Mapping):
            samples = [{name: value for name, value in sample.items() if name in kept} for sample in samples]
        return dict(self.collator(samples))


def _metric(trainer: Any) -> dict[str, Any]:
    if getattr(trainer, "compute_metrics", None) is None:
        # The loss of the model itself.
        return {"evaluate": partial(evaluate, compute=None)}
    name = trainer.args.metric_for_best_model or ""
    return {
        "evaluate": partial(evaluate, compute=trainer.compute_metrics),
        "metric_name": name.removeprefix("eval_"),
        "higher_is_better": trainer.args.greater_is_better,
    }


@torch.no_grad()
def evaluate(model: nn.Module, loader: Any, compute: Callable[[Any], Mapping[str, Any]] | None) -> dict[str, float]:
    """The metrics of all predictions together, and the mean loss of the model."""
    outputs, labels, losses, counts = [], [], [], []
    for batch in loader:
        output = call(model, batch)
        key = next((key for key in ("labels", "label", "label_ids") if key in batch), None)
        counts.append(len(next(iter(batch.values()))))
        if output.get("loss") is not None:
            losses.append(float(output["loss"]))
        scores = [value for name, value in output.items() if name != "loss" and isinstance(value, Tensor)]
        outputs.append(scores[0].float().cpu())
        labels.append(None if key is None else batch[key].cpu())
    found: dict[str, float] = {}
    if compute is not None:
        given = Prediction(_joined(outputs), None if labels[0] is None else _joined(labels))
        found |= {name.removeprefix("eval_"): float(value) for name, value in compute(given).items()}
    if losses:
        mean = sum(c * v for c, v in zip(counts, losses, strict=True)) / sum(counts)
        found.setdefault("loss", mean)
    return found


def _joined(parts: list[Any]) -> Any:
    """All predictions as an array; sequences of several lengths are padded with -100, as by the library."""
    longest = max(part.shape[1] if part.dim() > 1 else 0 for part in parts)
    padded = []
    for part in parts:
        if part.dim() > 1 and part.shape[1] < longest:
            filling = part.new_full((len(part), longest - part.shape[1], *part.shape[2:]), -100)
            part = torch.cat([part, filling], 1)
        padded.append(part)
    return torch.cat(padded).numpy()
