"""Load and save every model of onnx's own tests, and broken ones: what comes back is the same, or is refused.

Usage:
    python benchmarks/round_trips.py corpus
    python benchmarks/round_trips.py fuzz [--count 20000] [--seed 0]
"""

import argparse
import collections
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from graphopt.errors import ModelError
from graphopt.model import from_proto, load, save, to_proto


def backend_models() -> Iterator[tuple[str, bytes]]:
    """Yield the models of onnx's own test cases, and those that its wheel ships."""
    import onnx.backend.test.case.model as models
    import onnx.backend.test.case.node as nodes

    for case in (*nodes.collect_testcases(None), *models.collect_testcases()):
        if case.model is not None:
            yield case.name, case.model.SerializeToString()
    for path in sorted(Path(onnx.__file__).parent.rglob("*.onnx")):
        yield path.name, path.read_bytes()


def corpus() -> None:
    """Round-trip every model of the corpus: untouched, copied, weights read, weights replaced by equal arrays."""
    tally: collections.Counter[str] = collections.Counter()
    for name, data in backend_models():
        model = from_proto(onnx.ModelProto.FromString(data))
        canonical = onnx.ModelProto.FromString(data).SerializeToString()
        tally["models"] += 1
        tally["untouched"] += to_proto(model).SerializeToString() == canonical
        tally["copied"] += to_proto(model.copy()).SerializeToString() == canonical
        for constant in model.constants():
            assert constant.values is not None, name
        tally["weights read"] += to_proto(model).SerializeToString() == canonical
        for constant in model.constants():
            constant.values = np.array(constant.values)
        tally["weights replaced"] += to_proto(model).SerializeToString() == canonical
    for step, count in tally.items():
        print(f"{step:18} {count}")


def mutate(data: bytes, seed: int) -> bytes:
    """Return a model's bytes with a few of them changed, cut out, doubled or put elsewhere."""
    dice = random.Random(seed)
    broken = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4, 16])):
        place = dice.randrange(len(broken) + 1)
        length = min(dice.choice([1, 1, 2, 8, 64, 1024]), len(broken) - place)
        kind = dice.randrange(6)
        if kind == 0:
            broken[place : place + length] = dice.randbytes(length)
        elif kind == 1:
            del broken[place : place + length]
        elif kind == 2:
            broken[place:place] = broken[place : place + length]
        elif kind == 3 and length:
            broken[place] ^= 1 << dice.randrange(8)
        elif kind == 4:
            broken[place:place] = dice.choice(
                [b"\xff" * 9 + b"\x01", b"\x80", b"\x7f", bytes(4), b"\xff\xff\xff\xff\x0f"]
            )
        else:
            del broken[place:]
    return bytes(broken)


def fuzz(count: int, seed: int) -> None:
    """Load ``count`` broken models; anything but a model or a ModelError is a fault, printed with its seed."""
    sources = [data for _, data in backend_models() if len(data) < 20_000][::7]
    tally: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken.onnx"
        for number in range(seed, seed + count):
            path.write_bytes(mutate(sources[number % len(sources)], number))
            start = time.perf_counter()
            try:
                save(load(path), Path(folder) / "again.onnx")
                tally["loaded"] += 1
            except ModelError as error:
                tally["refused"] += 1
                if "\n" in str(error):
                    tally["FAULTS"] += 1
                    print(
                        f"more than one line: python benchmarks/round_trips.py fuzz --count 1 --seed {number}: {error}"
                    )
            except Exception as error:  # any other kind is what this looks for
                tally["FAULTS"] += 1
                print(
                    f"python benchmarks/round_trips.py fuzz --count 1 --seed {number}: {type(error).__name__}: {error}"
                )
            slowest = max(slowest, time.perf_counter() - start)
    print(dict(tally), f"slowest {slowest:.2f} s")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["corpus", "fuzz"])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "corpus":
        corpus()
    else:
        fuzz(options.count, options.seed)


if __name__ == "__main__":
    main()
