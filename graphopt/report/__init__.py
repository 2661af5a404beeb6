"""What a run did, as data and in the forms that people and programs read."""

from graphopt.report.metrics import Metrics, measure
from graphopt.report.report import Check, PassReport, Report

__all__ = ["Check", "Metrics", "PassReport", "Report", "measure"]
