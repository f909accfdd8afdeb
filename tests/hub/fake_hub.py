"""A hub of one process that speaks as much of Hugging Face's protocol as publishing and fetching a model need."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

TOKEN = "hf_" + "t" * 30


class Hub:
    """What was uploaded: for each model its files by name; large ones came by LFS."""

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
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (api or file)[1] if api or file else ""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.hub.models or (name in self.hub.private and not known):
            self.missing()
        elif api and api[2] == "tree":
            self.answer([self.about(name, path) for path in self.hub.models[name]])
        elif api:
            siblings = [{"rfilename": path, "size": len(data)} for path, data in self.hub.models[name].items()]
            self.answer(
                {"id": name, "sha": self.hub.revision(name), "siblings": siblings, "private": False, "tags": []}
            )
        elif file[3] not in self.hub.models[name]:
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            data = self.hub.models[name][file[3]]
            tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.hub.revision(name)}
            self.answer(data, headers=tag)

    do_HEAD = do_GET

    def about(self, name: str, path: str) -> dict:
        data = self.hub.models[name][path]
        found = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return found | ({"lfs": lfs} if path in self.hub.large else {})


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
