"""Networks as they are uploaded, imported and exported; nothing here knows a bound."""

import os

# ONNX Runtime starts a thread when it is imported, keeps a data base under $HOME and sends figures
# about its use to its maker. What is certified here is nobody else's business, and a process that
# forks must have one thread.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
