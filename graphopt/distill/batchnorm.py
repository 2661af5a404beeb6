"""BatchNormalization by the statistics of the batch, for students that are trained from scratch."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from graphopt.distill.losses import LossBuilder

MOMENTUM = 0.1
"""How far a running statistic moves towards that of a batch, in each step."""


@dataclass(frozen=True)
class Statistic:
    """A running statistic: the tensor that stores it, and the one that holds the batch's."""

    stored: str
    measured: str


def by_batch(proto: onnx.ModelProto) -> list[Statistic]:
    """Replace each BatchNormalization, in place, by operators that use the mean and variance of the batch itself.

    The variance is the biased one, in training as in the running statistic (Ioffe and Szegedy 2015).

    Returns:
        The statistics that the caller has to keep up, two per node.
    """
    build, statistics = LossBuilder(proto, "norm"), []
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            proto.graph.node.append(node)
            continue
        x, scale, shift, mean, variance = node.input
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        centre = build.node("GlobalAveragePool", x)
        centre = build.mean(centre, [0], keepdims=1)
        moved = build.node("Sub", x, centre)
        spread = build.node("GlobalAveragePool", build.node("Mul", moved, moved))
        spread = build.mean(spread, [0], keepdims=1)
        deviation = build.node("Sqrt", build.node("Add", spread, build.constant(epsilon)))
        row = build.constant(np.asarray([-1], np.int64))
        column = build.node("Shape", centre)
        gain = build.node("Reshape", scale, column)
        offset = build.node("Reshape", shift, column)
        scaled = build.node("Mul", build.node("Div", moved, deviation), gain)
        proto.graph.node.append(helper.make_node("Add", [scaled, offset], [node.output[0]]))
        statistics.append(Statistic(mean, build.node("Reshape", centre, row)))
        statistics.append(Statistic(variance, build.node("Reshape", spread, row)))
    return statistics
