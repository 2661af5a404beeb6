"""Gives the weight-free architectures in ``architectures/`` deterministic weights.

Each float weight larger than 4096 elements was blanked; its external_data entries hold the mean and spread it had.
The weight is drawn again from a generator seeded by the tensor's name, so every run gives the same model.

    python tests/zoo/rehydrate.py OUT_DIR [NAME ...]        # no NAME: all of them (about 1 GB)
"""

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

ARCHITECTURES = Path(__file__).parent / "architectures"


def names() -> list[str]:
    """Return the names of all architectures."""
    return sorted(path.stem for path in ARCHITECTURES.glob("*.onnx"))


def rehydrate(name: str) -> onnx.ModelProto:
    """Return an architecture with its blanked weights drawn again (float32, normal, the recorded mean and spread)."""
    model = onnx.load(ARCHITECTURES / f"{name}.onnx", load_external_data=False)
    for tensor in stored_tensors(model.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") != "seeded":
            continue
        rng = np.random.default_rng(zlib.crc32((name + tensor.name).encode()))
        values = rng.standard_normal(tuple(tensor.dims), dtype=np.float32)
        values = values * np.float32(entries["std"]) + np.float32(entries["mean"])
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = values.tobytes()
    return model


def stored_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that the graph and its subgraphs store."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from stored_tensors(attribute.g)


def main() -> None:
    """Write the architectures that the command line names."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or names():
        onnx.save(rehydrate(name), out / f"{name}.onnx")
        print(out / f"{name}.onnx")


if __name__ == "__main__":
    main()
