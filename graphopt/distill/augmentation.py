"""Changes of image batches [N, C, H, W], the same for teacher and student."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Augmentation:
    """Which changes are drawn, each anew for each sample.

    Attributes:
        flip: Mirror left and right with probability one half.
        shift: Move by up to this share of the height and width.
        crop: Cut out and enlarge a window with at least this share of the height and width; 1 for none.
        rotate: Turn by up to this many degrees.
        mix: The share of images that are blended with another one, in a drawn proportion. That keeps no label, but the
            teacher answers for any image (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient").
        paste: The share of images that get a window of another one, of a drawn size (CutMix, Yun et al. 2019); nothing
            is blurred, and again the teacher answers.
    """

    flip: bool = False
    shift: float = 0.0
    crop: float = 1.0
    rotate: float = 0.0
    mix: float = 0.0
    paste: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self._moves or self.joins

    @property
    def joins(self) -> bool:
        """Whether images are put together of several, so that labels do not hold."""
        return bool(self.mix) or bool(self.paste)

    def apply(self, images: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Return changed copies; what comes in from outside repeats the border. Bilinear, of the type of ``images``."""
        if not self.active:
            return images
        count, _, height, width = images.shape
        sign = np.where(rng.random(count) < 0.5, -1.0, 1.0) if self.flip else np.ones(count)
        zoom: NDArray[np.float64] = np.asarray(rng.uniform(self.crop, 1.0, count))
        angle: NDArray[np.float64] = np.reshape(rng.uniform(-self.rotate, self.rotate, count) * np.pi / 180, (-1, 1, 1))
        room = 1 - zoom + self.shift
        dy: NDArray[np.float64] = np.asarray(rng.uniform(-1, 1, count)) * room * height / 2
        dx: NDArray[np.float64] = np.asarray(rng.uniform(-1, 1, count)) * room * width / 2
        if self.shift and self.crop == 1 and not self.rotate:
            dy, dx = np.rint(2 * dy), np.rint(2 * dx)
        y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
        cos, sin = np.cos(angle), np.sin(angle)
        scale = zoom[:, None, None]
        from_y = scale * (cos * y + sin * x) + dy[:, None, None] + (height - 1) / 2
        from_x = sign[:, None, None] * scale * (cos * x - sin * y) + dx[:, None, None] + (width - 1) / 2
        changed = _bilinear(images, from_y, from_x) if self._moves else images
        changed = self._pasted(changed, rng) if self.paste else changed
        return self._mixed(changed, rng) if self.mix else changed

    @property
    def _moves(self) -> bool:
        return self.flip or bool(self.shift) or self.crop < 1 or bool(self.rotate)

    def _pasted(self, images: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Paste windows of others of the batch, each at its own place."""
        count, _, height, width = images.shape
        side = np.where(rng.random(count) < self.paste, np.sqrt(rng.random(count)), 0.0)[:, None]
        inside = []
        for size in (height, width):
            begin = np.rint(rng.random((count, 1)) * (1 - side) * size)
            places = np.arange(size)
            inside.append((places >= begin) & (places < begin + np.rint(side * size)))
        window = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        result: NDArray[Any] = np.where(window, images[rng.permutation(count)], images)
        return result

    def _mixed(self, images: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Blend images with others of the batch."""
        share = np.where(rng.random(len(images)) < self.mix, np.asarray(rng.random(len(images))), 0.0)
        other = images[rng.permutation(len(images))]
        blend = share.reshape(-1, 1, 1, 1)
        result: NDArray[Any] = (images * (1 - blend) + other * blend).astype(images.dtype)
        return result


def is_image(value: NDArray[Any]) -> bool:
    """Whether an input is a batch of images that can be changed."""
    return value.ndim == 4 and value.dtype.kind == "f"


def looks_like_image(value: NDArray[Any]) -> bool:
    """Whether an input is most likely meant as images: grey ones or colours, and of some size."""
    return is_image(value) and value.shape[1] in (1, 3, 4) and min(value.shape[2:]) >= 16


def _bilinear(images: NDArray[Any], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[Any]:
    """Sample images [N, C, H, W] at positions [N, H, W], the border repeated outside."""
    height, width = images.shape[2:]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    fy, fx = (y - top)[:, None], (x - left)[:, None]
    sample = np.arange(len(images))[:, None, None]
    corner = [np.moveaxis(images[sample, :, rows, columns], -1, 1) for rows in (top, down) for columns in (left, right)]
    upper = corner[0] * (1 - fx) + corner[1] * fx
    lower = corner[2] * (1 - fx) + corner[3] * fx
    result: NDArray[Any] = (upper * (1 - fy) + lower * fy).astype(images.dtype)
    return result
