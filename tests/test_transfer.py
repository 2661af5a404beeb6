"""Transfer of parameters: what is copied, sliced, refused, and that the rest keeps every bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from graphopt import GraphView, create
from graphopt.cli import graphopt
from graphopt.errors import OptionError
from graphopt.model import from_proto, to_proto
from graphopt.runtime.session import Session
from graphopt.testing import initializers, model, random_feeds
from graphopt.transfer import read_mapping, transfer

Arrays = dict[str, NDArray[Any]]


def net(seed: int, width: int = 6, prefix: str = "", classes: int = 3) -> onnx.ModelProto:
    """Conv, BatchNormalization, depthwise Conv, pooling, Gemm."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    weights: Arrays = {
        "c.w": drawn(width, 2, 3, 3),
        "c.b": drawn(width),
        "n.s": drawn(width),
        "n.b": drawn(width),
        "n.m": drawn(width),
        "n.v": np.abs(drawn(width)) + 1,
        "d.w": drawn(width, 1, 3, 3),
        "f.w": drawn(classes, width),
        "f.b": drawn(classes),
    }
    names = {key: prefix + key for key in weights}
    body = (
        'a = Conv("{c.w}", "{c.b}") b = BatchNormalization("{n.s}", "{n.b}", "{n.m}", "{n.v}") '
        'd = Conv<group = W>("{d.w}") p = GlobalAveragePool() q = Flatten() y = Gemm<transB = 1>("{f.w}", "{f.b}")'
    )
    for key, name in names.items():
        body = body.replace("{" + key + "}", name)
    reads = iter(["x, ", "a, ", "b, ", "d", "p", "q, "])
    text = "".join(part + ("(" + next(reads) if index < 6 else "") for index, part in enumerate(body.split("(")))
    text = text.replace("W>", f"{width}>")
    return model(
        f"g (float[N,2,8,8] x) => (float[N,{classes}] y) {{ {text} }}", **{names[k]: v for k, v in weights.items()}
    )


def same_answers(left: onnx.ModelProto, right: onnx.ModelProto) -> bool:
    feeds = random_feeds(left, 0)
    return bool(np.array_equal(Session(left).run(feeds)["y"], Session(right).run(feeds)["y"]))


def moved(source: onnx.ModelProto, target: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Any]:
    before = target.SerializeToString()
    result, told = transfer(from_proto(source), from_proto(target), **options)
    assert target.SerializeToString() == before, "the target given was changed"
    return to_proto(result), told


def test_by_name() -> None:
    result, told = moved(net(0), net(1))
    assert len(told.copied) == 9
    assert not told.skipped
    assert same_answers(net(0), result)


def test_by_structure_names_do_not_matter() -> None:
    result, told = moved(net(0), net(1, prefix="other."), method="structure")
    assert told.copied[0].site == "other.c.w"
    assert not told.skipped
    assert same_answers(net(0), result)


def test_by_name_finds_nothing_among_other_names() -> None:
    target = net(1, prefix="other.")
    result, told = moved(net(0), target)
    assert not told.copied
    assert {each.reason for each in told.skipped} == {"the source has nothing that matches by name"}
    assert result.SerializeToString() == target.SerializeToString()


def test_by_mapping_with_a_star() -> None:
    result, told = moved(net(0), net(1, prefix="other."), method="mapping", mapping={"other.*": "*"})
    assert len(told.copied) == 9
    assert same_answers(net(0), result)


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        (None, "a mapping of target names to source names is needed"),
        ({"nowhere": "c.w"}, "the target has no parameter 'nowhere'"),
        ({"c.w": "nowhere"}, "the source has no parameter 'nowhere'"),
    ],
    ids=["none", "no such target", "no such source"],
)
def test_unusable_mappings(mapping: dict[str, str] | None, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        transfer(from_proto(net(0)), from_proto(net(1)), method="mapping", mapping=mapping)


def test_a_narrower_target_gets_the_first_channels() -> None:
    result, told = moved(net(0), net(1, width=4))
    assert {each.site: each.detail for each in told.copied}["c.w"] == "from 'c.w', [4, 2, 3, 3] of [6, 2, 3, 3]"
    np.testing.assert_array_equal(initializers(result)["c.w"], initializers(net(0))["c.w"][:4])
    np.testing.assert_array_equal(initializers(result)["f.w"], initializers(net(0))["f.w"][:, :4])


def test_no_slices_if_not_wanted() -> None:
    _, told = moved(net(0), net(1, width=4), slices=False)
    assert [each.site for each in told.copied] == ["f.b"]


def test_a_wider_target_keeps_its_own() -> None:
    result, told = moved(net(0), net(1, width=8))
    assert [each.site for each in told.copied] == ["f.b"]
    assert {each.site: each.reason for each in told.skipped}["c.b"] == "'c.b' has shape [6], not [8]"
    np.testing.assert_array_equal(initializers(result)["c.w"], initializers(net(1, width=8))["c.w"])


def test_a_backbone_alone() -> None:
    result, told = moved(net(0), net(1, classes=5), only=("c.*", "n.*", "d.*"))
    assert sorted(each.site for each in told.copied) == ["c.b", "c.w", "d.w", "n.b", "n.m", "n.s", "n.v"]
    assert {each.reason for each in told.skipped} == {"is not among those asked for"}
    np.testing.assert_array_equal(initializers(result)["f.w"], initializers(net(1, classes=5))["f.w"])


def test_kernels_of_another_size_are_no_match() -> None:
    source = model("g (float[1,1,8,8] x) => (float[A,B,C,D] y) { y = Conv(x, w) }", w=np.ones((2, 1, 5, 5), np.float32))
    target = model(
        "g (float[1,1,8,8] x) => (float[A,B,C,D] y) { y = Conv(x, w) }", w=np.zeros((2, 1, 3, 3), np.float32)
    )
    _, told = moved(source, target)
    assert told.skipped[0].reason == "'w' has a kernel of [5, 5], not [3, 3]"
    assert moved(source, target, method="structure")[1].skipped[0].reason.endswith("by structure")


def test_structure_skips_what_only_one_has() -> None:
    source = model(
        "g (float[1,4] x) => (float[A,B] y) { a = MatMul(x, u) b = LayerNormalization(a, s) y = MatMul(b, w) }",
        u=np.full((4, 4), 2, np.float32),
        s=np.ones(4, np.float32),
        w=np.full((4, 4), 3, np.float32),
    )
    target = model(
        "g (float[1,4] x) => (float[A,B] y) { a = MatMul(x, p) y = MatMul(a, q) }",
        p=np.zeros((4, 4), np.float32),
        q=np.zeros((4, 4), np.float32),
    )
    result, _ = moved(source, target, method="structure")
    assert {name: array[0, 0] for name, array in initializers(result).items()} == {"p": 2, "q": 3}


def test_half_precision_gets_a_cast() -> None:
    target = model("g (float16[1,2] x) => (float16[1,2] y) { y = MatMul(x, w) }", w=np.zeros((2, 2), np.float16))
    source = model("g (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }", w=np.full((2, 2), 0.1, np.float32))
    result, _ = moved(source, target)
    assert initializers(result)["w"].dtype == np.float16
    over = model("g (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }", w=np.full((2, 2), 1e6, np.float32))
    assert "overflow" in moved(over, target)[1].skipped[0].reason


def test_a_shared_weight_stays_shared() -> None:
    text = "g (float[1,2] x) => (float[1,2] y) { a = MatMul(x, w) y = MatMul(a, w) }"
    source, target = (model(text, w=np.full((2, 2), k, np.float32)) for k in (1, 0))
    result, told = moved(source, target)
    assert len(told.copied) == len(result.graph.initializer) == 1
    assert same_answers(source, result)


@pytest.mark.parametrize(
    ("text", "reason"), [("[1]", "must be an object"), ("{", "is not JSON"), ('{"a": 1}', "must be an object")]
)
def test_bad_mapping_files(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(OptionError, match=reason):
        read_mapping(tmp_path / "map.json")
    with pytest.raises(OptionError, match="cannot be read"):
        read_mapping(tmp_path / "none.json")


def test_command(tmp_path: Path) -> None:
    onnx.save(net(0), tmp_path / "source.onnx")
    onnx.save(net(1, prefix="o."), tmp_path / "model.onnx")
    (tmp_path / "map.json").write_text(json.dumps({"o.c.*": "c.*"}))
    paths = [str(tmp_path / name) for name in ("source.onnx", "model.onnx", "target.onnx")]
    nothing = CliRunner().invoke(graphopt, ["transfer", *paths], standalone_mode=False)
    assert nothing.return_value == 1
    assert not (tmp_path / "target.onnx").exists()
    report = tmp_path / "report.json"
    done = CliRunner().invoke(
        graphopt,
        ["transfer", *paths, "--mapping", str(tmp_path / "map.json"), "--report", str(report)],
        standalone_mode=False,
    )
    assert done.return_value == 0, done.output
    assert "2 parameters copied, 7 not; 7 of the source were not used" in done.output
    assert "unused   n.s of the source" in done.output
    assert len(json.loads(report.read_text())["copied"]) == 2
    np.testing.assert_array_equal(initializers(onnx.load(paths[2]))["o.c.w"], initializers(net(0))["c.w"])


def test_command_with_two_ways_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        onnx.save(net(0), tmp_path / f"{name}.onnx")
    (tmp_path / "map.json").write_text(json.dumps({"*": "*"}))
    paths = [str(tmp_path / f"{name}.onnx") for name in ("a", "b", "c")]
    mapping = str(tmp_path / "map.json")
    result = CliRunner().invoke(graphopt, ["transfer", *paths, "--by", "structure", "--mapping", mapping])
    assert isinstance(result.exception, OptionError)
    assert "--mapping does not go with --by structure" in str(result.exception)
    wrong = CliRunner().invoke(graphopt, ["transfer", *paths, "--only", "c.*", "--only", "nowhere.*"])
    assert isinstance(wrong.exception, OptionError)
    assert "the target has no parameter 'nowhere.*'" in str(wrong.exception)


@pytest.mark.parametrize("over", ["a.onnx", "b.onnx"], ids=["the source", "the model"])
def test_command_may_write_over_what_it_read(tmp_path: Path, over: str) -> None:
    onnx.save(net(0), tmp_path / "a.onnx")
    onnx.save(net(1), tmp_path / "b.onnx", save_as_external_data=True, location="b.bin", size_threshold=0)
    paths = [str(tmp_path / name) for name in ("a.onnx", "b.onnx", over)]
    assert CliRunner().invoke(graphopt, ["transfer", *paths], standalone_mode=False).return_value == 0
    assert same_answers(net(0), onnx.load(tmp_path / over))


# -- the same layers as other exporters write them ---------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


HEAD = "g (float[N,2,4,4] x) => (float[N,5] y)"
FORMS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "Gemm": ("f = Flatten(x) y = Gemm<transB = 1>(f, v, c)", {"v": (5, 32), "c": (5,)}),
    "Gemm, not transposed, bias [1, 5]": ("f = Flatten(x) y = Gemm(f, v, c)", {"v": (32, 5), "c": (1, 5)}),
    "MatMul and Add": ("f = Flatten(x) m = MatMul(f, v) y = Add(m, c)", {"v": (32, 5), "c": (5,)}),
    "Add the other way round": ("f = Flatten(x) m = MatMul(f, v) y = Add(c, m)", {"v": (32, 5), "c": (1, 5)}),
    "weight behind Transpose": (
        "f = Flatten(x) t = Transpose<perm = [1,0]>(v) m = MatMul(f, t) y = Add(m, c)",
        {"v": (5, 32), "c": (5,)},
    ),
    "weight behind Reshape and Identity": (
        "f = Flatten(x) k = Constant<value = int64[2] {32,5}>() i = Identity(v) t = Reshape(i, k)"
        " m = MatMul(f, t) y = Add(m, c)",
        {"v": (160,), "c": (5,)},
    ),
    "weight behind Cast": (
        "f = Flatten(x) t = Cast<to = 1>(v) m = MatMul(f, t) y = Add(m, c)",
        {"v": (32, 5), "c": (5,)},
    ),
    "weight in the middle of another": (
        "f = Flatten(x) b = Constant<value = int64[1] {1}>() e = Constant<value = int64[1] {6}>()"
        " a = Constant<value = int64[1] {1}>() t = Slice(v, b, e, a) m = MatMul(f, t) y = Add(m, c)",
        {"v": (32, 7), "c": (5,)},
    ),
}


def form(name: str, seed: int) -> onnx.ModelProto:
    body, shapes = FORMS[name]
    weights: Arrays = {key: drawn(*shape, seed=seed) for key, shape in shapes.items()}
    if "Cast" in name:
        weights["v"] = weights["v"].astype(np.float64)
    return model(f"{HEAD} {{ {body} }}", **weights)


@pytest.mark.parametrize("method", ["name", "structure"])
@pytest.mark.parametrize("into", FORMS)
@pytest.mark.parametrize("of", FORMS)
def test_any_form_into_any_other(of: str, into: str, method: Any) -> None:
    result, told = moved(form(of, 0), form(into, 1), method=method)
    assert not told.skipped, told
    assert not told.unused
    onnx.checker.check_model(result, full_check=True)
    feeds = random_feeds(result, 0)
    given, got = (Session(proto).run(feeds)["y"] for proto in (form(of, 0), result))
    np.testing.assert_allclose(got, given, rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in form(into, 1).graph.node]


def test_square_weights_are_turned_too() -> None:
    """The shapes alone would allow a copy as it is."""
    source = model("g (float[N,4] x) => (float[N,4] y) { y = Gemm<transB = 1>(x, w) }", w=drawn(4, 4))
    target = model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=drawn(4, 4, seed=1))
    result, told = moved(source, target)
    assert told.copied[0].detail == "from 'w', transposed"
    np.testing.assert_array_equal(initializers(result)["w"], drawn(4, 4).T)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"granularity": "tensor"}, {"granularity": "block", "block_size": 16}, {"representation": "mul"}],
    ids=str,
)
@pytest.mark.parametrize("method", ["name", "structure"])
def test_a_quantized_source_gives_what_it_computes_with(method: Any, options: dict[str, Any], symmetric: bool) -> None:
    plain = model("g (float[N,32] x) => (float[N,24] y) { y = MatMul(x, w) }", 21, 10, w=drawn(32, 24))
    subject = from_proto(plain)
    assert create("quantize-weights", symmetric=symmetric, **options).apply(GraphView(subject)).rewritten
    target = model("g (float[N,32] x) => (float[N,24] y) { y = Gemm<transB = 1>(x, w) }", w=drawn(24, 32, seed=1))
    result, told = moved(to_proto(subject), target, method=method)
    assert not told.skipped
    feeds = random_feeds(result, 0)
    expected = Session(to_proto(subject)).run(feeds)["y"]
    np.testing.assert_allclose(Session(result).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["dq", "mul", "qdq"])
def test_a_quantized_target_keeps_its_weights(form: str) -> None:
    plain = model(
        "g (float[N,32] x) => (float[N,24] y) { m = MatMul(x, w) y = Add(m, b) }", w=drawn(32, 24), b=drawn(24)
    )
    subject = from_proto(plain)
    create("quantize-weights", representation=form).apply(GraphView(subject))
    target = to_proto(subject)
    result, told = moved(plain, target, only=("w*",))
    assert next(each.reason for each in told.skipped) == "is quantized, only floats can be replaced"
    assert not told.copied
    assert result.SerializeToString() == target.SerializeToString()


def test_normalized_in_one_and_folded_in_the_other() -> None:
    """Weights without the scales that belong to them are worth nothing."""
    normal = net(0)
    folded = from_proto(normal)
    assert create("fold-batchnorm").apply(GraphView(folded)).rewritten
    for source, target, where in ((normal, to_proto(folded), "source"), (to_proto(folded), normal, "target")):
        for method in ("name", "structure"):
            _, told = moved(source, target, method=method)
            reason = next(each.reason for each in told.skipped if each.site == "c.w")
            assert reason == f"only in the {where} BatchNormalization 'b' follows: fold-batchnorm the {where} first"
            assert "c.w" not in {each.site for each in told.copied}
    _, told = moved(normal, to_proto(folded), method="mapping", mapping={"c.w": "c.w"})
    assert [each.site for each in told.copied] == ["c.w"]


def test_a_name_of_another_part_is_no_match() -> None:
    """Exporters number what has no name: the same number says nothing."""
    source = model("g (float[N,4] x) => (float[N,4] y) { y = Mul(x, onnx_1) }", onnx_1=drawn(4))
    target = model("g (float[N,4] x) => (float[N,4] y) { y = Gemm(x, w, onnx_1) }", w=drawn(4, 4), onnx_1=drawn(4))
    _, told = moved(source, target)
    assert told.skipped[-1].reason == (
        "'onnx_1' is the operand of a Mul in the source, here the bias of a Gemm or MatMul"
    )
    assert told.unused == ("onnx_1",)


def test_the_order_of_nodes_and_of_summands_does_not_matter() -> None:
    """Two branches of the same shapes: only the way through the graph tells which is which."""
    a, b, c = (drawn(3, 3, 1, 1, seed=seed) for seed in (1, 2, 3))
    text = "g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ {} }}"
    first = "p = Conv(x, a) r = Relu(p) q = Conv(r, b) s = Conv(x, c) y = Add(q, s)"
    second = "s = Conv(x, w) p = Conv(x, u) r = Relu(p) q = Conv(r, v) y = Add(s, q)"
    target = model(text.format(second), u=a * 0, v=b * 0, w=c * 0)
    result, _ = moved(model(text.format(first), a=a, b=b, c=c), target, method="structure")
    found = initializers(result)
    for name, wanted in (("u", a), ("v", b), ("w", c)):
        np.testing.assert_array_equal(found[name], wanted)


def test_a_layer_that_is_missing_in_the_middle_shifts_nothing() -> None:
    text = "g (float[N,4] x) => (float[N,A] y) {{ {} }}"
    source = model(
        text.format("a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w)"), u=drawn(4, 4), v=drawn(4, 8), w=drawn(8, 8)
    )
    target = model(text.format("a = MatMul(x, p) y = MatMul(a, q)"), p=drawn(4, 8, seed=1), q=drawn(8, 8, seed=1))
    _, told = moved(source, target, method="structure")
    assert {each.site: each.detail for each in told.copied} == {"p": "from 'v'", "q": "from 'w'"}
    assert told.unused == ("u",)


def test_a_tensor_that_exporters_share_is_parted_where_the_source_has_two() -> None:
    """torch.onnx stores equal tensors once: biases of nought, scales of one."""
    text = "g (float[N,4] x) => (float[N,4] y) {{ a = Gemm(x, u, {}) r = Relu(a) y = Gemm(r, v, {}) }}"
    source = model(text.format("b", "c"), u=drawn(4, 4), v=drawn(4, 4), b=drawn(4, seed=1), c=drawn(4, seed=2))
    target = model(text.format("b", "b"), u=drawn(4, 4), v=drawn(4, 4), b=np.zeros(4, np.float32))
    result, told = moved(source, target, method="structure")
    assert sorted(each.detail for each in told.copied if each.site == "b") == [
        "from 'b', for 'a' alone",
        "from 'c', for 'y' alone",
    ]
    assert not told.unused
    feeds = random_feeds(result, 0)
    np.testing.assert_array_equal(Session(result).run(feeds)["y"], Session(source).run(feeds)["y"])
    part, told = moved(source, target, method="structure", only=("u", "b"))
    np.testing.assert_array_equal(initializers(part)["v"], initializers(target)["v"])


def test_a_backbone_does_not_change_what_the_head_shares_with_it() -> None:
    text = "g (float[N,4] x) => (float[N,A] y) {{ a = Gemm(x, u, b) r = Relu(a) {} }}"
    source = model(text.format("y = Identity(r)"), u=drawn(4, 4), b=drawn(4, seed=1))
    target = model(
        text.format("m = MatMul(r, v) s = Add(m, b) y = Softmax(s)"),
        u=drawn(4, 4),
        v=drawn(4, 4),
        b=np.zeros(4, np.float32),
    )
    result, told = moved(source, target, method="structure")
    assert {each.site for each in told.copied} == {"u", "b"}
    assert {(each.site, each.reason) for each in told.skipped} == {
        ("v", "the source has nothing that matches by structure"),
        ("b", "the source has nothing that matches by structure (in 's')"),
    }
    add = next(node for node in result.graph.node if node.op_type == "Add")
    np.testing.assert_array_equal(initializers(result)[add.input[1]], np.zeros(4))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_gates_are_sliced_one_by_one(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]

    def cell(hidden: int, seed: int) -> onnx.ModelProto:
        return model(
            f"g (float[5,1,3] x) => (float[5,1,1,{hidden}] y) {{ y = {op}<hidden_size = {hidden}>(x, w, r, b) }}",
            w=drawn(1, gates * hidden, 3, seed=seed),
            r=drawn(1, gates * hidden, hidden, seed=seed),
            b=drawn(1, 2 * gates * hidden, seed=seed),
        )

    result, told = moved(cell(4, 0), cell(2, 1))
    assert len(told.copied) == 3
    whole, part = initializers(cell(4, 0)), initializers(result)
    for gate in range(gates):
        rows, own = slice(gate * 4, gate * 4 + 2), slice(gate * 2, gate * 2 + 2)
        np.testing.assert_array_equal(part["w"][:, own], whole["w"][:, rows])
        np.testing.assert_array_equal(part["r"][:, own], whole["r"][:, rows, :2])
    for half in range(2 * gates):
        np.testing.assert_array_equal(part["b"][0, half * 2 : half * 2 + 2], whole["b"][0, half * 4 : half * 4 + 2])
    Session(result).run(random_feeds(result, 0))


def test_grouped_convolutions_are_not_sliced() -> None:
    def conv(width: int) -> onnx.ModelProto:
        text = f"g (float[1,{width},4,4] x) => (float[1,{width},4,4] y) {{ y = Conv<group = 2>(x, w) }}"
        return model(text, w=drawn(width, width // 2, 1, 1))

    _, told = moved(conv(8), conv(4))
    assert told.skipped[0].reason == "'w' has shape [8, 4, 1, 1], not [4, 2, 1, 1], and cannot be sliced in groups"


@pytest.mark.parametrize("ir_version", [3, 8], ids=["initializers must be inputs", "initializers may be overridden"])
def test_defaults_of_inputs_are_parameters(ir_version: int) -> None:
    protos = []
    for seed in (0, 1):
        proto = model("g (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }", 8, w=drawn(2, 2, seed=seed))
        proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2, 2]))
        proto.ir_version = ir_version
        protos.append(proto)
    result, told = moved(protos[0], protos[1])
    assert not told.skipped
    np.testing.assert_array_equal(initializers(result)["w"], drawn(2, 2))
    assert [info.name for info in result.graph.input] == ["x", "w"]


def test_constant_nodes_and_half_precision_and_double() -> None:
    source = model("g (double[1,2] x) => (double[1,2] y) { y = MatMul(x, w) }", w=drawn(2, 2).astype(np.float64) / 3)
    target = model(
        "g (float16[1,2] x) => (float16[1,2] y) { w = Constant<value = float16[2,2] {1,2,3,4}>()"
        " a = MatMul(x, w) y = MatMul(a, w) }"
    )
    result, told = moved(source, target)
    assert [each.detail for each in told.copied] == ["from 'w'"]
    stored = onnx.numpy_helper.to_array(result.graph.node[0].attribute[0].t)
    np.testing.assert_array_equal(stored, (drawn(2, 2).astype(np.float64) / 3).astype(np.float16))
    assert [node.op_type for node in result.graph.node] == ["Constant", "MatMul", "MatMul"]


def test_what_is_no_parameter_is_left_alone() -> None:
    """Shapes, indices and scales of a Resize have names as well."""
    text = """g (float[1,1,2,2] x) => (float[A,B,C,D] y) {{
      r = Resize<mode = "nearest">(x, , s) c = Clip(r, lo, hi) k = Gather(t, i) h = Reshape(c, k) y = Mul(h, one) }}"""
    own = {
        "s": np.array([1, 1, 2, 2], np.float32),
        "lo": np.float32(-1),
        "hi": np.float32(1),
        "t": np.array([1, 1, 4, 4], np.int64),
        "i": np.array([0, 1, 2, 3], np.int64),
        "one": np.array([2.0], np.float32),
    }
    proto = model(text.format(), **{name: np.asarray(value) for name, value in own.items()})
    other = model(text.format(), **{name: np.asarray(value * 3) for name, value in own.items()})
    result, told = moved(other, proto)
    assert not told.copied
    assert not told.skipped
    assert result.SerializeToString() == proto.SerializeToString()


def test_inside_a_branch() -> None:
    text = """g (bool c, float[1,2] x) => (float[1,2] y) {{
      y = If(c)<then_branch = t () => (float[1,2] p) {{ p = MatMul(x, w) }},
                else_branch = e () => (float[1,2] q) {{ q = Add(x, b) }}> }}"""
    source, target = (model(text.format(), w=drawn(2, 2, seed=k), b=drawn(1, 2, seed=k)) for k in (0, 1))
    for method in ("name", "structure"):
        result, told = moved(source, target, method=method)
        assert sorted(each.site for each in told.copied) == ["b", "w"]
        np.testing.assert_array_equal(initializers(result)["w"], drawn(2, 2))


def test_values_that_are_not_finite_stay_behind() -> None:
    text = "g (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }"
    bad = np.array([[1, np.nan], [0, 1]], np.float32)
    _, told = moved(model(text, w=bad), model(text, w=drawn(2, 2)))
    assert [each.reason for each in told.skipped] == ["'w' holds NaN or Inf"]
