"""If with a constant condition and Loops that run once or never: the body takes the node's place."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import graphopt
from graphopt import create
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_untouched, model, run_alone

YES, NO = np.array(True), np.array(False)
PASS = create("eliminate-noops")


def branches(then: str, other: str, out: str = "y", results: str = "float[N,3] %") -> str:
    """Write an If whose branches give out what their last node computes, named t and e."""
    first, second = results.replace("%", "t"), results.replace("%", "e")
    yes, no = f"yes () => ({first}) {{ {then} }}", f"no () => ({second}) {{ {other} }}"
    return f"{out} = If (c) <then_branch = {yes}, else_branch = {no}>"


CASES: dict[str, tuple[str, dict[str, int]]] = {
    "the result is a graph output": (branches("t = Relu(x)", "e = Neg(x)"), {"Relu": 1}),
    "the result is read": (branches("t = Relu(x)", "e = Neg(x)", "a") + " y = Exp(a)", {"Relu": 1, "Exp": 1}),
    "the branch hands a graph input on": (branches("t = Identity(x)", "e = Neg(x)"), {"Identity": 1}),
    "the branch hands an outer tensor on": (
        "a = Exp(x) " + branches("t = Identity(a)", "e = Neg(a)"),
        {"Exp": 1},
    ),
    "the branch reads outer tensors": ("a = Exp(x) " + branches("t = Add(a, x)", "e = Neg(x)"), {"Exp": 1, "Add": 1}),
    "the branch has several nodes": (
        branches("b = Relu(x) t = Add(b, x)", "b = Exp(x) e = Neg(b)"),
        {"Relu": 1, "Add": 1},
    ),
    "a branch in a branch": (
        branches(
            "h = If (c) <then_branch = in_yes () => (float[N,3] p) { p = Sin(x) }, else_branch = in_no () => "
            "(float[N,3] q) { q = Cos(x) }> t = Add(h, x)",
            "e = Neg(x)",
        ),
        {"Sin": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_branch_takes_the_place_of_its_if(name: str) -> None:
    text, ops = CASES[name]
    proto = model(f"g (float[N,3] x) => (float[N,3] y) {{ {text} }}", c=YES)
    assert_rewrites(PASS, proto, ops=ops)


def test_the_other_branch() -> None:
    proto = model(f"g (float[N,3] x) => (float[N,3] y) {{ {branches('t = Relu(x)', 'e = Neg(x)')} }}", c=NO)
    _, result = run_alone(PASS, proto)
    assert [(each.site, each.detail) for each in result.rewritten] == [("y", "its condition is always false")]
    assert_rewrites(PASS, proto, ops={"Neg": 1})


def test_a_condition_that_follows_from_shapes() -> None:
    text = "s = Shape(x) r = Size(s) c = Equal(r, two) " + branches("t = Relu(x)", "e = Neg(x)")
    proto = model(f"g (float[N,3] x) => (float[N,3] y) {{ {text} }}", two=np.array(2))
    result = graphopt.optimize(proto, *clean())
    assert [node.op_type for node in result.model.graph.node] == ["Relu"]
    assert result.ok


def clean() -> tuple[list[graphopt.Pass]]:
    return ([create(name) for name in ("fold-constants", "eliminate-noops", "eliminate-dead")],)


def test_two_results_of_one_tensor_and_an_output_in_the_middle() -> None:
    text = (
        "y, z = If (c) <then_branch = yes () => (float[N,3] t, float[N,3] t2) "
        "{ b = Relu(x) t = Exp(b) t2 = Identity(t) }, else_branch = no () => (float[N,3] e, float[N,3] e2) "
        "{ e = Neg(x) e2 = Exp(x) }>"
    )
    proto = model(f"g (float[N,3] x) => (float[N,3] y, float[N,3] z) {{ {text} }}", c=YES)
    assert_rewrites(PASS, proto, ops={"Relu": 1, "Exp": 1, "Identity": 1})


def test_a_branch_that_gives_out_its_own_initializer() -> None:
    proto = model(
        f"g (float[N,3] x) => (float[N,3] y) {{ {branches('t = Relu(x)', 'e = Neg(x)', 'a')} y = Add(a, x) }}", c=YES
    )
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32).reshape(1, 3), "t"))
    del body.node[:]
    after = assert_rewrites(PASS, proto, ops={"Add": 1})
    assert [tensor.name for tensor in after.graph.initializer] == ["t"]


def test_equal_names_in_two_branches_are_told_apart() -> None:
    first = branches("b = Relu(x) t = Add(b, w)", "e = Neg(x)", "p")
    second = branches("b = Exp(p) t = Mul(b, w)", "e = Neg(p)", "y")
    first, second = (
        text.replace("(float[N,3] t) {", f"(float[N,3] t) <float[3] w = {{{scale}, 1, {scale}}}> {{")
        for text, scale in ((first, 2), (second, 3))
    )
    proto = model(f"g (float[N,3] x) => (float[N,3] y) {{ {first} {second} }}", c=YES)
    after = assert_rewrites(PASS, proto, ops={"Relu": 1, "Add": 1, "Exp": 1, "Mul": 1})
    names = [out for node in after.graph.node for out in node.output] + [t.name for t in after.graph.initializer]
    assert len(set(names)) == len(names)


def test_in_a_function() -> None:
    text = (
        "g (float[N,3] x) => (float[N,3] y) { y = local.f(x) } "
        '<domain: "local", opset_import: ["" : 17]> f (x) => (y) { c = Constant<value = bool {1}>() '
        f"{branches('t = Relu(x)', 'e = Neg(x)', results='float[N,3] %')} }}"
    )
    proto = model(text)
    after, result = run_alone(PASS, proto)
    assert [node.op_type for node in after.functions[0].node if node.op_type != "Constant"] == ["Relu"]
    assert result.rewritten
    assert graphopt.validate(proto, after).holds


def test_a_veto_is_honoured() -> None:
    proto = model(f"g (float[N,3] x) => (float[N,3] y) {{ {branches('t = Relu(x)', 'e = Neg(x)')} }}", c=YES)
    subject = graphopt.api.as_model(proto)
    assert not PASS.apply(graphopt.GraphView(subject, {"y": "vetoed"})).rewritten


def test_an_unknown_condition_stays() -> None:
    proto = model(f"g (bool c, float[N,3] x) => (float[N,3] y) {{ {branches('t = Relu(x)', 'e = Neg(x)')} }}")
    assert_untouched(PASS, proto)


LOOP = (
    "g (float[N,3] x) => (float[N,3] y, float[M,N,3] z) {{ y, z = Loop (trips, {cond}, x) <body = b (int64 i, bool k, "
    "float[N,3] v) => (bool k2, float[N,3] w, float[N,3] s) {{ {last} f = Cast<to = 1>(i) a = Add(v, f) w = Exp(a) "
    "s = Add(w, x) }}> }}"
)
KEEP, STOP = "k2 = Identity(k)", "k2 = Constant<value = bool {0}>()"


@pytest.mark.parametrize(("trips", "cond", "last"), [(1, "", KEEP), (1, "go", KEEP), (7, "go", STOP), (1, "", STOP)])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_loop_that_runs_once(trips: int, cond: str, last: str, opset: int) -> None:
    proto = model(LOOP.format(cond=cond, last=last), opset, trips=np.array(trips), go=YES)
    after, result = run_alone(PASS, proto)
    assert not [node for node in after.graph.node if node.op_type == "Loop"]
    assert ("y", "runs just once") in [(each.site, each.detail) for each in result.rewritten]
    check_equal(proto, after)


def test_a_loop_that_never_runs() -> None:
    text = LOOP.format(cond="go", last=KEEP).replace(", float[M,N,3] z)", ")").replace("y, z = ", "y, z = ")
    for trips, go in ((0, YES), (5, NO)):
        proto = model(text, trips=np.array(trips), go=go)
        after, _ = run_alone(PASS, proto)
        assert [node.op_type for node in after.graph.node] == ["Identity"]
        check_equal(proto, after)


@pytest.mark.parametrize(("trips", "cond", "last"), [(2, "", KEEP), (0, "", KEEP), (3, "go", KEEP)])
def test_other_loops_stay(trips: int, cond: str, last: str) -> None:
    proto = model(LOOP.format(cond=cond, last=last), trips=np.array(trips), go=YES)
    after, _ = run_alone(PASS, proto)
    assert [node.op_type for node in after.graph.node] == ["Loop"]
    check_equal(proto, after)


@pytest.mark.parametrize("opset", [9, 11, 17, 21])
def test_unread_results_of_an_if_go(opset: int) -> None:
    text = (
        "p, q, r = If (c) <then_branch = yes () => (float[N,3] a, float[N,3] b, float[N,3] d) "
        "{ a = Relu(x) b = Exp(a) d = Sin(x) }, else_branch = no () => (float[N,3] e, float[N,3] f, float[N,3] h) "
        "{ e = Neg(x) f = Cos(x) h = Abs(f) }> y = Neg(q)"
    )
    proto = model(f"g (bool c, float[N,3] x) => (float[N,3] y) {{ {text} }}", opset)
    for truth in (True, False):
        feeds = {"c": np.array(truth), "x": np.array([[1, -2, 3]], np.float32)}
        after = assert_rewrites(PASS, proto, ops={"If": 1, "Neg": 1}, feeds=feeds)
    assert len(after.graph.node[0].output) == 1
    after, _ = run_alone(create("eliminate-dead"), after)
    assert [[n.op_type for n in a.g.node] for a in after.graph.node[0].attribute] == [["Relu", "Exp"], ["Cos"]]


def test_what_a_loop_collects_for_nobody_goes() -> None:
    text = LOOP.format(cond="go", last=KEEP).replace(", float[M,N,3] z)", ")")
    proto = model(text, trips=np.array(3), go=YES)
    after, _ = run_alone(PASS, proto)
    assert [len(node.output) for node in after.graph.node] == [1]
    check_equal(proto, after)
    after, _ = run_alone(create("eliminate-dead"), after)
    assert "s" not in [out for node in after.graph.node[0].attribute[0].g.node for out in node.output]


def check_equal(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Compare bit by bit, for two batch sizes, on ONNX Runtime without its optimizations."""
    onnx.checker.check_model(after, full_check=True)
    for batch in (1, 4):
        feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)}
        one, two = outputs(before, feeds), outputs(after, feeds)
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)


def outputs(proto: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return Session(proto).run(feeds)


@st.composite
def nested(draw: st.DrawFn, depth: int = 3) -> str:
    """Draw a text of nodes that compute ``t`` of ``x``, with Ifs in Ifs on known and unknown conditions."""
    source, nodes = "x", []
    for index in range(draw(st.integers(1, 3))):
        out = f"n{depth}_{index}"
        if depth and draw(st.booleans()):
            condition = draw(st.sampled_from(["yes", "no", "u"]))
            sides = [
                f"{name} = s{depth}{name[0]} () => (float[N,3] {out}{name[0]}) "
                f"{{ {draw(nested(depth - 1))} {out}{name[0]} = Add(t{depth - 1}, {source}) }}"
                for name in ("then_branch", "else_branch")
            ]
            nodes.append(f"{out} = If ({condition}) <{sides[0]}, {sides[1]}>")
        else:
            nodes.append(f"{out} = {draw(st.sampled_from(['Relu', 'Neg', 'Identity', 'Sin']))}({source})")
        source = out
    return f"{' '.join(nodes)} t{depth} = {draw(st.sampled_from(['Identity', 'Abs']))}({source})"


@settings(max_examples=40, derandomize=True, deadline=None)
@given(text=nested(), unknown=st.booleans())
def test_random_nests(text: str, unknown: bool) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x, bool u) => (float[N,3] t3) {{ {text} }}'
    )
    for name, value in (("yes", YES), ("no", NO)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    after, _ = run_alone(PASS, proto)
    onnx.checker.check_model(after, full_check=True)
    assert 'input: "yes"' not in str(after)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32), "u": np.array(unknown)}
    assert np.array_equal(outputs(proto, feeds)["t3"], outputs(after, feeds)["t3"])
    _, second = run_alone(PASS, after)
    assert not second.rewritten
