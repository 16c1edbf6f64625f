"""Settings every test shares; set before anything imports Triton."""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in [name for name in os.environ if name.startswith("QUIRE_")]:
    del os.environ[name]
