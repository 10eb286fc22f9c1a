"""ONNX operators as layers, and the table that names them all."""
