"""What a run did, as data and in the forms that people and programs read."""

from graphopt.report.metrics import Metrics, measure
from graphopt.report.report import Check, Circumstances, Demoted, Latency, PassReport, Report

__all__ = ["Check", "Circumstances", "Demoted", "Latency", "Metrics", "PassReport", "Report", "measure"]
