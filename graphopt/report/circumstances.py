"""Collects what a run was made with: versions, the CPU and what it can do, data, options, versions of the file."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

from graphopt.model import Model
from graphopt.report.figures import plural
from graphopt.report.report import Circumstances
from graphopt.runtime.feeds import Data

PACKAGES = {
    "graphopt": ("graphopt",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "onnx": ("onnx",),
    "numpy": ("numpy",),
}
"""The distributions that a module of this name may come from."""

FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "neon": "asimd",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
}
"""The CPU features that integer kernels hang on, and their names in Linux's list (64-bit ARM: asimd is Neon)."""

CPU_INFO = Path("/proc/cpuinfo")


def collect(source: Model, optimized: Model, data: str, options: Mapping[str, Any]) -> Circumstances:
    """Collect the circumstances of a run.

    Args:
        source: The original.
        optimized: The result.
        data: What the proof ran on, in words, see ``describe_data``.
        options: The options of the run by name.
    """
    return Circumstances(
        versions=package_versions(),
        cpu=this_cpu(),
        data=data,
        options=dict(options),
        opset=(source.opset, optimized.opset),
        ir=(source.header.ir_version, optimized.header.ir_version),
    )


def describe_data(given: object, feeds: Data | None) -> str:
    """Say in words what a run was proved on and calibrated with.

    Args:
        given: What the user gave: a path, arrays, or None.
        feeds: What was made of it; None if nothing was run.
    """
    if feeds is None:
        return "none: nothing was run"
    samples = plural(feeds.size, "sample")
    if feeds.generated:
        return f"inputs generated from the model's signature, {samples}"
    return f"{given}, {samples}" if isinstance(given, (str, PathLike)) else f"arrays, {samples}"


def package_versions() -> dict[str, str | None]:
    """Return the versions of what decides about the result, and of Python; None for one that is unknown."""
    found = {name: _version(distributions) for name, distributions in PACKAGES.items()}
    return {**found, "python": platform.python_version()}


def this_cpu() -> dict[str, Any]:
    """Return the CPU's model and features; None for what this system does not tell."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    cpu = read_cpu_info(text)
    if cpu["model"] is None and platform.system() == "Windows":
        cpu["model"] = platform.processor() or None
    return cpu


def read_cpu_info(text: str) -> dict[str, Any]:
    """Read Linux's ``/proc/cpuinfo``; a feature is there if every core has it, None if no core lists its features."""
    model: str | None = None
    flags: set[str] | None = None
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "model name" and value:
            model = model or value
        elif name in ("flags", "Features"):
            flags = set(value.split()) if flags is None else flags & set(value.split())
    return {"model": model, **{name: None if flags is None else flag in flags for name, flag in FEATURES.items()}}


def _version(distributions: tuple[str, ...]) -> str | None:
    """Return the version of the first of these distributions that is installed."""
    for each in distributions:
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None
