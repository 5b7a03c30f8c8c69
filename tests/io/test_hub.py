"""Models on the Hub, from a stand-in of its server on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from guided_diffusion.checkpoint import checkpoint_file, load_checkpoint
from guided_diffusion.exported import write_exported
from guided_diffusion.io.hub import fetch_from_hub, is_on_hub
from guided_diffusion.runtime.errors import UserError

COMMIT = "a" * 40
NAMES = ("config.json", "model.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The files of the model clinic/organ on a server, a dict of bytes by name; `hub.asked` lists the requests."""
    from huggingface_hub import constants

    files = type("Files", (dict,), {"asked": []})()
    files.asked = []

    class Server(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            path = self.path.partition("?")[0]
            files.asked.append(path)
            status, headers, body = 404, {"X-Error-Code": "RepoNotFound"}, b""
            place, _, name = path.removeprefix(f"/clinic/organ/resolve/{COMMIT}").rpartition("/")
            if path in (f"/api/models/clinic/organ/revision/{name}" for name in ("main", COMMIT)):
                siblings = [{"rfilename": name} for name in files]
                status, body = 200, json.dumps({"id": "clinic/organ", "sha": COMMIT, "siblings": siblings}).encode()
            elif path.startswith("/api/models/clinic/organ/tree/"):
                sizes = [{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()]
                status, body = 200, json.dumps(sizes).encode()
            elif path.startswith("/api/models/clinic/organ/revision/"):
                headers = {"X-Error-Code": "RevisionNotFound"}
            elif not place and name in files:
                body = files[name]
                status, headers = 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(body)}"'}
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield files
    server.shutdown()
    server.server_close()


def _oid(data):
    return hashlib.sha1(data).hexdigest()


def test_only_the_files_that_are_needed_are_fetched_and_only_once(hub):
    hub.update({"config.json": b"{}", "model.safetensors": b"weights", "my_loader.py": b"raise SystemExit"})
    folder = fetch_from_hub("hf://clinic/organ", NAMES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"config.json": b"{}", NAMES[1]: b"weights"}
    hub.asked.clear()
    assert fetch_from_hub(f"hf://clinic/organ@{COMMIT}", NAMES) == folder
    assert not [path for path in hub.asked if path.endswith(".py") or "resolve" in path]


def test_a_model_loads_from_the_hub_as_from_its_folder(hub, trained, tmp_path):
    checkpoint = load_checkpoint(trained)
    (tmp_path / "shared").mkdir()
    write_exported(tmp_path / "shared", checkpoint, "ema")
    hub.update({path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()})
    assert load_checkpoint("hf://clinic/organ").step == checkpoint.step


def test_a_model_of_another_program_is_told(hub):
    hub.update({"pytorch_model.bin": b"weights"})
    with pytest.raises(UserError, match="hf://clinic/organ@main: has no config.json of a model that this program"):
        checkpoint_file("hf://clinic/organ@main")


@pytest.mark.parametrize(
    "path, why",
    [
        ("hf://clinic/organ@later", "has no such revision; name a branch, a tag or a commit after @"),
        ("hf://clinic/other", "no such model, or a private one; check the name, or run: hf auth login"),
        ("hf://clinic", "write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ("hf://clinic/../organ", "write hf://OWNER/NAME or"),
        ("hf://clinic/organ@../../x", "write hf://OWNER/NAME or"),
        ("hf://clinic/organ/file", "write hf://OWNER/NAME or"),
    ],
)
def test_what_cannot_be_fetched_says_why_in_one_line(hub, path, why):
    with pytest.raises(UserError) as error:
        fetch_from_hub(path, NAMES)
    assert str(error.value).startswith(f"{path}: {why}") and "\n" not in str(error.value)


def test_without_a_network_the_cache_serves_and_its_lack_is_told(hub, monkeypatch):
    from huggingface_hub import constants

    hub.update({"config.json": b"{}", "model.safetensors": b"weights"})
    folder = fetch_from_hub("hf://clinic/organ", NAMES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_from_hub("hf://clinic/organ", NAMES) == folder
    with pytest.raises(UserError, match="hf://clinic/other: .*not in the cache"):
        fetch_from_hub("hf://clinic/other", NAMES)


def test_paths_of_the_hub_are_known():
    assert is_on_hub("hf://a/b") and not is_on_hub("gs://a/b") and not is_on_hub("runs/hf")
