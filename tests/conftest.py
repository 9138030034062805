"""Set before anything heavy is imported: one thread per process, and no model hub."""

import os

# Two OpenMP runtimes (torch's, FAISS's) oversubscribe a small machine; a fixed count makes sums repeatable.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
