"""Every field that a model can have comes back: one crafted model per way that importers lose things."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser

from graphopt.model import from_proto, load, save, to_proto

MODELS: dict[str, Callable[[], ModelProto]] = {}


def crafted(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    MODELS[build.__name__.replace("_", " ")] = build
    return build


def relu(opset: int = 17, ir_version: int = 10) -> ModelProto:
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
    return parser.parse_model(header + "g (float[2] x) => (float[2] y) { t = Relu(x) y = Relu(t) }")


def with_type(kind: onnx.TypeProto) -> ModelProto:
    model = relu()
    model.graph.input.append(helper.make_value_info("extra", kind))
    model.graph.value_info.append(helper.make_value_info("t", kind))
    model.graph.output.append(helper.make_value_info("extra", kind))
    return model


def with_attribute(attribute: AttributeProto) -> ModelProto:
    model = relu()
    model.graph.node[0].domain = "custom"
    model.graph.node[0].attribute.append(attribute)
    return model


def with_initializers(*tensors: TensorProto, ir_version: int = 13) -> ModelProto:
    model = relu(ir_version=ir_version)
    model.graph.initializer.extend(tensors)
    return model


def sparse() -> onnx.SparseTensorProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]), [2, 2])


FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, "n", None])


@crafted
def optional_type() -> ModelProto:
    return with_type(helper.make_optional_type_proto(FLOAT))


@crafted
def sequence_type_with_shape() -> ModelProto:
    return with_type(helper.make_sequence_type_proto(FLOAT))


@crafted
def map_type() -> ModelProto:
    return with_type(helper.make_map_type_proto(TensorProto.INT64, FLOAT))


@crafted
def sequence_of_maps() -> ModelProto:
    return with_type(helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, FLOAT)))


@crafted
def sparse_type() -> ModelProto:
    return with_type(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3, None]))


@crafted
def output_without_type() -> ModelProto:
    model = relu()
    model.graph.output[0].ClearField("type")
    return model


@crafted
def unknown_and_negative_dims() -> ModelProto:
    model = relu()
    for value in (-1, 0, 2**62):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=value)
    model.graph.input[0].type.tensor_type.shape.dim.add(dim_param="")
    model.graph.input[0].type.tensor_type.shape.dim.add()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


for _kind in ("INTS", "FLOATS", "STRINGS"):
    MODELS[f"empty list attribute, {_kind}"] = lambda kind=_kind: with_attribute(
        AttributeProto(name="a", type=getattr(AttributeProto, kind))
    )

ATTRIBUTES = {
    "string that is not UTF-8": AttributeProto(name="a", type=AttributeProto.STRING, s=b"\xff\xfe"),
    "strings, one not UTF-8": AttributeProto(name="a", type=AttributeProto.STRINGS, strings=[b"a", b"\xff"]),
    "sparse tensor": AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse()),
    "sparse tensors": AttributeProto(name="a", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse()]),
    "type": AttributeProto(name="a", type=AttributeProto.TYPE_PROTO, tp=FLOAT),
    "types": AttributeProto(name="a", type=AttributeProto.TYPE_PROTOS, type_protos=[FLOAT]),
    "tensors": AttributeProto(
        name="a", type=AttributeProto.TENSORS, tensors=[numpy_helper.from_array(np.ones(700, np.float32), "big")]
    ),
    "graphs": AttributeProto(name="a", type=AttributeProto.GRAPHS, graphs=[relu().graph, relu().graph]),
    "tensor": AttributeProto(
        name="a", type=AttributeProto.TENSOR, t=numpy_helper.from_array(np.ones(700, np.float32), "big")
    ),
    "NaN and infinity": helper.make_attribute("a", [float("nan"), float("-inf"), -0.0]),
    "negative zero": helper.make_attribute("a", -0.0),
    "documented": helper.make_attribute("a", 3, doc_string="what for"),
    "without type": AttributeProto(name="a", i=3),
    "large integers": helper.make_attribute("a", [2**63 - 1, -(2**63)]),
}
for _name, _attribute in ATTRIBUTES.items():
    MODELS[f"attribute, {_name}"] = lambda attribute=_attribute: with_attribute(attribute)

TYPES = sorted(set(helper.get_all_tensor_dtypes()) - {TensorProto.STRING})
for _type in TYPES:
    MODELS[f"type {TensorProto.DataType.Name(_type)}, raw"] = lambda kind=_type: with_initializers(
        numpy_helper.from_array(np.arange(5).astype(helper.tensor_dtype_to_np_dtype(kind)), "w"),
        numpy_helper.from_array(np.ones((41, 101)).astype(helper.tensor_dtype_to_np_dtype(kind)), "big"),
        numpy_helper.from_array(np.asarray(1).astype(helper.tensor_dtype_to_np_dtype(kind)), "scalar"),
        numpy_helper.from_array(np.zeros((3, 0)).astype(helper.tensor_dtype_to_np_dtype(kind)), "empty"),
    )
    MODELS[f"type {TensorProto.DataType.Name(_type)}, typed field"] = lambda kind=_type: with_initializers(
        helper.make_tensor("w", kind, [5], np.ones(5).astype(helper.tensor_dtype_to_np_dtype(kind)))
    )


@crafted
def strings_some_not_utf8() -> ModelProto:
    return with_initializers(TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"]))


@crafted
def sparse_initializer() -> ModelProto:
    model = relu()
    model.graph.sparse_initializer.append(sparse())
    return model


@crafted
def initializers_with_metadata_in_odd_order() -> ModelProto:
    tensors = [numpy_helper.from_array(np.full(400, n, np.float32), n) for n in ("3", "1", "2")]
    tensors[1].doc_string = "documented"
    tensors[1].metadata_props.add(key="k", value="v")
    tensors[2].data_location = TensorProto.DEFAULT
    return with_initializers(*tensors)


@crafted
def overridable_initializer() -> ModelProto:
    model = with_initializers(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    model.graph.node[0].op_type, model.graph.node[0].input[:] = "Add", ["x", "w"]
    return model


@crafted
def initializers_are_inputs_in_ir_3() -> ModelProto:
    model = overridable_initializer()
    model.ir_version = 3
    return model


@crafted
def outputs_are_input_and_initializer_and_listed_twice() -> ModelProto:
    model = with_initializers(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    for name in ("x", "w", "y"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]))
    return model


@crafted
def value_info_of_all_kinds() -> ModelProto:
    model = with_initializers(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    for name in ("t", "nowhere", "x", "w", "y", "t"):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"], doc_string=f"about {name}")
        info.metadata_props.add(key="k", value="v")
        info.type.denotation = "IMAGE"
        info.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
        model.graph.value_info.append(info)
    return model


@crafted
def metadata_everywhere() -> ModelProto:
    model = relu()
    model.producer_name, model.producer_version, model.domain, model.model_version = "p", "1", "d", -3
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "documented"
    for owner in (model, model.graph, model.graph.node[0]):
        owner.metadata_props.add(key="k", value="v")
    annotation = model.graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.configuration.add(name="c", num_devices=2)
    device = model.graph.node[0].device_configurations.add(configuration_id="c", pipeline_stage=1)
    device.sharding_spec.add(tensor_name="t").device.extend([0, 1])
    model.opset_import.add(domain="custom", version=7)
    return model


@crafted
def training_info_with_weights() -> ModelProto:
    model = relu()
    training = model.training_info.add()
    training.algorithm.CopyFrom(with_initializers(numpy_helper.from_array(np.ones(700, np.float32), "big")).graph)
    training.initialization_binding.add(key="a", value="b")
    return model


@crafted
def unknown_fields() -> ModelProto:
    model = relu()
    data = model.SerializeToString() + b"\xfa\x3f\x03new"
    model = ModelProto.FromString(data)
    model.graph.MergeFromString(b"\xfa\x3f\x03new")
    model.graph.node[0].MergeFromString(b"\xfa\x3f\x03new")
    return model


@crafted
def empty_and_duplicate_names() -> ModelProto:
    model = relu()
    model.graph.node[0].name = model.graph.node[1].name = "twin"
    model.graph.node.add(op_type="Clip", input=["t", "", ""], output=["", ""])
    model.graph.node.add(op_type="Clip", input=["t", "", "x"], output=["c"], name="", domain="")
    return model


@crafted
def names_that_are_not_utf8() -> ModelProto:
    model = relu()
    model.graph.node[0].name = model.graph.doc_string = "NAME"
    return ModelProto.FromString(model.SerializeToString().replace(b"NAME", b"\xff\xfe\xfd\xfc"))


@crafted
def a_weight_that_looks_like_a_marker() -> ModelProto:
    data = b"\x00graphopt weight\xff" + bytes(8)
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[len(data)], raw_data=data)
    longer = TensorProto(name="v", data_type=TensorProto.UINT8, dims=[len(data) + 3], raw_data=b"abc" + data)
    return with_initializers(tensor, longer, numpy_helper.from_array(np.ones(700, np.float32), "big"))


@crafted
def functions_with_overloads() -> ModelProto:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 17, "f": 1]>
        g (float[2] x) => (float[2] y) { t = f.act<slope = 0.5>(x) y = f.act(t) }
        <opset_import: ["": 17], domain: "f"> act <slope> (a) => (b)
        { c = Constant<value = float[2] {1, 2}>() d = LeakyRelu<alpha: float = @slope>(a) b = Add(d, c) }
        <opset_import: ["": 17, "f": 1], domain: "f"> act <slope: float = 0.1> (a) => (b)
        { c = Cast<to = 9>(a) n = ReduceMax<keepdims = 0>(a) m = Cast<to = 9>(n)
          b = If(m) <then_branch = t () => (float[2] z) { z = Relu(a) }, else_branch = e () => (float[2] z2)
          { z2 = LeakyRelu<alpha: float = @slope>(a) }> }""")
    model.functions[0].overload = model.graph.node[0].overload = "one"
    model.functions[0].metadata_props.add(key="k", value="v")
    model.functions[0].value_info.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["n"]))
    model.functions[0].doc_string = "documented"
    return model


@crafted
def captures_and_nested_subgraphs() -> ModelProto:
    weight = numpy_helper.from_array(np.ones(700, np.float32), "w")
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 17]>
        g (float[700] x, bool c, int64 n) => (float[700] y, float[700] l) { t = Add(x, w)
          y = If(c) <then_branch = a () => (float[700] z) { z = Add(t, w) },
                     else_branch = b () => (float[700] z2) { z2 = If(c)
                       <then_branch = aa () => (float[700] q) { q = Mul(own, w) },
                        else_branch = bb () => (float[700] q2) { q2 = Identity(own) }> }>
          l = Loop(n, , x) <body = body (int64 i, bool k, float[700] s) => (bool k2, float[700] s2)
            { k2 = Identity(k) s2 = Add(s, w) }> }""")
    model.graph.initializer.append(weight)
    inner = next(a.g for a in model.graph.node[1].attribute if a.name == "else_branch")
    inner.initializer.add().CopyFrom(weight)
    inner.initializer[0].name = "own"
    inner.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [700]))
    return model


@crafted
def branch_gives_out_an_outer_tensor() -> ModelProto:
    model = captures_and_nested_subgraphs()
    branch = next(a.g for a in model.graph.node[1].attribute if a.name == "then_branch")
    branch.output[0].name = "t"
    return model


@pytest.fixture(params=MODELS)
def proto(request: pytest.FixtureRequest) -> ModelProto:
    return MODELS[request.param]()


def test_proto_comes_back(proto: ModelProto) -> None:
    before = proto.SerializeToString()
    model = from_proto(proto)
    assert to_proto(model).SerializeToString() == before
    assert to_proto(model.copy()).SerializeToString() == before
    assert to_proto(model.copy().copy()).SerializeToString() == before
    assert proto.SerializeToString() == before


def test_file_comes_back(proto: ModelProto, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == proto.SerializeToString()
    save(load(tmp_path / "a.onnx"), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == proto.SerializeToString()


def test_file_comes_back_from_external_data(proto: ModelProto, tmp_path: Path) -> None:
    save(from_proto(proto), tmp_path / "a.onnx", "always")
    again = to_proto(load(tmp_path / "a.onnx"))
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")
    for tensor in again.graph.initializer:
        tensor.ClearField("data_location")
    assert again.SerializeToString() == proto.SerializeToString()


def test_every_weight_read(proto: ModelProto) -> None:
    model = from_proto(proto)
    for constant in model.constants():
        assert constant.values is not None
    assert to_proto(model).SerializeToString() == proto.SerializeToString()


def test_every_weight_replaced_by_an_equal_array(proto: ModelProto) -> None:
    model = from_proto(proto)
    for constant in model.constants():
        if not any(constant.name == part.values.name for part in proto.graph.sparse_initializer):
            constant.values = np.array(constant.values)
    assert to_proto(model).SerializeToString() == proto.SerializeToString()


def test_every_weight_replaced_by_another_array() -> None:
    for kind in TYPES:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        model = from_proto(MODELS[f"type {TensorProto.DataType.Name(kind)}, raw"]())
        for constant in model.constants():
            constant.values = np.ones(constant.shape).astype(dtype)
        for tensor, before in zip(to_proto(model).graph.initializer, model.constants(), strict=True):
            assert tensor.data_type == kind
            assert tuple(tensor.dims) == tuple(before.shape)
            assert numpy_helper.to_array(tensor).tobytes() == before.values.tobytes()


def test_later_changes_of_the_proto_do_not_reach_the_model() -> None:
    proto = MODELS["captures and nested subgraphs"]()
    before = proto.SerializeToString()
    model = from_proto(proto)
    proto.graph.initializer[0].raw_data = b""
    proto.graph.node[0].op_type = "Sub"
    assert to_proto(model).SerializeToString() == before


def test_changes_of_a_copy_do_not_reach_the_model() -> None:
    proto = MODELS["functions with overloads"]()
    model = from_proto(proto)
    copy = model.copy()
    for graph in copy.graphs():
        for node in graph.nodes:
            node.op, node.name = "Neg", "changed"
            node.attrs.clear()
        for tensor in graph.outputs:
            tensor.shape = [9]
    assert to_proto(model).SerializeToString() == proto.SerializeToString()


def test_sparse_values_are_dense_when_read() -> None:
    model = from_proto(MODELS["sparse initializer"]())
    (constant,) = model.constants()
    np.testing.assert_array_equal(constant.values, [[1, 0], [0, 2]])


def test_low_bit_types_are_their_own() -> None:
    model = from_proto(MODELS["type FLOAT8E4M3FNUZ, raw"]())
    assert {constant.values.dtype for constant in model.constants()} == {np.dtype(ml_dtypes.float8_e4m3fnuz)}
