"""A hub of one process that speaks as much of Hugging Face's protocol as publishing and fetching a model need."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

from transfusion.remote import hub as remote

TOKEN = "hf_" + "t" * 30


class Hub:
    """What was uploaded: the files of each model, and of each data set (`datasets/OWNER/NAME`); large ones by LFS."""

    def __init__(self):
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.requests: list[str] = []
        self.address = ""

    def revision(self, name: str) -> str:
        content = json.dumps({k: hashlib.sha256(v).hexdigest() for k, v in sorted(self.models[name].items())})
        return hashlib.sha1(content.encode()).hexdigest()


def _key(kind: str, name: str) -> str:
    return name if kind == "models" else f"{kind}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status: int = 200, headers: dict | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, header in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self) -> None:
        self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        data, path = self.body(), self.path.partition("?")[0]
        self.hub.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            about = json.loads(data)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            self.hub.models.setdefault(name, {})
            self.hub.private |= {name} if about.get("visibility") == "private" or about.get("private") else set()
            self.answer({"url": f"{self.hub.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = json.loads(data)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            self.answer({"files": modes})
        elif found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
                for one in json.loads(data)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self.commit(found[1], data)
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/[^/]+", path):
            name = _key(found[1], found[2])
            wanted = urllib.parse.parse_qs(data.decode()).get("paths") or json.loads(data)["paths"]
            files = self.hub.models[name]
            known = [path for path in wanted if path in files or any(one.startswith(f"{path}/") for one in files)]
            self.answer([self.about(name, path) for path in known])
        else:
            self.missing()

    def commit(self, name: str, data: bytes) -> None:
        for line in data.decode().splitlines():
            action = json.loads(line)
            value = action["value"]
            if action["key"] == "file":
                self.hub.models[name][value["path"]] = base64.b64decode(value["content"])
            elif action["key"] == "lfsFile":
                self.hub.models[name][value["path"]] = self.hub.objects[value["oid"]]
                self.hub.large.add(value["path"])
        oid = self.hub.revision(name)
        self.answer({"commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "hookOutput": ""})

    def do_PUT(self) -> None:
        data = self.body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.answer({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?(.*))?", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = _key(api[1], api[2]) if api else file[1] if file else ""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.hub.models or (name in self.hub.private and not known):
            self.missing()
        elif api and api[3] == "tree":
            self.answer(self.tree(name, urllib.parse.unquote(api[5]), "recursive=true" in self.path.lower()))
        elif api:
            siblings = [{"rfilename": path, "size": len(data)} for path, data in self.hub.models[name].items()]
            self.answer({"id": api[2], "sha": self.hub.revision(name), "siblings": siblings, "tags": []})
        elif file[3] not in self.hub.models[name]:
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            data = self.hub.models[name][file[3]]
            tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.hub.revision(name)}
            self.answer(data, headers=tag)

    def tree(self, name: str, folder: str, recursive: bool) -> list[dict]:
        """The files below a folder, or those directly in it and the folders there."""
        found, inside = {}, f"{folder}/" if folder else ""
        for path in self.hub.models[name]:
            if path.startswith(inside):
                below = inside + path[len(inside) :].split("/")[0]
                found[path if recursive else below] = self.about(name, path if recursive else below)
        return list(found.values())

    do_HEAD = do_GET

    def about(self, name: str, path: str) -> dict:
        if path not in self.hub.models[name]:
            return {"type": "directory", "path": path, "oid": "0" * 40}
        data = self.hub.models[name][path]
        found = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return found | ({"lfs": lfs} if path in self.hub.large else {})


@contextlib.contextmanager
def used_hub(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> Iterator[Hub]:
    """A hub that this process uses in place of huggingface.co, with its copies in a folder."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with fake_hub() as hub:
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        remote._fetched.cache_clear()
        yield hub
    remote._fetched.cache_clear()


@contextlib.contextmanager
def fake_hub() -> Iterator[Hub]:
    """A hub on a port of this machine, for as long as the context lasts."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
