"""Networks as they are uploaded, imported and exported; nothing here knows a bound."""

import os

# ONNX Runtime's telemetry starts a thread at import, keeps a data base under $HOME and sends usage
# figures to its maker. It is switched off: uploads are private, and a process that forks must have
# one thread.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
