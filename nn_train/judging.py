"""What stands beside the judgement of the network: baselines, the worth of each column, and how the run came about.

For the main process alone, once training is done; none of it is used to choose anything.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nn_train.baseline_sample import take_sample
from nn_train.decision import Decision
from nn_train.doubts import doubt_calibration, doubt_size
from nn_train.importance import Predict, permutation_importance
from nn_train.metrics import LOWER_IS_BETTER, QUANTILE_METRICS, metrics_by_target, selection_metric
from nn_train.own_metrics import OwnMetric
from nn_train.packed import Batch
from nn_train.preparation import PreparedData
from nn_train.preprocessor import Preprocessor
from nn_train.pulse import pulse
from nn_train.run_folder import portable
from nn_train.schema import SPLITS, Split, TargetSpec
from nn_train.settings import Config
from nn_train.streaming import rows_at
from nn_train.training import Training
from nn_train.verdict import find_rival

if TYPE_CHECKING:
    from nn_train.baselines import BaselineResult, BaselineRows

NUM_RESAMPLES = 1000  # of the rows on which the network is compared with the best baseline


def judge_baselines(
    data: PreparedData,
    config: Config,
    *,
    metric: str,
    own: Mapping[Split, np.ndarray],
    places: Mapping[Split, np.ndarray],
    known: Mapping[str, Any],
    decision: Decision,
    own_metrics: Mapping[str, OwnMetric],
) -> dict[str, Any]:
    """`baselines`, name -> metrics on test and validation rows, and seconds, and the network's `verdict` beside them.

    `own` are the network's predictions by split, as metrics take them, of all rows or of those at `places`, and `known`
    its metrics by split; `own_metrics` are the user's. Empty and None where report.baselines is off.

    Of a split of more than report.baseline_rows an even sample is taken. `baseline_sample` then says so, and holds the
    network's metrics on the same rows, which are those of the verdict.
    """
    if not config.report.baselines:
        return {"baselines": {}, "verdict": None}
    # scikit-learn's models: not before the first step
    from nn_train.baselines import BaselineData, choose_baselines, fit_baselines

    pulse.mark("baselines", pulse.step)
    fitted, target = data.preprocessor, data.preprocessor.target
    sample = take_sample(data, places, most=config.report.baseline_rows)
    parts = {split: _baseline_rows(data, split, sample.rows.get(split)) for split in SPLITS}
    own = sample.of_predictions(own)
    results = fit_baselines(
        BaselineData(**parts, cardinalities=fitted.cardinalities),
        task=target.task,
        num_classes=len(target.classes),
        seed=config.run.seed,
        threshold_metric=config.evaluation.threshold_by,
        names=choose_baselines(config.report.baselines, target.task),
        costs=decision.cost_table,
    )
    pulse.beat()
    split: Split = "test" if len(parts["test"].y) else "val"
    baselines: dict[str, Any] = {}
    for name, r in results.items():
        said: dict[Split, np.ndarray] = {"val": r.val_prediction, "test": r.test_prediction}
        of_user = {s: {n: measure(parts[s].y, said[s]) for n, measure in own_metrics.items()} for s in own}
        baselines[name] = {s: getattr(r, s) | of_user.get(s, {}) for s in ("test", "val")} | {"seconds": r.seconds}
        if target.columns:
            baselines[name]["targets"] = judge_targets({s: parts[s].y for s in own}, said, target)
    found = sample.judge({s: parts[s].y for s in own}, own, decision, target, own_metrics)
    if found:
        known = found["baseline_sample"]["network"]
    return found | {
        "baselines": baselines,
        "verdict": _judge_against(
            results,
            split,
            y=parts[split].y,
            own=own[split],
            metric=metric,
            value=known[split].get(metric),
            decision=decision,
            fitted=fitted,
            seed=config.run.seed,
        ),
    }


def _baseline_rows(data: PreparedData, split: Split, places: np.ndarray | None) -> "BaselineRows":
    """A split, or its rows at `places`, as baselines take it: gaps where numbers are missing, the target as it is."""
    from nn_train.baselines import BaselineRows  # scikit-learn: not before the first step

    rows, fitted = data.rows(split), data.preprocessor
    rows = rows if places is None else rows_at(rows, places)
    y = rows.y.numpy()
    return BaselineRows(
        x_num=fitted.with_gaps(rows.x_num.numpy(), rows.x_cat.numpy()),
        x_cat=rows.x_cat.numpy().astype(np.int32),
        y=fitted.decode_target(y) if fitted.target.task == "regression" else y,
    )


def judge_targets(
    truth: Mapping[Split, np.ndarray], predictions: Mapping[Split, np.ndarray], target: TargetSpec
) -> dict[Split, dict[str, dict[str, float]]]:
    """By split and target every metric, of true and predicted values (R, T) of several targets."""
    return {split: metrics_by_target(y, predictions[split], target.columns) for split, y in truth.items()}


def _judge_against(
    results: "dict[str, BaselineResult]",
    split: Split,
    *,
    y: np.ndarray,
    own: np.ndarray,
    metric: str,
    value: float | None,
    decision: Decision,
    fitted: Preprocessor,
    seed: int,
) -> dict[str, Any] | None:
    """The network against the best of the baselines, on the same rows; `value` is the network's metric there."""
    from nn_train.resampling import Rows, bootstrap, interval  # SciPy: not before the first step

    task = fitted.target.task

    def judged(prediction: np.ndarray, threshold: float) -> Rows:
        if task == "regression":
            return Rows(task=task, y=y, prediction=prediction, p=np.empty((len(y), 0)))
        p = np.stack([1 - prediction, prediction], axis=1) if task == "binary" else prediction
        chosen = dataclasses.replace(decision, threshold=threshold).choose(p, fitted)
        return Rows(task=task, y=y, prediction=chosen, p=p)

    verdict = find_rival(metric, value, {name: getattr(r, split)[metric] for name, r in results.items()})
    if verdict is None:
        return None
    rival = results[verdict["rival"]]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    rows = (judged(own, decision.threshold), judged(getattr(rival, f"{split}_prediction"), rival.threshold))
    pulse.beat()
    network, baseline = (bootstrap(part, samples=NUM_RESAMPLES, seed=seed).values for part in rows)
    found = None
    if metric in network and metric in baseline:
        found = interval(sign * (network[metric] - baseline[metric]))
    return verdict | {"split": split, "interval": None if found is None else list(found)}


def warn_of_size(training: Training) -> list[str]:
    """What the table, the network and the calibration together give to doubt."""
    fitted, num_val = training.data.preprocessor, len(training.val_rows)
    found = doubt_size(len(training.rows), training.num_parameters, len(fitted.columns))
    is_isotonic = training.config.evaluation.calibration == "isotonic" and fitted.target.task != "regression"
    return found + (doubt_calibration(num_val) if is_isotonic else [])


def batch_predictor(training: Training, decision: Decision) -> Predict:
    """From a batch to probabilities or values in the target's unit, under the current weights."""

    @torch.no_grad()
    def predict(batch: Batch) -> np.ndarray:
        pulse.beat()
        logits = training.network(batch.x_num, batch.x_cat).float().cpu().numpy()
        return decision.predict(logits, training.data.preprocessor)

    return predict


def judge_columns(training: Training, decision: Decision) -> dict[str, Any] | None:
    """By how much the validation metric falls when a column is shuffled; None where report.importance is off."""
    config = training.config
    if not config.report.importance:
        return None
    pulse.mark("judge", pulse.step)
    found = permutation_importance(
        training.val_rows,  # and no test row: what a person learns from this must not cost the test its worth
        training.data.preprocessor,
        batch_predictor(training, decision),
        metric=known_metric(training),
        seed=config.run.seed,
    )
    return found.to_json()


def known_metric(training: Training) -> str:
    """The metric that chose the weights, or the task's own where that is of quantiles or the user's."""
    if training.metric in QUANTILE_METRICS:
        return "mae"  # of the middle one, as everywhere where one number is the prediction
    target = training.data.preprocessor.target
    if not training.own_metrics:
        return training.metric
    return selection_metric("auto", target.task, num_targets=len(target.names))


def describe_training(training: Training, decision: Decision, *, seconds: dict[str, float]) -> dict[str, Any]:
    """How the judged weights came about, for metrics.json."""
    config, state = training.config, training.state
    return {
        "rows": training.data.info["rows"],
        "decision": dataclasses.asdict(decision)
        | {"calibration": config.evaluation.calibration, "threshold_metric": config.evaluation.threshold_by},
        "selection": {
            "metric": training.metric,
            "value": state.best_value,
            "step": state.best_step,
            "epoch": round(training.plan.epoch_at(state.best_step), 4),
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "processes": training.runtime.num_processes,
        "model": config.model.name,
        "network": config.model.model_dump(mode="json"),
        "num_parameters": training.num_parameters,
        "warnings": warn_of_size(training),
    }


def describe_bundle(training: Training, metrics: dict[str, Any], *, run_id: str) -> dict[str, Any]:
    """What a bundle says of itself beside weights, preprocessor, schema and decision."""
    config = portable(training.config)
    values = config.model_dump(mode="json", exclude={"run": {"dir"}, "data": {"cache_dir"}})
    return {
        "name": config.name,
        "run_id": run_id,
        "config": values,
        "fingerprint": training.data.info["fingerprint"],
        "metrics": {split: metrics[split] for split in ("val", "test")},
        "versions": {name: importlib.metadata.version(name) for name in ("nn-train", "torch", "numpy")},
    }
