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

    def affine(self, opset: int) -> Affine:
        """Return the form of activations.

        On x86, ONNX Runtime 1.32 makes uint8 of int8, and from opset 21 on a QuantizeLinear that it has moved past a
        Reshape or Transpose does not load then. So there int8 with a zero point of its own is written as uint8.
        """
        return UNSIGNED if opset >= 21 and not self.activations.symmetric else self.activations


TARGETS = {
    "cpu": Target(("Conv", "Gemm", "MatMul"), UNSIGNED),
    "openvino": Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), UNSIGNED, bias=False),
    "tensorrt": Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), EIGHT_BITS, bias=False),
    "generic": Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), Affine(TYPES["int8"], symmetric=False)),
}
