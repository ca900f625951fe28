"""ONNX files of a compact model, for decoders without PyTorch."""
