"""The command ``graphopt inspect``."""

import json
from typing import Any

import click
import onnx_graphsurgeon as gs

from graphopt.graph import GraphView
from graphopt.model import Model, load
from graphopt.report import measure
from graphopt.report.figures import names
from graphopt.report.report import SCHEMA

_NODES_NAMED = 3


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: str, as_json: bool) -> None:
    """Show what MODEL holds: inputs, outputs, operators, parameters, size, multiply-accumulates."""
    facts = describe(load(model))
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    click.echo(f"{model}: IR {facts['ir_version']}, opset {facts['opset']}, from {facts['producer'] or 'unknown'}")
    for side in ("inputs", "outputs"):
        for tensor in facts[side]:
            click.echo(f"  {side[:-1]} {tensor['name']}: {tensor['dtype']} {_shape_text(tensor['shape'])}")
    macs = "unknown" if facts["macs"] is None else f"{facts['macs']:,}"
    click.echo(f"  {facts['nodes']} nodes, {facts['parameters']:,} parameters, {facts['bytes']:,} bytes, {macs} MACs")
    if facts["uncounted"]:
        click.echo(f"  MACs are not known of {names(facts['uncounted'], _NODES_NAMED)}")
    click.echo("  " + ", ".join(f"{op} {count}" for op, count in facts["ops"].items()))
    for repair in facts["repairs"]:
        click.echo(f"  repaired: {repair}")


def describe(model: Model) -> dict[str, Any]:
    """Return what ``inspect`` shows."""
    view = GraphView(model)
    return {
        "schema": SCHEMA,
        "ir_version": model.header.ir_version,
        "opset": model.opset,
        "producer": f"{model.header.producer_name} {model.header.producer_version}".strip(),
        "inputs": [_tensor(view, tensor) for tensor in model.graph.inputs],
        "outputs": [_tensor(view, tensor) for tensor in model.graph.outputs],
        **vars(measure(model)),
        "repairs": list(model.repairs),
    }


def _tensor(view: GraphView, tensor: gs.Tensor) -> dict[str, Any]:
    shape = view.shape(tensor)
    dtype = getattr(tensor.dtype, "__name__", None) or str(tensor.dtype)
    return {"name": tensor.name, "dtype": dtype, "shape": None if shape is None else list(shape)}


def _shape_text(shape: list[Any] | None) -> str:
    return "of unknown rank" if shape is None else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
