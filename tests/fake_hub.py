"""A Hub on loopback, standard library only, that the real huggingface_hub client talks to.

It keeps repositories, commits, branches, tags and blobs in memory, checks what a Hub checks (tokens, hashes, that a
commit's large files were uploaded, that a branch is there), records every byte it is sent, and misbehaves on request.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writerwriterwriter", "hf_readerreaderreader"
LARGE = (".safetensors", ".parquet", ".png")


@dataclass
class Commit:
    """Files by path, what came before, and why."""

    oid: str
    parent: str | None
    files: dict[str, str]  # path → sha256 of a large file, git id of a small one
    title: str


@dataclass
class Repository:
    """One repository of one type."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str], title: str) -> Commit:
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{parent}{sorted(files.items())}{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, files, title)
        self.branches[branch] = oid
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


@dataclass
class Fault:
    """Something that goes wrong with the next `count` requests whose `METHOD path` matches."""

    pattern: str
    count: int
    status: int = 503  # 0: the connection is cut in the middle of the request's body
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # first, nothing happens for so long
    then: Callable[[], None] | None = None  # called when it strikes
    page: bytes = b""  # of a proxy before the Hub, instead of an error in JSON


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class FakeHub:
    """Start with `with FakeHub() as hub:`, then talk to `hub.url`."""

    def __init__(self) -> None:
        self.tokens = {WRITER: ("org", "write"), READER: ("org", "read")}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.received: list[bytes] = []  # every body, and every file out of a commit
        self.requests: list[str] = []  # METHOD path
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, count: int, **fault: Any) -> Fault:
        self.faults.append(Fault(pattern, count, **fault))
        return self.faults[-1]

    def files(self, repo_id: str, revision: str, kind: str = "model") -> dict[str, bytes]:
        """The content of a revision."""
        commit = self.repositories[kind, repo_id].find(revision)
        assert commit is not None
        return {path: self.blobs[oid] for path, oid in commit.files.items()}

    def create(self, kind: str, repo_id: str, private: bool) -> Repository:
        repository = self.repositories[kind, repo_id] = Repository(private)
        repository.commit("main", {".gitattributes": self.store(b"*.safetensors filter=lfs\n")}, "initial commit")
        return repository

    def store(self, content: bytes) -> str:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return oid


class Handler(BaseHTTPRequestHandler):
    """The routes that the client needs."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), url.path
        self.hub.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.fault(f"{self.command} {path}")
        try:
            if fault and self.strike(fault, length):
                return
            self.body = self.rfile.read(length) if length else self.chunks()
            if fault:
                raise Refused(fault.status, "injected")
            self.hub.received.append(self.body)
            self.role()
            with self.hub.lock:
                self.route(path)
        except Refused as refused:
            headers = {
                "X-Error-Code": refused.code,
                "X-Error-Message": refused.message,
                **(fault or Fault("", 0)).headers,
            }
            if fault and fault.page:
                self.send(refused.status, fault.page, {"Content-Type": "text/html"})
            else:
                self.send(refused.status, json.dumps({"error": refused.message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def fault(self, request: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.count and re.search(fault.pattern, request):
                    fault.count -= 1
                    return fault
        return None

    def strike(self, fault: Fault, length: int) -> bool:
        time.sleep(fault.seconds)
        if fault.then:
            fault.then()
        if fault.status:
            return False
        self.rfile.read(length // 2)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client did not wait
                self.wfile.write(content)

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def role(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token][1] if token else None

    def may_write(self, repo_id: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.role() != "write" or self.hub.tokens[token][0] != repo_id.split("/")[0]:
            raise Refused(403, "You don't have the rights to do this")

    def route(self, path: str) -> None:
        for pattern, method in ROUTES:
            command, _, pattern = pattern.partition(" ")
            match = re.fullmatch(pattern, path)
            if match and self.command in command.split("|"):
                method(self, **{name: unquote(value) for name, value in match.groupdict().items() if value})
                return
        raise Refused(404, f"no such route: {self.command} {path}")

    # Account and repositories ---------------------------------------------------------------------------------------

    def whoami(self) -> None:
        if self.role() is None:
            raise Refused(401, "Invalid username or password.")
        self.json({"name": "org", "type": "user", "auth": {"accessToken": {"role": self.role()}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id, kind = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        self.may_write(repo_id)
        if any(name == repo_id for _, name in self.hub.repositories):
            self.send(409, json.dumps({"url": f"{self.hub.url}/{repo_id}"}).encode())
            return
        self.hub.create(kind, repo_id, asked.get("visibility") == "private")
        self.json({"url": f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"})

    def repository(self, kind: str, repo_id: str) -> Repository:
        found = self.hub.repositories.get((kind, repo_id))
        if found is None or (found.private and self.role() is None):
            raise Refused(404 if self.role() else 401, "Repository not found", "RepoNotFound")
        return found

    def commit(self, kind: str, repo_id: str, revision: str) -> Commit:
        found = self.repository(kind, repo_id).find(revision)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def auth_check(self, kind: str, id: str) -> None:
        self.repository(kind, id)
        self.may_write(id)
        self.json({})

    def info(self, kind: str, id: str, revision: str = "main") -> None:
        commit = self.commit(kind, id, revision)
        card = self.hub.blobs[commit.files["README.md"]].decode() if "README.md" in commit.files else ""
        import yaml

        data = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.repository(kind, id).private
        self.json(
            {"id": id, "sha": commit.oid, "private": private, "siblings": siblings, "cardData": data, "tags": []}
        )

    def refs(self, kind: str, id: str) -> None:
        found = self.repository(kind, id)

        def listed(refs: dict[str, str], under: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"{under}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        branches, tags = listed(found.branches, "refs/heads"), listed(found.tags, "refs/tags")
        self.json({"branches": branches, "tags": tags, "converts": []})

    def commits(self, kind: str, id: str, revision: str) -> None:
        commit: Commit | None = self.commit(kind, id, revision)
        listed = []
        while commit:
            date = "2026-11-01T00:00:00.000Z"
            listed.append({"id": commit.oid, "title": commit.title, "message": "", "authors": [], "date": date})
            commit = self.repository(kind, id).commits.get(str(commit.parent))
        self.json(listed)

    def branch(self, kind: str, id: str, revision: str) -> None:
        self.may_write(id)
        repository, asked = self.repository(kind, id), json.loads(self.body or b"{}")
        if revision in repository.branches:
            raise Refused(409, "Reference already exists")
        repository.branches[revision] = self.commit(kind, id, asked.get("startingPoint", "main")).oid
        self.json({})

    def tag(self, kind: str, id: str, revision: str) -> None:
        self.may_write(id)
        repository, name = self.repository(kind, id), json.loads(self.body)["tag"]
        if name in repository.tags:
            raise Refused(409, "Tag already exists")
        repository.tags[name] = self.commit(kind, id, revision).oid
        self.json({})

    # Files ----------------------------------------------------------------------------------------------------------

    def described(self, path: str, oid: str) -> dict[str, Any]:
        size = len(self.hub.blobs[oid])
        if oid not in self.hub.large:
            return {"type": "file", "path": path, "oid": oid, "size": size}
        lfs = {"oid": oid, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path, "oid": hashlib.sha1(oid.encode()).hexdigest(), "size": size, "lfs": lfs}

    def tree(self, kind: str, id: str, revision: str, under: str = "") -> None:
        files, prefix = self.commit(kind, id, revision).files, under + "/" if under else ""
        below = {path: oid for path, oid in files.items() if path.startswith(prefix)}
        if under and not below:
            raise Refused(404, "Entry not found", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() == "false":
            folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in below} - below.keys()
            below = {path: oid for path, oid in below.items() if "/" not in path.removeprefix(prefix)}
        else:
            folders = {path.rsplit("/", 1)[0] for path in below if "/" in path}
        listed = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        self.json([*listed, *(self.described(path, oid) for path, oid in below.items())])

    def paths_info(self, kind: str, id: str, revision: str) -> None:
        is_json = self.body.startswith(b"{")
        asked = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        files = self.commit(kind, id, revision).files
        folders = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
        found = [self.described(path, files[path]) for path in asked if path in files]
        found += [{"type": "directory", "path": path, "oid": "0" * 40} for path in asked if path in folders]
        self.json(found)

    def preupload(self, kind: str, id: str, revision: str) -> None:
        files = self.commit(kind, id, revision).files
        modes = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": files.get(item["path"]),
            }
            for item in json.loads(self.body)["files"]
        ]
        self.json({"files": modes})

    def lfs_batch(self, id: str, prefix: str = "") -> None:
        self.may_write(id)
        objects = []
        for item in json.loads(self.body)["objects"]:
            known = item["oid"] in self.hub.blobs
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
            objects.append({**item, **({} if known else {"actions": upload})})
        self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content is not what it says")
        self.hub.blobs[oid] = self.body
        self.hub.large.add(oid)
        self.json({})

    def make_commit(self, kind: str, id: str, revision: str) -> None:
        self.may_write(id)
        parent, title = self.commit(kind, id, revision), ""
        files = dict(parent.files)
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent.oid):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                content = base64.b64decode(value["content"])
                self.hub.received.append(content)
                files[value["path"]] = self.hub.store(content)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self.repository(kind, id).commit(revision, files, title)
        self.json({"commitUrl": f"{self.hub.url}/{id}/commit/{commit.oid}", "commitOid": commit.oid})

    def resolve(self, id: str, revision: str, path: str, prefix: str = "") -> None:
        commit = self.commit("dataset" if prefix else "model", id, revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        oid = commit.files[path]
        content, headers = self.hub.blobs[oid], {"ETag": f'"{oid}"', "X-Repo-Commit": commit.oid}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.send(206, content[first : last + 1], headers)
        else:
            self.send(200, content, headers)


_REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", lambda handler: handler.json({"errors": [], "warnings": []})),
    (rf"GET {_REPO}", Handler.info),
    (rf"GET {_REPO}/auth-check/write", Handler.auth_check),
    (rf"GET {_REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    (rf"GET {_REPO}/refs", Handler.refs),
    (rf"GET {_REPO}/commits/(?P<revision>[^/]+)", Handler.commits),
    (rf"GET {_REPO}/tree/(?P<revision>[^/]+)(/(?P<under>.+))?", Handler.tree),
    (rf"POST {_REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (rf"POST {_REPO}/branch/(?P<revision>[^/]+)", Handler.branch),
    (rf"POST {_REPO}/tag/(?P<revision>[^/]+)", Handler.tag),
    (rf"POST {_REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (rf"POST {_REPO}/commit/(?P<revision>[^/]+)", Handler.make_commit),
    (r"POST /(?P<prefix>datasets/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    (
        r"GET|HEAD /(?P<prefix>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        Handler.resolve,
    ),
]
