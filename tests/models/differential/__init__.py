"""Random ONNX graphs over all that is supported, and the question whether the import is right."""
