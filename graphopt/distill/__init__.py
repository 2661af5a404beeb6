"""Training a compressed model end to end: the original teaches it. Gradients come from onnx-ad, an optional extra."""
