"""The ways vectors are kept, and which of them suits how many vectors on what hardware."""

from __future__ import annotations

from typing import Final

from valuegraph.faiss_gpu import gpu_available, has_cagra

__all__ = ["TIERS", "TRAIN_FROM", "check_tier", "device_of", "tier_for"]

TIERS: Final = {
    "flat": "exact, single precision",
    "flat_fp16": "exact up to rounding to half precision: half the memory",
    "ivf_fp16": "inverted file, half precision: only the lists nearest to a query are read",
    "ivf_sq8": "inverted file, one byte a component",
    "ivf_pq": "inverted file, one byte for every four components",
    "cagra": "flat_fp16, read on a GPU through a graph; only where it is named, never by auto",
}
# Vectors below which a tier is kept flat, in half precision.
TRAIN_FROM: Final = {"ivf_fp16": 2_000, "ivf_sq8": 2_000, "ivf_pq": 10_000}

# Up to how many vectors a tier is the right one. Exact search on a GPU is cheap for longer; from where on a
# graph beats it has not been measured, so none of them is cagra.
_CPU_LIMITS: Final = ((50_000, "flat"), (5_000_000, "ivf_fp16"), (50_000_000, "ivf_sq8"))
_GPU_LIMITS: Final = ((200_000, "flat"), (5_000_000, "flat_fp16"), (50_000_000, "ivf_fp16"))


def tier_for(size: int, device: str = "cpu") -> str:
    """The tier that suits an index of `size` vectors on "cpu" or "cuda"."""
    limits = _GPU_LIMITS if device == "cuda" else _CPU_LIMITS
    beyond = "ivf_sq8" if device == "cuda" else "ivf_pq"
    return next((tier for limit, tier in limits if size <= limit), beyond)


def check_tier(tier: str, device: str = "auto") -> None:
    """Raises ValueError for an unknown tier, and for cagra on "cuda" where FAISS was built without it."""
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    if tier == "cagra" and device == "cuda" and not has_cagra():
        raise ValueError(
            "tier cagra on cuda needs FAISS built with cuVS: pip uninstall faiss-gpu, then pip install "
            "faiss-gpu-cuvs; both are called faiss, so only one of them can be there"
        )


def device_of(device: str) -> str:
    """The one asked for; for "auto" the GPU where FAISS sees one. Raises ValueError for what there is not."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cpu":
        return device
    if gpu_available():
        return "cuda"
    if device == "cuda":
        raise ValueError("device is cuda, but FAISS sees no GPU")
    return "cpu"
