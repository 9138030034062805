"""Sentence-embedding models, run so that every bit of a row depends on its text alone.

Floating-point sums depend on the shape of the matrices they run over, so padding a text to its longest
companion, or multiplying it in a batch of another size, changes the last bits of its embedding. Measured with
MiniLM on a CPU: in padded batches of 64 three texts in four differ from the same text alone; with two threads
inside one multiplication one in eight differs from one thread. Hence

* on a CPU a text is a batch of its own, on one thread, and several texts run beside each other. Small models
  lose nothing by it: there is no padding, and no thread waits for another inside a multiplication;
* on a GPU every batch has one of a few fixed shapes: `batch_size` rows, its width a multiple of `WIDTH_STEP`.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from valuegraph.model_weights import fingerprint
from valuegraph.records import replacing

WIDTH_STEP = 32

Backend = str
BACKENDS: tuple[Backend, ...] = ("torch", "onnx", "int8")
"""`torch`: float32 (half precision on a GPU). `onnx`: float32 through onnxruntime, CPU: twice as fast, the
same numbers to within .0000002. `int8`: two linear layers in three in 8 bits, CPU: a fifth faster still for
each text, at a cosine error of .0001; scores move by up to .01, and no column of quality lost more than .004
in three environments (one seed)."""

RECIPES = {"torch": "torch", "onnx": "onnx", "int8": "int8-by-64"}
"""How each backend comes to its bits, for the names of files that hold them: another recipe, another name."""

# The module of a value projection, as BERT and its kin, DistilBERT, MPNet and others name it.
_VALUES = re.compile(r"\.(value|v|v_lin|v_proj)'")


class TextModel:
    """A loaded model: texts in, unit rows out, every bit decided by the text, the weights and the machine.

    Loading takes seconds (it imports torch and sentence-transformers). One call of `embed` at a time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        batch_size: int = 64,
        max_tokens: int = 128,
        backend: Backend = "torch",
        exports: Path | None = None,
    ) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.device = torch.device(resolve_device(device, backend))
        self.batch_size = batch_size
        with _quiet_loading():
            self._model: Any = SentenceTransformer(
                str(folder), device=str(self.device), local_files_only=True
            ).eval()
        # Models that average word vectors have neither a window nor padding.
        self._windowed = hasattr(self._model[0], "auto_model")
        if self._windowed:
            self._model.max_seq_length = min(max_tokens, self._model.max_seq_length or max_tokens)
        else:
            self.device = torch.device("cpu")  # a table look-up is not worth the way to a GPU
            self._model.to(self.device)
        if self.device.type == "cuda":
            self._model.half()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_of = (0, 0)  # process, threads
        self._preprocess = getattr(self._model, "preprocess", None) or self._model.tokenize
        self._forward: Callable[[Mapping[str, Any]], np.ndarray] = self._run_torch
        if backend != "torch":
            if not self._windowed:
                raise ValueError(f"backend={backend!r} is for transformers; this model averages word vectors")
            self._session = onnx_session(self._model, folder, backend, exports)
            self._forward = self._run_onnx
        self.dim = int(self.embed(["width"])[0].shape[1])

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, bool]:
        """Unit rows (n, dim) float32 of n texts, and whether a text filled the window of `max_tokens`."""
        if self._windowed and self.device.type != "cpu":
            return self.embed_in_fixed_shapes(texts)
        return self.embed_one_by_one(texts)

    def embed_one_by_one(self, texts: Sequence[str]) -> tuple[np.ndarray, bool]:
        """A text a pass and a pass a thread, as many threads as torch was given."""
        import torch

        threads = torch.get_num_threads()
        full = False

        def features() -> Iterator[Mapping[str, Any]]:
            # Here and not in the workers: tokenizers must not be shared by threads.
            nonlocal full
            for text in texts:
                tokens = self._preprocess([text])
                full |= self._windowed and tokens["input_ids"].shape[1] >= self._model.max_seq_length
                yield tokens

        if threads == 1:
            return np.concatenate([self._forward(tokens) for tokens in features()]), full
        try:
            return np.concatenate(list(self._workers(threads).map(self._forward, features()))), full
        finally:
            # The workers' setting is their own, but it is also what threads born later would start from.
            torch.set_num_threads(threads)

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        """Threads that compute alone, kept between calls; a forked child starts its own.

        A thread that is just ending may hold locks, which a fork at that moment would copy locked.
        """
        import torch

        if self._pool is None or self._pool_of != (os.getpid(), threads):
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
            self._pool_of = (os.getpid(), threads)
        return self._pool

    def embed_in_fixed_shapes(self, texts: Sequence[str]) -> tuple[np.ndarray, bool]:
        """Batches of `batch_size` rows, the last one filled up, as wide as a text's own length demands."""
        import torch

        tokenizer, limit = self._model.tokenizer, self._model.max_seq_length
        tokens = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        by_width: dict[int, list[int]] = {}
        for i, ids in enumerate(tokens):
            by_width.setdefault(min(-(-len(ids) // WIDTH_STEP) * WIDTH_STEP, limit), []).append(i)
        rows: list[np.ndarray] = [np.empty(0)] * len(tokens)
        for width, members in by_width.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                ids = np.full((self.batch_size, width), tokenizer.pad_token_id or 0)
                mask = np.zeros((self.batch_size, width), np.int64)
                mask[len(batch) :, 0] = 1  # a row that attends to nothing would be NaN
                for row, i in enumerate(batch):
                    ids[row, : len(tokens[i])] = tokens[i]
                    mask[row, : len(tokens[i])] = 1
                embedded = self._run_torch(
                    {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
                )
                for row, i in enumerate(batch):
                    rows[i] = embedded[row]
        return np.stack(rows), any(len(ids) >= limit for ids in tokens)

    def _run_torch(self, features: Mapping[str, Any]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            moved = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
            rows = self._model(moved)["sentence_embedding"].float()
            return torch.nn.functional.normalize(rows, dim=-1).cpu().numpy()

    def _run_onnx(self, features: Mapping[str, Any]) -> np.ndarray:
        rows = self._session.run(None, {"input_ids": features["input_ids"].numpy()})[0]
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def resolve_device(device: str, backend: Backend = "torch") -> str:
    """`"auto"` is CUDA where there is a device and the backend can use it, and the CPU elsewhere."""
    import torch

    if backend != "torch":
        if device not in ("auto", "cpu"):
            raise ValueError(f"backend={backend!r} runs on the CPU only, not on device={device!r}")
        return "cpu"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def onnx_session(model: Any, folder: Path, backend: Backend, exports: Path | None) -> Any:
    """An onnxruntime session of the whole model for one text a pass, exported once into `exports`.

    Raises `ImportError` naming the extra.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"backend={backend!r} needs onnxruntime: pip install 'valuegraph[onnx]'") from error

    home = exports or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "valuegraph"
    file = home / f"{fingerprint(folder)[:32]}-{model.max_seq_length}-{RECIPES[backend]}.onnx"
    if not file.exists():
        graph = _exported(model)
        if backend == "int8":
            graph = _in_8_bits(graph)
        home.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(graph.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _exported(model: Any) -> Any:
    """The model as an ONNX graph: token ids (1, length) -> sentence embedding (1, dim)."""
    import torch

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
            return self.model(features)["sentence_embedding"]

    length = torch.export.Dim("length", min=2, max=model.max_seq_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program: Any = torch.onnx.export(
            Graph().eval(),
            (torch.full((1, 16), 7),),
            input_names=["input_ids"],
            dynamo=True,
            dynamic_shapes=({1: length},),
            verbose=False,
        )
    return program.model_proto


def _in_8_bits(graph: Any) -> Any:
    """Linear layers in int8, weights and activations scaled by blocks of 64, but for `_sensitive` ones.

    Chosen by 360 texts of training episodes of three environments, MiniLM: mean cosine error .00012, where
    blocks of 128 with no layer kept made .00089, and .0005 by 64. It takes a sixth more time than that, and a
    fifth less than float32. Plain dynamic quantisation (one scale for each row of weights and each matrix of
    activations) makes .006.
    """
    module = "onnxruntime.quantization.matmul_nbits_quantizer"
    logging.getLogger(module).setLevel(logging.WARNING)  # it tells of every node
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        quantizers = importlib.import_module(module)
    finally:  # its import configures everybody's logging
        root.handlers[:] = handlers
        root.setLevel(level)
    quantizer = quantizers.MatMulNBitsQuantizer(
        graph, bits=8, block_size=64, is_symmetric=True, accuracy_level=4, nodes_to_exclude=_sensitive(graph)
    )
    quantizer.process()
    return quantizer.model.model


def _sensitive(graph: Any) -> list[str]:
    """The products that stay in float32: the values of attention, and layers that widen.

    What a value says goes into the sentence as it is; errors of queries and keys are softened by the softmax.
    """
    shapes = {weight.name: tuple(weight.dims) for weight in graph.graph.initializer}
    kept = []
    for node in graph.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in shapes:
            continue
        inputs, outputs = shapes[node.input[1]]
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
        if outputs > inputs or _VALUES.search(scopes):
            kept.append(node.name)
    return kept


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bar for a load of a fraction of a second."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()
