"""Random small graphs with planted nought, constant and unread channels: pruning keeps the outputs."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph import GraphView
from graphopt.graph.channels import analysis
from graphopt.model import from_proto, to_proto
from graphopt.registry import create
from graphopt.runtime.session import Session


@dataclass
class Builder:
    """Builds one random network of NCHW tensors, channel by channel full of plants."""

    draw: st.DrawFn
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    tensors: list[tuple[str, int]] = field(default_factory=list)

    def op(self, kind: str, inputs: list[str], channels: int | None = None, **attrs: object) -> str:
        """Add a node; if ``channels`` is given its output can be picked by later layers."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n{name}", **attrs))
        if channels is not None:
            self.tensors.append((name, channels))
        return name

    def constant(self, values: np.ndarray) -> str:
        """Store a constant."""
        name = f"w{len(self.weights)}"
        array = values if values.dtype == np.int64 else values.astype(np.float32)
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def planted(self, *shape: int) -> np.ndarray:
        """Draw weights of which some indices of the first two axes are nought."""
        values = self.rng.standard_normal(shape) * 0.7
        for axis in range(min(2, len(shape))):
            if self.draw(st.booleans()):
                dead = self.rng.random(shape[axis]) < self.draw(st.sampled_from([0.3, 0.6, 1.0]))
                values[(slice(None),) * axis + (dead,)] = 0
        return values

    def pick(self) -> tuple[str, int]:
        """Choose a tensor, the later the likelier."""
        return self.tensors[-1 - self.draw(st.integers(0, min(2, len(self.tensors) - 1)))]

    def layer(self) -> None:
        """Add one random layer."""
        kinds = (
            *("conv", "conv", "conv1", "depthwise", "grouped", "transposed", "norm", "activation", "activation", "add"),
            *(
                "mul",
                "concat",
                "split",
                "pool",
                "shuffle",
                "excite",
                "pad",
                "slice",
                "gather",
                "scale",
                "instance",
                "depth",
                "tokens",
                "written",
            ),
        )
        getattr(self, self.draw(st.sampled_from(kinds)))()

    def conv(self, size: int = 3) -> None:
        source, ins = self.pick()
        outs = self.draw(st.integers(2, 6))
        inputs = [source, self.constant(self.planted(outs, ins, size, size))]
        if self.draw(st.booleans()):
            inputs.append(self.constant(self.planted(outs)))
        if size == 3 and self.draw(st.booleans()):
            small = self.op("Conv", inputs)
            self.op("Resize", [small, "", self.constant(np.array([1.0, 1.0, 1.5, 1.5]))], outs)
        else:
            self.op("Conv", inputs, outs, pads=[size // 2] * 4)

    def conv1(self) -> None:
        self.conv(1)

    def depthwise(self) -> None:
        source, ins = self.pick()
        times = self.draw(st.sampled_from([1, 1, 2]))
        weight, bias = self.constant(self.planted(ins * times, 1, 3, 3)), self.constant(self.planted(ins * times))
        self.op("Conv", [source, weight, bias], ins * times, group=ins, pads=[1] * 4)

    def grouped(self) -> None:
        source, ins = self.pick()
        if ins % 2:
            self.conv1()
            return
        outs = 2 * self.draw(st.integers(1, 3))
        self.op("Conv", [source, self.constant(self.planted(outs, ins // 2, 1, 1))], outs, group=2)

    def transposed(self) -> None:
        source, ins = self.pick()
        group = 2 if ins % 2 == 0 and self.draw(st.booleans()) else 1
        outs = self.draw(st.integers(1, 3))
        weight, bias = self.constant(self.planted(ins, outs, 3, 3)), self.constant(self.planted(outs * group))
        self.op("ConvTranspose", [source, weight, bias], outs * group, group=group, pads=[1] * 4)

    def norm(self) -> None:
        source, channels = self.pick()
        scale, shift = self.planted(channels), self.planted(channels)
        mean, var = self.rng.standard_normal(channels), self.rng.random(channels) + 0.5
        self.op("BatchNormalization", [source, *map(self.constant, (scale, shift, mean, var))], channels)

    def instance(self) -> None:
        source, channels = self.pick()
        scale, shift = self.planted(channels), self.planted(channels)
        self.op("InstanceNormalization", [source, self.constant(scale), self.constant(shift)], channels, epsilon=1e-2)

    def activation(self) -> None:
        source, channels = self.pick()
        kind = self.draw(
            st.sampled_from(["Relu", "Sigmoid", "HardSwish", "Tanh", "Softplus", "Elu", "Clip", "PRelu", "Erf"])
        )
        inputs = [source]
        if kind == "Clip":
            inputs += [
                self.constant(np.array(self.draw(st.sampled_from([0.0, -0.5, 0.25])))),
                self.constant(np.array(6.0)),
            ]
        if kind == "PRelu":
            inputs.append(self.constant(self.rng.standard_normal((channels, 1, 1))))
        self.op(kind, inputs, channels)

    def two(self, kind: str) -> None:
        left, right = self.pick(), self.pick()
        if left[1] != right[1]:
            right = (self.op("Conv", [right[0], self.constant(self.planted(left[1], right[1], 1, 1))]), left[1])
        self.op(kind, [left[0], right[0]], left[1])

    def add(self) -> None:
        self.two(self.draw(st.sampled_from(["Add", "Add", "Sub", "Max"])))

    def mul(self) -> None:
        self.two("Mul")

    def concat(self) -> None:
        left, right = self.pick(), self.pick()
        self.op("Concat", [left[0], right[0]], left[1] + right[1], axis=1)

    def split(self) -> None:
        source, channels = self.pick()
        if channels < 2:
            self.conv()
            return
        first = self.draw(st.integers(1, channels - 1))
        sizes = self.constant(np.array([first, channels - first]))
        names = [f"t{len(self.nodes)}a", f"t{len(self.nodes)}b"]
        self.nodes.append(helper.make_node("Split", [source, sizes], names, axis=1))
        self.tensors += [(names[0], first), (names[1], channels - first)]

    def pool(self) -> None:
        source, channels = self.pick()
        kind = self.draw(st.sampled_from(["MaxPool", "AveragePool", "Counted"]))
        counted = {"count_include_pad": 1} if kind == "Counted" else {}
        self.op(
            kind.replace("Counted", "AveragePool"), [source], channels, kernel_shape=[3, 3], pads=[1] * 4, **counted
        )

    def shuffle(self) -> None:
        source, channels = self.pick()
        if channels % 2:
            self.conv()
            return
        wide = self.op("Reshape", [source, self.constant(np.array([0, 2, channels // 2, 6, 6]))])
        swapped = self.op("Transpose", [wide], perm=[0, 2, 1, 3, 4])
        self.op("Reshape", [swapped, self.constant(np.array([0, channels, 6, 6]))], channels)

    def excite(self) -> None:
        source, channels = self.pick()
        pooled = self.op("GlobalAveragePool", [source])
        narrow = self.op("Conv", [pooled, self.constant(self.planted(2, channels, 1, 1))])
        wide = self.op("Conv", [self.op("Relu", [narrow]), self.constant(self.planted(channels, 2, 1, 1))])
        self.op("Mul", [self.op("Sigmoid", [wide]), source], channels)

    def pad(self) -> None:
        source, channels = self.pick()
        fill = self.constant(np.array(self.draw(st.sampled_from([0.0, 0.5]))))
        padded = self.op("Pad", [source, self.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), fill])
        outs = self.draw(st.integers(2, 4))
        self.op("Conv", [padded, self.constant(self.planted(outs, channels, 3, 3))], outs)

    def slice(self) -> None:
        source, channels = self.pick()
        step = self.draw(st.sampled_from([1, 2, -1]))
        start, end = (channels - 1, -(2**31)) if step < 0 else (0, channels)
        bounds = [self.constant(np.array([value])) for value in (start, end, 1, step)]
        self.op("Slice", [source, *bounds], len(range(channels)[:: abs(step)]))

    def gather(self) -> None:
        source, channels = self.pick()
        picked = self.rng.integers(0, channels, self.draw(st.integers(1, 5)))
        self.op("Gather", [source, self.constant(picked.astype(np.int64))], len(picked), axis=1)

    def scale(self) -> None:
        source, channels = self.pick()
        kind = self.draw(st.sampled_from(["Mul", "Add"]))
        self.op(kind, [source, self.constant(self.planted(channels).reshape(channels, 1, 1))], channels)

    def depth(self) -> None:
        source, channels = self.pick()
        if channels % 4:
            self.conv()
            return
        mode = self.draw(st.sampled_from(["DCR", "CRD"]))
        shallow = self.op("DepthToSpace", [source], blocksize=2, mode=mode)
        self.op("SpaceToDepth", [shallow], channels, blocksize=2)

    def tokens(self) -> None:
        """Normalize over the channels, by LayerNormalization between two transpositions."""
        source, channels = self.pick()
        last = self.op("Transpose", [source], perm=[0, 2, 3, 1])
        parameters = [self.constant(self.planted(channels)) for _ in range(self.draw(st.integers(1, 2)))]
        normal = self.op("LayerNormalization", [last, *parameters], epsilon=1e-2)
        if self.draw(st.booleans()):
            normal = self.op("MatMul", [normal, self.constant(self.planted(channels, channels))])
        self.op("Transpose", [normal], channels, perm=[0, 3, 1, 2])

    def written(self) -> None:
        """Normalize over the channels, written out."""
        source, channels = self.pick()
        centred = self.op("Sub", [source, self.op("ReduceMean", [source], axes=[1])])
        variance = self.op("ReduceMean", [self.op("Mul", [centred, centred])], axes=[1])
        deviation = self.op("Sqrt", [self.op("Add", [variance, self.constant(np.array(1e-2))])])
        normal = self.op("Div", [centred, deviation])
        scaled = [normal, self.constant(self.planted(channels).reshape(channels, 1, 1))]
        normal = self.op("Mul", scaled[:: self.draw(st.sampled_from([1, -1]))], channels)
        if self.draw(st.booleans()):
            self.op("Add", [normal, self.constant(self.planted(channels).reshape(channels, 1, 1))], channels)

    def finish(self) -> onnx.ModelProto:
        """End in classifiers over the last tensors, flattened or averaged or recurrent."""
        outputs: dict[str, int] = {}
        for name, channels in self.tensors[-2:]:
            head = self.draw(st.sampled_from(["flatten", "mean", "sum", "tokens", "lstm", "raw"]))
            if head == "flatten":
                flat, width = self.op("Flatten", [name]), channels * 36
            elif head == "mean":
                flat, width = self.op("ReduceMean", [name], axes=[2, 3], keepdims=0), channels
            elif head == "sum":
                flat, width = self.op("ReduceSum", [name, self.constant(np.array([1, 2]))], keepdims=0), 6
            elif head == "raw":
                outputs[name] = 4
                continue
            else:
                rows = self.op("Reshape", [name, self.constant(np.array([0, channels, 36]))])
                rows, width = self.op("Transpose", [rows], perm=[2, 0, 1]), channels
                if head == "tokens":
                    rows = self.op("MatMul", [rows, self.constant(self.planted(channels, 8))])
                    rows = self.op("Add", [rows, self.constant(self.planted(8))])
                    rows = self.op("Relu", [rows])
                    outputs[self.op("MatMul", [rows, self.constant(self.planted(8, 3))])] = 3
                    continue
                flat, width = self.recurrent(rows, channels), 4
            bias = self.constant(self.planted(5))
            outputs[self.op("Gemm", [flat, self.constant(self.planted(5, width)), bias], transB=1)] = 2
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in outputs.items()
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 6, 6])
        graph = helper.make_graph(self.nodes, "random", [image], infos, self.weights)
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])

    def recurrent(self, rows: str, channels: int) -> str:
        """Add an LSTM or GRU and give its last state."""
        kind, gates = self.draw(st.sampled_from([("LSTM", 4), ("GRU", 3)]))
        units = 4
        weight, hidden = self.rng.standard_normal((2, gates * units, max(channels, units)))
        weight, hidden = weight[None, :, :channels].copy(), hidden[None, :, :units].copy()
        bias = self.rng.standard_normal((1, 2 * gates * units))
        for unit in np.flatnonzero(self.rng.random(units) < 0.4):
            for array in (weight, hidden, bias):
                array[:, unit::units] = 0
        name = f"t{len(self.nodes)}"
        inputs = [rows, *map(self.constant, (weight, hidden, bias))]
        self.nodes.append(helper.make_node(kind, inputs, ["", name], hidden_size=units))
        return self.op("Squeeze", [name, self.constant(np.array([0]))])


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a network."""
    builder = Builder(draw, np.random.default_rng(draw(st.integers(0, 2**31))), tensors=[("image", 3)])
    builder.conv()
    for _ in range(draw(st.integers(2, 7))):
        builder.layer()
    return builder.finish()


def prune(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Run prune-channels alone; a pick is worth it already where it saves a little, as all weights are small."""
    model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "WORTH", 1)
        create("prune-channels", multiple=1).apply(GraphView(model))
    return to_proto(model)


def check(proto: onnx.ModelProto) -> None:
    """Assert that pruning keeps every output."""
    onnx.checker.check_model(proto, full_check=True)
    pruned = prune(proto)
    onnx.checker.check_model(pruned, full_check=True)
    feeds = {"image": np.random.default_rng(7).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    before, after = Session(proto).run(feeds), Session(pruned).run(feeds)
    for name, values in before.items():
        assert values.shape == after[name].shape
        scale = max(float(np.abs(values).max()), 1e-3)
        assert float(np.abs(values - after[name]).max()) <= 2e-5 * scale, name
    assert prune(pruned).SerializeToString() == pruned.SerializeToString()


@seed(20261122)
@settings(max_examples=100, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(networks())
def test_random_networks_keep_their_outputs(proto: onnx.ModelProto) -> None:
    check(proto)
