"""Changes how models are written, not what they compute, and tells whether the passes then reach less of them.

    python benchmarks/mutations.py [--passes NAME...] [--only MUTATION...] MODEL...

Each row is one model in one form: the exit status that the command line would give, the share of the file that is left,
how many sites each pass rewrote, and a remark where that is less than in the form that the exporter wrote. Weights that
the caller can override are left alone, unless ``freeze-initializers`` comes first. ``half`` wants onnxconverter-common.
"""

import argparse
import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import helper, version_converter

import graphopt
from graphopt.errors import GraphoptError


def nameless(model: onnx.ModelProto) -> None:
    """Take every node's name away."""
    for node in model.graph.node:
        node.name = ""


def in_constant_nodes(model: onnx.ModelProto) -> None:
    """Store weights in Constant nodes."""
    nodes = [helper.make_node("Constant", [], [each.name], value=each) for each in model.graph.initializer]
    _put_first(model.graph, nodes)
    _only_real_inputs(model.graph)
    del model.graph.initializer[:]


def behind_identity(model: onnx.ModelProto) -> None:
    """Let every weight come through an Identity."""
    nodes = []
    for each in model.graph.initializer:
        nodes.append(helper.make_node("Identity", [f"{each.name}_stored"], [each.name]))
    _only_real_inputs(model.graph)
    for each in model.graph.initializer:
        each.name = f"{each.name}_stored"
    _put_first(model.graph, nodes)


def overridable(model: onnx.ModelProto) -> None:
    """List the weights as graph inputs of IR version 8, which callers may feed: nothing may be changed then."""
    _as_inputs(model.graph)
    model.ir_version = max(model.ir_version, 8)


def ir_version_3(model: onnx.ModelProto) -> None:
    """List the weights as graph inputs of IR version 3, which demands it and lets nobody feed them."""
    _as_inputs(model.graph)
    model.ir_version = 3


def in_function(model: onnx.ModelProto) -> None:
    """Wrap the nodes into a local function that gets the weights as arguments."""
    graph = model.graph
    _only_real_inputs(graph)
    sources = [each.name for each in graph.input] + [each.name for each in graph.initializer]
    targets = [each.name for each in graph.output]
    taken = {name for node in graph.node for name in node.output} & set(sources)
    if taken:
        raise ValueError(f"{taken} would be written twice")
    body = helper.make_function("local", "Whole", sources, targets, graph.node, model.opset_import)
    model.functions.append(body)
    del graph.node[:]
    graph.node.append(helper.make_node("Whole", sources, targets, domain="local"))
    del graph.value_info[:]
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.ir_version = max(model.ir_version, 8)


def more_outputs(model: onnx.ModelProto) -> None:
    """Give out every seventh tensor in the middle."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {each.name: each for each in inferred.graph.value_info}
    given = {each.name for each in model.graph.output}
    middle = [name for node in model.graph.node[::7] for name in node.output[:1] if name in known and name not in given]
    model.graph.output.extend(known[name] for name in middle)


def dynamic_batch(model: onnx.ModelProto) -> None:
    """Forget the sizes of all inputs' first axes and everything that the file says of shapes further on."""
    constants = {each.name for each in model.graph.initializer}
    for each in (*model.graph.input, *model.graph.output):
        if each.name not in constants and each.type.tensor_type.shape.dim:
            each.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]


def one_opset_up(model: onnx.ModelProto) -> None:
    """Convert to the next opset with ONNX's own converter."""
    _convert(model, 1)


def one_opset_down(model: onnx.ModelProto) -> None:
    """Convert to the opset before with ONNX's own converter."""
    _convert(model, -1)


def half(model: onnx.ModelProto) -> None:
    """Convert to float16, inputs and outputs as they were."""
    from onnxconverter_common import float16

    model.CopyFrom(float16.convert_float_to_float16(model, keep_io_types=True))


def typed_fields(model: onnx.ModelProto) -> None:
    """Store float weights in ``float_data``, as old exporters do."""
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT and each.HasField("raw_data"):
            values = onnx.numpy_helper.to_array(each)
            each.ClearField("raw_data")
            each.float_data.extend(values.ravel().tolist())


MUTATIONS: dict[str, Callable[[onnx.ModelProto], None]] = {
    each.__name__: each
    for each in (
        nameless,
        in_constant_nodes,
        behind_identity,
        overridable,
        ir_version_3,
        in_function,
        more_outputs,
        dynamic_batch,
        one_opset_up,
        one_opset_down,
        half,
        typed_fields,
    )
}


def _as_inputs(graph: onnx.GraphProto) -> None:
    known = {each.name for each in graph.input}
    for each in graph.initializer:
        if each.name not in known:
            graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))


def _only_real_inputs(graph: onnx.GraphProto) -> None:
    constants = {each.name for each in graph.initializer}
    real = [each for each in graph.input if each.name not in constants]
    del graph.input[:]
    graph.input.extend(real)


def _put_first(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _convert(model: onnx.ModelProto, step: int) -> None:
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    model.CopyFrom(version_converter.convert_version(model, version + step))


def attempt(model: onnx.ModelProto, passes: list[str], folder: Path) -> tuple[int, float, list[int], str]:
    """Optimize a file with this model; return the status, the share left, rewritten sites by pass, and what failed."""
    source, target = folder / "source.onnx", folder / "target.onnx"
    onnx.save(model, source)
    try:
        result = graphopt.optimize(source, passes)
    except GraphoptError as error:
        return 2, 1.0, [], str(error)
    graphopt.save(result.optimized, target)
    onnx.checker.check_model(target, full_check=True)
    share = target.stat().st_size / source.stat().st_size
    counts = [len(each.result.rewritten) for each in result.report.passes]
    return 0 if result.ok else 1, share, counts, "; ".join(result.report.failures)


def tell(name: str, outcome: tuple[int, float, list[int], str], plain: tuple[int, float, list[int], str]) -> None:
    """Print what came of one form of a model, with a remark if it is less than what came of the plain form."""
    status, share, counts, failure = outcome
    fewer = len(counts) == len(plain[2]) and any(now < was for now, was in zip(counts, plain[2], strict=True))
    remarks = [*["fewer sites"] * fewer, *["larger"] * (share > plain[1] * 1.05)]
    print(f"    {name:18} {status} {share:.3f} {counts} {', '.join(remarks)} {failure[:200]}", flush=True)


def main() -> int:
    """Run every mutation of every model; return 1 if a status got worse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--passes", nargs="+", default=["fold-batchnorm", "prune-channels", "quantize-weights"])
    parser.add_argument("--only", nargs="+", choices=MUTATIONS, default=list(MUTATIONS))
    arguments = parser.parse_args()
    worse = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.models:
            original = onnx.load(path)
            plain = attempt(original, arguments.passes, Path(folder))
            print(path.name)
            tell("as it is", plain, plain)
            for name in arguments.only:
                mutant = copy.deepcopy(original)
                try:
                    MUTATIONS[name](mutant)
                    onnx.checker.check_model(mutant, full_check=True)
                except Exception as error:  # the converters of other projects fail in many ways
                    print(f"    {name:18} not to be had: {type(error).__name__} {' '.join(str(error).split())[:90]}")
                    continue
                outcome = attempt(mutant, arguments.passes, Path(folder))
                worse += outcome[0] > plain[0]
                tell(name, outcome, plain)
    return int(worse > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
