"""ONNX files: read safely, imported exactly, exported, run."""
