"""Transfer of parameters: what is copied, sliced, refused, and that the rest keeps every bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from graphopt.cli import graphopt
from graphopt.errors import OptionError
from graphopt.model import from_proto, to_proto
from graphopt.runtime.session import Session
from graphopt.testing import model, random_feeds
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


def values(proto: onnx.ModelProto) -> Arrays:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


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
    np.testing.assert_array_equal(values(result)["c.w"], values(net(0))["c.w"][:4])
    np.testing.assert_array_equal(values(result)["f.w"], values(net(0))["f.w"][:, :4])


def test_no_slices_if_not_wanted() -> None:
    _, told = moved(net(0), net(1, width=4), slices=False)
    assert [each.site for each in told.copied] == ["f.b"]


def test_a_wider_target_keeps_its_own() -> None:
    result, told = moved(net(0), net(1, width=8))
    assert [each.site for each in told.copied] == ["f.b"]
    assert {each.site: each.reason for each in told.skipped}["c.b"] == "'c.b' has shape [6], not [8]"
    np.testing.assert_array_equal(values(result)["c.w"], values(net(1, width=8))["c.w"])


def test_a_backbone_alone() -> None:
    result, told = moved(net(0), net(1, classes=5), only=("c.*", "n.*", "d.*"))
    assert sorted(each.site for each in told.copied) == ["c.b", "c.w", "d.w", "n.b", "n.m", "n.s", "n.v"]
    assert {each.reason for each in told.skipped} == {"is not among those asked for"}
    np.testing.assert_array_equal(values(result)["f.w"], values(net(1, classes=5))["f.w"])


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
    assert {name: array[0, 0] for name, array in values(result).items()} == {"p": 2, "q": 3}


def test_half_precision_gets_a_cast() -> None:
    target = model("g (float16[1,2] x) => (float16[1,2] y) { y = MatMul(x, w) }", w=np.zeros((2, 2), np.float16))
    source = model("g (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }", w=np.full((2, 2), 0.1, np.float32))
    result, _ = moved(source, target)
    assert values(result)["w"].dtype == np.float16
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
    assert "2 parameters copied, 7 not" in done.output
    assert len(json.loads(report.read_text())["copied"]) == 2
    np.testing.assert_array_equal(values(onnx.load(paths[2]))["o.c.w"], values(net(0))["c.w"])
