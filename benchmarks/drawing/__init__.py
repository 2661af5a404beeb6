"""Draws random ONNX graphs: ``drawer`` keeps a graph, ``forms`` writes it, the other files hold operators."""
