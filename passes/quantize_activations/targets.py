"""What the integer kernels of each runtime want."""

from dataclasses import dataclass

from graphopt.numerics.quantization import TYPES, Affine

EIGHT_BITS = Affine(TYPES["int8"])
UNSIGNED = Affine(TYPES["uint8"], symmetric=False)


@dataclass(frozen=True)
class Target:
    """What a runtime's integer kernels want; docs/quantization.md has the sources."""

    layers: tuple[str, ...]
    activations: Affine
    bias: bool = True
    loads_openvino: bool = False


TARGETS = {
    "cpu": Target(("Conv", "Gemm", "MatMul"), UNSIGNED),
    "openvino": Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), UNSIGNED, bias=False, loads_openvino=True),
    "tensorrt": Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), EIGHT_BITS, bias=False),
    "generic": Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), UNSIGNED, loads_openvino=True),
}
"""Only TensorRT gets signed activations, as it wants zero points of 0. OpenVINO 2026.4 misreads a Concat of int8
tensors, whatever their scales and zero points, and ONNX Runtime on x86 makes uint8 of int8 anyway."""
