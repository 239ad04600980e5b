"""One page that shows an experiment: curves, bounds, histograms, errors of each layer, images."""

from srq_nni.report.build import write_report
from srq_nni.report.experiment import Experiment, open_experiment

__all__ = ["Experiment", "open_experiment", "write_report"]
