"""Running models: ONNX Runtime sessions, feeds, activation capture."""
