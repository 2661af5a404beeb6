"""Reads rendered lines of text with a text recogniser in float and quantized, and counts those read without a fault.

    python benchmarks/ocr.py MODEL FONT... [--lines 200] [--pass "quantize-weights --dtype int4"]...

The model is one of PaddleOCR's recognisers (input [N, 3, 48, W], output [N, T, classes] for CTC) with its characters in
the metadata entry ``character``; those of ``rapidocr-onnxruntime`` and ``rapidocr`` are such. Lines are English words
and numbers, drawn in the fonts given (.ttf) with noise, blur and changing contrast; a quantizer calibrates on 64 other
lines. Needs Pillow.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import graphopt
from graphopt.model import load, raise_opset, save
from graphopt.runtime.data import Feeds, ListData

HEIGHT, WIDTH = 48, 320
TEXT = """
    the quick brown fox jumps over lazy dog invoice total amount date street number order price paid water light
    garden music paper stone river window market people school summer winter morning evening Monday Friday London
    Paris Berlin Street Road Avenue Bank Hotel Station Museum Street January October Please return within thirty days
    Quantity Weight Height Customer Account Balance Reference Delivery Service Warranty Battery Charger Model Serial
"""
WORDS = TEXT.split()
Line = tuple[str, NDArray[np.float32]]


def lines(fonts: list[str], count: int, seed: int) -> Iterator[Line]:
    """Yield texts and their images as the recogniser takes them: [1, 3, 48, 320], -1 to 1."""
    choose = random.Random(seed)
    noise = np.random.default_rng(seed)
    while count:
        words = [choose.choice(WORDS) if choose.random() < 0.7 else number(choose) for _ in range(choose.randint(1, 2))]
        text = " ".join(words)
        font = ImageFont.truetype(choose.choice(fonts), choose.randint(26, 34))
        left, top, right, bottom = font.getbbox(text)
        if HEIGHT * (right - left) > WIDTH * (bottom - top + 12):  # it would be squeezed
            continue
        count -= 1
        ink, paper = choose.randint(0, 90), choose.randint(165, 255)
        size = int(right - left) + choose.randint(8, 24), int(bottom - top) + choose.randint(8, 18)
        picture = Image.new("L", size, paper)
        place = (size[0] - (right - left)) / 2 - left, (size[1] - (bottom - top)) / 2 - top
        ImageDraw.Draw(picture).text(place, text, ink, font)
        picture = picture.filter(ImageFilter.GaussianBlur(choose.uniform(0.0, 1.2)))
        width = min(WIDTH, round(HEIGHT * size[0] / size[1]))
        grey = np.asarray(picture.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float64)
        grey = np.clip(grey + noise.normal(0.0, choose.uniform(0.0, 12.0), grey.shape), 0, 255)
        line = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
        line[..., :width] = grey / 127.5 - 1.0
        yield text, line


def number(choose: random.Random) -> str:
    """Return a price, a date, a code or the like."""
    digits = [str(choose.randint(0, 9)) for _ in range(8)]
    form = choose.choice(["dd.dd", "dddd", "dd/dd/dd", "ddd-ddd", "$d,ddd", "Add dBd", "Nddddd"])
    return "".join(digits.pop() if each == "d" else each for each in form)


def read(path: Path, drawn: list[Line]) -> tuple[list[str], NDArray[np.float32]]:
    """Return what a recogniser reads in each line, and all of its outputs."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    outputs = [session.run(None, {session.get_inputs()[0].name: image})[0][0] for _, image in drawn]
    texts = []
    for output in outputs:
        best = output.argmax(axis=-1)
        texts.append("".join(characters[c] for c, before in zip(best, [0, *best], strict=False) if c and c != before))
    return texts, np.stack(outputs)


def quantize(source: str, target: Path, command: str, data: ListData) -> None:
    """Fold BatchNormalization and run one pass, given as on the command line, without the checks of the pipeline."""
    name, *rest = command.split()
    options: dict[str, object] = {}
    while rest:
        key = rest.pop(0).removeprefix("--").replace("-", "_")
        if not rest or rest[0].startswith("--"):
            options[key.removeprefix("no_")] = not key.startswith("no_")
        else:
            value = rest.pop(0)
            options[key] = float(value) if value.replace(".", "", 1).isdigit() else value
            options[key] = int(value) if value.isdigit() else options[key]
    passes = [graphopt.create("fold-constants"), graphopt.create("fold-batchnorm"), graphopt.create(name, **options)]
    result = graphopt.optimize(source, passes, data, check=False)
    if not result.ok:
        raise SystemExit("; ".join(result.report.failures))
    save(result.optimized, target)


def quantize_with_onnxruntime(source: str, target: Path, data: ListData) -> None:
    """Preprocess, raise the opset to 13, then static QDQ, per channel, unsigned activations."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(data.feeds)

        def get_next(self) -> Feeds | None:
            return next(self._feeds, None)

    ready = str(target.with_name("ready.onnx"))
    save(raise_opset(load(source), 13), ready)
    quant_pre_process(ready, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main() -> None:
    """Read the command line and show a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("fonts", nargs="+")
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--pass", dest="passes", action="append")
    chosen = parser.parse_args()
    drawn = list(lines(chosen.fonts, chosen.lines, 1))
    feed = load(chosen.model).graph.inputs[0].name
    data = ListData([{feed: image} for _, image in lines(chosen.fonts, 64, 2)])
    wanted, reference = read(Path(chosen.model), drawn)
    print("| | lines right % | as in float % | dB | size |\n|---|---|---|---|---|")

    def show(name: str, path: Path) -> None:
        texts, outputs = read(path, drawn)
        right = 100 * np.mean([text == truth for text, (truth, _) in zip(texts, drawn, strict=True)])
        alike = 100 * np.mean([text == other for text, other in zip(texts, wanted, strict=True)])
        noise = float(np.square(outputs.astype(np.float64) - reference).sum())
        ratio = 10 * np.log10(float(np.square(reference.astype(np.float64)).sum()) / noise) if noise else np.inf
        size = path.stat().st_size / Path(chosen.model).stat().st_size
        print(f"| {name} | {right:.1f} | {alike:.1f} | {ratio:.1f} | {size:.3f} |", flush=True)

    show("float", Path(chosen.model))
    with tempfile.TemporaryDirectory() as folder:
        for command in chosen.passes or ["quantize-weights", "quantize-activations"]:
            target = Path(folder, "quantized.onnx")
            quantize(chosen.model, target, command, data)
            onnx.checker.check_model(str(target))
            show(f"`{command}`", target)
        target = Path(folder, "onnxruntime.onnx")
        quantize_with_onnxruntime(chosen.model, target, data)
        show("onnxruntime static", target)


if __name__ == "__main__":
    main()
