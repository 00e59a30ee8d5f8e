"""Task metrics, as a statistic per row and a value of many rows, so that each has an interval.

values    statistics of rows -> the metric (accuracy, F1, Matthews, Spearman, perplexity, …)
intervals how sure one can be of a drop, at few rows too
observe   outputs and labels of a batch -> statistics, one row per example
choose    which metric fits the labels and outputs, and why
"""

from __future__ import annotations

from onnxprune.measure.metrics.choose import NAMES, choose_metric, require_known
from onnxprune.measure.metrics.observe import IGNORED, VOID, Metric
from onnxprune.measure.metrics.values import bootstrap_interval

__all__ = ["IGNORED", "NAMES", "VOID", "Metric", "bootstrap_interval", "choose_metric", "require_known"]
