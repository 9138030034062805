"""Folders in the Hub's conventions; a push and a fetch by the real client, to a small hub of our own."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from valuegraph import RewardModel, hub
from valuegraph.persistence import ModelFolderError, verify_folder


@pytest.fixture
def folder(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def test_a_copy_scores_the_same_bit_for_bit(small_model, folder, heldout_episodes):
    copy = RewardModel.from_pretrained(folder, encoder=small_model.encoder)
    some = heldout_episodes[:8]
    assert np.array_equal(copy.score(some).total, small_model.score(some).total)
    assert verify_folder(folder) == []


def test_neither_side_is_bound_to_the_folder(small_model, folder, heldout_episodes):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    copy = RewardModel.from_pretrained(str(folder), encoder=small_model.encoder)
    report = copy.update(heldout_episodes[:2])
    assert not report.durable
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    # control: a model that was loaded is bound
    with RewardModel.load(folder, encoder=small_model.encoder) as bound:
        assert bound.update(heldout_episodes[:2]).durable


def test_saving_over_the_folder_a_model_is_bound_to_keeps_it_bound(small_model, folder, heldout_episodes):
    with RewardModel.load(folder, encoder=small_model.encoder) as model:
        model.update(heldout_episodes[:1])
        model.save_pretrained(folder)
        assert model.update(heldout_episodes[1:2]).durable
        expected = model.summary()["episodes"]
    assert RewardModel.load(folder, encoder=small_model.encoder).summary()["episodes"] == expected


def test_the_card_says_what_it_is(small_model, folder):
    import yaml
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "valuegraph"
    assert "reward-model" in card.data.tags
    text = card.text
    assert "# rm\n" in text
    for key, value in small_model.summary().items():
        assert f"| {key} | {value} |" in text
    settings = text.partition("```json\n")[2].partition("```")[0]
    assert json.loads(settings) == small_model.config.to_dict()
    assert yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1])["pipeline_tag"]


def test_an_edited_card_stays(small_model, folder):
    (folder / "README.md").write_text("mine", "utf-8")
    small_model.save_pretrained(folder)
    assert (folder / "README.md").read_text("utf-8") == "mine"


@pytest.mark.parametrize("name", ["./no/such/folder", "../runs", "~/runs", "/runs", Path("nowhere")])
def test_what_is_neither_folder_nor_name(name):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        RewardModel.from_pretrained(name)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelFolderError, match="manifest"):
        RewardModel.from_pretrained(tmp_path)


def test_offline_a_name_asks_for_nothing(tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(LocalEntryNotFoundError):
        RewardModel.from_pretrained("nobody/nothing", cache_dir=tmp_path)


# ------------------------------------------------------------------ over the wire


class TinyHub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as a push and a fetch need; every file travels inside the commit."""

    repositories: dict
    log: list

    def log_message(self, *_):
        pass

    def reply(self, body=b"", status=200, headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.log.append(("POST", path))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.reply({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.reply({"files": modes})
        elif "/commit/" in path:
            files = self.repositories["/".join(path.split("/")[3:5])]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            sha = "a" * 40
            self.reply(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/rm0/commit/{sha}",
                    "commitOid": sha,
                    "success": True,
                }
            )
        else:
            self.reply(status=404)

    def do_GET(self):
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        self.log.append((self.command, path))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.repositories.get(name)
        if files is None:
            self.reply(status=404, headers={"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api" and "tree" in parts:
            self.reply(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                    for file, data in files.items()
                ]
            )
        elif parts[0] == "api":
            siblings = [{"rfilename": file} for file in files]
            self.reply({"id": name, "sha": "a" * 40, "siblings": siblings, "private": False, "tags": []})
        elif parts[-1] not in files:
            self.reply(status=404, headers={"X-Error-Code": "EntryNotFound"})
        else:
            data = files[parts[-1]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.reply(data, headers={"ETag": etag, "X-Repo-Commit": "a" * 40})

    do_HEAD = do_GET


@contextmanager
def tiny_hub(monkeypatch):
    from huggingface_hub import constants

    TinyHub.repositories, TinyHub.log = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), TinyHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    try:
        yield TinyHub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_push_and_fetch(small_model, heldout_episodes, tmp_path, monkeypatch):
    with tiny_hub(monkeypatch) as host:
        url = small_model.push_to_hub("me/rm0", token="hf_test", private=True)
        assert url.endswith("a" * 40)
        pushed = host.repositories["me/rm0"]
        assert {"README.md", "config.json", "manifest.json", "updates.wal", "index.faiss"} <= set(pushed)
        assert b"# rm0\n" in pushed["README.md"]
        assert not any(name.startswith(".") or name == "writer.lock" for name in pushed)

        pushed["README.md"] = b"edited on the Hub"
        small_model.push_to_hub("me/rm0", token="hf_test")
        assert pushed["README.md"] == b"edited on the Hub"

        options = {"cache_dir": tmp_path / "cache", "token": "hf_test", "encoder": small_model.encoder}
        copy = RewardModel.from_pretrained("me/rm0", **options)
        some = heldout_episodes[:4]
        assert np.array_equal(copy.score(some).total, small_model.score(some).total)
        assert not copy.update(some).durable
        asked = len(host.log)
        again = RewardModel.from_pretrained("me/rm0", **options, local_files_only=True)
        assert len(host.log) == asked  # from the cache
        assert again.summary() == small_model.summary()


def test_a_repository_that_does_not_exist(tmp_path, monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    with tiny_hub(monkeypatch), pytest.raises(RepositoryNotFoundError):
        hub.fetch("me/nothing", cache_dir=tmp_path, token="hf_test")


def test_an_encoder_that_only_this_machine_has_is_not_pushed():
    with pytest.raises(ValueError, match="the encoder is the folder /home/me/encoder"):
        hub.push_to_hub("me/rm0", {"config": {"encoder": {"id": "/home/me/encoder"}}}, {})
