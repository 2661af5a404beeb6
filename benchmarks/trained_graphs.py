"""Writes trained weights as ONNX models in opset 17, as exporters do: EfficientNet-Lite0 and all-MiniLM-L6-v2.

Layers and names are those of the packages ``efficientnet-lite-pytorch`` 0.1.0 and of BERT in ``transformers``.
"""

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[Any]]


@dataclass
class Builder:
    """Writes an ONNX graph node by node; weights get names as they come."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, values: NDArray[Any]) -> str:
        """Store an initializer and return its name."""
        name = f"w{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float) -> str:
        """Store a float32 scalar."""
        return self.weight(np.array(value, np.float32))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output's name."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def model(self, inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the model, checked, in opset 17."""
        graph = onnx.helper.make_graph(self.nodes, "trained", list(inputs), list(outputs), self.initializers)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def tensor(name: str, shape: list[str | int], kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return the declaration of a graph input or output."""
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def torch_weights(file: io.BytesIO) -> Weights:
    """Read a state dict in PyTorch's format of before 1.6: four pickles, the storages' keys, then the storages."""

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, size, strides, *_: (storage, offset, size, strides)
            if module == "torch":  # the type of a storage
                return name
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a state dict")

        def persistent_load(self, key: Any) -> Any:
            return key

    for _ in range(3):  # magic number, version of the protocol, sizes of types
        Reader(file).load()
    tensors, storages = Reader(file).load(), {}
    types: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
    kinds = {storage[2]: types[storage[1]] for storage, *_ in tensors.values()}
    for key in Reader(file).load():
        count = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(count * kinds[key].itemsize), kinds[key])
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[storage[2]][offset:], size, [each * kinds[storage[2]].itemsize for each in strides]
        )
        for name, (storage, offset, size, strides) in tensors.items()
    }


def safetensors(content: bytes) -> Weights:
    """Read float32 tensors of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") == "F32"
    }


def efficientnet_lite0(weights: Weights) -> onnx.ModelProto:
    """Return EfficientNet-Lite0 for [N, 3, 224, 224], with BatchNormalization folded into the convolutions."""
    net = Builder()

    def conv(x: str, name: str, norm: str, size: int, stride: int, groups: int = 1) -> tuple[str, int]:
        gamma, beta, mean, variance = (
            weights[f"{norm}.{each}"] for each in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + np.float32(1e-3))
        kernel = weights[f"{name}.weight"] * scale[:, None, None, None]
        extent, after = kernel.shape[-1], -(-size // stride)
        missing = max((after - 1) * stride + extent - size, 0)  # TensorFlow's SAME
        pads = [missing // 2] * 2 + [missing - missing // 2] * 2
        inputs = x, net.weight(kernel), net.weight(beta - mean * scale)
        return net.add("Conv", *inputs, strides=[stride] * 2, pads=pads, group=groups), after

    def relu6(x: str) -> str:
        return net.add("Clip", x, net.number(0), net.number(6))

    x, size = conv("images", "_conv_stem", "_bn0", 224, 2)
    x, block = relu6(x), 0
    for repeats, stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for repeat in range(repeats):
            name, start = f"_blocks.{block}", x
            if block:
                x, size = conv(x, f"{name}._expand_conv", f"{name}._bn0", size, 1)
                x = relu6(x)
            groups = len(weights[f"{name}._depthwise_conv.weight"])
            x, size = conv(x, f"{name}._depthwise_conv", f"{name}._bn1", size, 1 if repeat else stride, groups)
            x, size = conv(relu6(x), f"{name}._project_conv", f"{name}._bn2", size, 1)
            x, block = net.add("Add", x, start) if repeat else x, block + 1
    x, _ = conv(x, "_conv_head", "_bn1", size, 1)
    x = net.add("Flatten", net.add("GlobalAveragePool", relu6(x)))
    x = net.add("Gemm", x, net.weight(weights["_fc.weight"]), net.weight(weights["_fc.bias"]), transB=1)
    net.nodes[-1].output[0] = "logits"
    return net.model([tensor("images", ["N", 3, 224, 224])], [tensor("logits", ["N", 1000])])


def minilm(weights: Weights) -> onnx.ModelProto:
    """Return MiniLM's embeddings of tokens and of sentences (their mean over the tokens, of length 1)."""
    net, heads = Builder(), 12

    def linear(x: str, name: str) -> str:
        product = net.add("MatMul", x, net.weight(weights[f"{name}.weight"].T))
        return net.add("Add", product, net.weight(weights[f"{name}.bias"]))

    def norm(x: str, name: str) -> str:
        parameters = net.weight(weights[f"{name}.weight"]), net.weight(weights[f"{name}.bias"])
        return net.add("LayerNormalization", x, *parameters, axis=-1, epsilon=1e-12)

    def split(x: str, order: list[int]) -> str:
        shape = net.weight(np.array([0, 0, heads, -1]))
        return net.add("Transpose", net.add("Reshape", x, shape), perm=order)

    def embed(name: str) -> NDArray[Any]:
        return weights[f"embeddings.{name}_embeddings.weight"]

    length = net.add("Shape", "input_ids", start=1, end=2)
    places = net.add("Slice", net.weight(embed("position")), net.weight(np.array([0])), length)
    x = net.add("Gather", net.weight(embed("word")), "input_ids")
    x = net.add("Add", net.add("Add", x, net.weight(embed("token_type")[0])), places)
    x = norm(x, "embeddings.LayerNorm")
    mask = net.add("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
    wide = net.add("Unsqueeze", mask, net.weight(np.array([1, 2])))
    bias = net.add("Mul", net.add("Sub", net.number(1), wide), net.number(float(np.finfo(np.float32).min)))
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        queries = split(linear(x, f"{name}.attention.self.query"), [0, 2, 1, 3])
        keys = split(linear(x, f"{name}.attention.self.key"), [0, 2, 3, 1])
        values = split(linear(x, f"{name}.attention.self.value"), [0, 2, 1, 3])
        scores = net.add("Div", net.add("MatMul", queries, keys), net.number(float(np.sqrt(384 / heads))))
        shares = net.add("Softmax", net.add("Add", scores, bias), axis=-1)
        context = net.add("Transpose", net.add("MatMul", shares, values), perm=[0, 2, 1, 3])
        context = net.add("Reshape", context, net.weight(np.array([0, 0, 384])))
        x = norm(
            net.add("Add", linear(context, f"{name}.attention.output.dense"), x), f"{name}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{name}.intermediate.dense")
        error = net.add("Erf", net.add("Div", inner, net.number(float(np.sqrt(2)))))
        inner = net.add("Mul", net.add("Mul", inner, net.add("Add", error, net.number(1))), net.number(0.5))
        x = norm(net.add("Add", linear(inner, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")
    net.nodes[-1].output[0] = "token_embeddings"
    column = net.add("Unsqueeze", mask, net.weight(np.array([2])))
    total = net.add("ReduceSum", net.add("Mul", "token_embeddings", column), net.weight(np.array([1])), keepdims=0)
    mean = net.add("Div", total, net.add("ReduceSum", mask, net.weight(np.array([1]))))
    net.add("LpNormalization", mean, axis=1, p=2)
    net.nodes[-1].output[0] = "sentence_embedding"
    return net.model(
        [tensor(each, ["N", "T"], onnx.TensorProto.INT64) for each in ("input_ids", "attention_mask")],
        [tensor("token_embeddings", ["N", "T", 384]), tensor("sentence_embedding", ["N", 384])],
    )
