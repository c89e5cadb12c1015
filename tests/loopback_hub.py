"""
A Hugging Face Hub on the loopback interface: tests push, tag and load through the real client, without the network.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path / "home"), check=True)
        assert "config.json" in hub.files("loopback-user/tiny")

`huggingface_hub` reads HF_ENDPOINT when it is imported, hence the subprocess. Routes, headers and error codes follow
huggingface_hub 2.4: repositories, NDJSON commits, basic LFS uploads, branches, tags, trees, ranged downloads. Everybody may
read everything; Xet storage is turned off by `environment`.
"""

import base64
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".npz", ".parquet", ".zip", ".wav", ".flac", ".ogg", ".mp3")
LFS_THRESHOLD_BYTES = 10 * 2**20  # larger files are never inlined in a commit, whatever their name
POINTER_BYTES = 130  # about, of the file that git keeps for an LFS file
COMMIT_DATE = "2026-01-01T00:00:00.000000Z"
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
CLIENT_VARIABLES = re.compile(r"(HF|HUGGING_?FACE|TRANSFORMERS)_.*|(https?|all|no)_proxy", re.IGNORECASE)
#: Licences that the Hub takes.
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class HubError(Exception):
    """An HTTP error; `code` is the X-Error-Code from which the client chooses its exception."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": ascii(message)[1:-1], "X-Error-Code": code, **(headers or {})}


class Request(NamedTuple):
    method: str
    path: str
    status: int


@dataclass(frozen=True)
class StoredFile:
    """A file's content; of an LFS file the etag is its SHA-256, else the SHA-1 that git gives it."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def described(self, oid_name: str, lfs_oid_name: str) -> dict[str, Any]:
        """Return size and checksums, by the names that an endpoint gives them."""
        size = len(self.content)
        lfs = {"lfs": {lfs_oid_name: self.sha256, "size": size, "pointerSize": POINTER_BYTES}}
        return {"size": size, oid_name: self.git_oid, **(lfs if self.is_lfs else {})}


class Commit(NamedTuple):
    """A whole snapshot, so that earlier revisions stay readable."""

    sha: str
    files: Mapping[str, StoredFile]


@dataclass
class Repository:
    """A model, dataset or space (`kind`), owned by the user that `repo_id` starts with."""

    kind: str
    repo_id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    def commit_at(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag or a full sha."""
        for revisions in (self.branches, self.tags, self.commits):
            if revision in revisions:
                return revisions[revision]
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class LoopbackHub:
    """
    The server and its store. `token` belongs to one user; `add_user` makes others.

    Attributes:
        endpoint: base URL, for HF_ENDPOINT.
        requests: every answered request, oldest first.
        messages: those of all commits, oldest first.
        uploads_until_cut: LFS objects to take before connections end, like a lost network; None takes all.
    """

    def __init__(self, user: str = "loopback-user"):
        self.objects: dict[str, StoredFile] = {}  # LFS files by their SHA-256
        self.users: dict[str, str] = {}  # token -> user name
        self.token = self.add_user(user)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.messages: list[str] = []
        self.uploads_until_cut: int | None = None
        self.lock = threading.Lock()
        self._commit_numbers = itertools.count()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_user(self, name: str) -> str:
        """Return the new user's token."""
        token = f"hf_loopback_{name}"
        self.users[token] = name
        return token

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of the owner's client process: no other Hub and proxy settings, caches in `home`."""
        environment = {name: value for name, value in os.environ.items() if not CLIENT_VARIABLES.fullmatch(name)}
        environment.update(HF_ENDPOINT=self.endpoint, HF_HOME=os.path.abspath(home), HF_TOKEN=self.token)
        environment.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        return environment | {"NO_PROXY": "127.0.0.1"}

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Return the content of every file of a revision, by its path."""
        files = self.repositories[kind, repo_id].commit_at(revision).files
        return {path: file.content for path, file in files.items()}

    def commit(self, repository: Repository, branch: str, files: Mapping[str, StoredFile]) -> Commit:
        """Move `branch` to a new commit, whose sha differs from all others."""
        commit = Commit(f"{next(self._commit_numbers):040x}", files)
        repository.commits[commit.sha] = repository.branches[branch] = commit
        return commit


def _front_matter(card: str) -> dict[str, Any]:
    """Return the YAML that opens a model card, empty without any; ValueError where the Hub would refuse it."""
    block = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    data = yaml.safe_load(block[1]) if block else {}
    if not LICENCE.fullmatch(licence := data.get("license", "mit")):
        raise ValueError(f'"license" with value {licence!r} is not valid')
    return data


_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []
API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+(?:/[^/]+)?)"
SITE = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+(?:/[^/]+)?)"


def _route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a handler method; named groups become its arguments, percent-decoded."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # snapshot_download opens several connections at once


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def dispatch(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for route_method, pattern, function in _ROUTES:
                if route_method == method and (match := pattern.fullmatch(self.path)):
                    return function(self, **{k: unquote(v) for k, v in match.groupdict().items() if v is not None})
            raise HubError(404, "NotFound", f"LoopbackHub does not implement {method} {self.path}")
        except HubError as error:
            self.reply({"error": str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.hub.requests.append(Request(self.command, self.path, int(code)))

    def start_reply(self, status: int, headers: Mapping[str, Any]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def reply(self, payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(payload).encode()
        fixed = {"Content-Type": "application/json", "Content-Length": len(body)}
        self.start_reply(status, fixed | dict(headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def user(self) -> str:
        """Return the name of the user whose token this is."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.users:
            raise HubError(401, "Unauthorized", "Invalid username or password.")
        return self.hub.users[token]

    def repository(self, kind: str, repo_id: str, write: bool = False) -> Repository:
        """Return the repository, if it is there, and with `write` the client's own."""
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        if write and self.user() != repository.owner:
            raise HubError(403, "Forbidden", f"{self.user()} has no right to write to {repo_id}")
        return repository

    @_route("POST", "/api/validate-yaml")
    def validate_card(self) -> None:
        try:
            _front_matter(json.loads(self.body)["content"])
        except (ValueError, yaml.YAMLError) as error:
            return self.reply({"errors": [{"message": str(error)}]}, 400)
        self.reply({"warnings": []})

    @_route("POST", "/api/repos/create")
    def create_repository(self) -> None:
        user, request = self.user(), json.loads(self.body)
        kind, owner = request.get("type") or "model", request.get("organization") or user
        repo = Repository(kind, f"{owner}/{request['name']}", private=request.get("visibility") == "private")
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo.repo_id}"
        if owner != user:
            raise HubError(403, "Forbidden", f"{user} has no right to create {repo.repo_id}")
        with self.hub.lock:
            if (kind, repo.repo_id) in self.hub.repositories:
                return self.reply({"error": f"You already created this {kind} repo", "url": url}, 409)
            self.hub.commit(repo, "main", {".gitattributes": StoredFile(GITATTRIBUTES)})
            self.hub.repositories[kind, repo.repo_id] = repo
        self.reply({"url": url, "name": repo.repo_id})

    @_route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
    def describe(self, kind: str, repo_id: str, revision: str = "main") -> None:
        repository = self.repository(kind, repo_id)
        commit = repository.commit_at(revision)
        siblings = [{"rfilename": path, **file.described("blobId", "sha256")} for path, file in commit.files.items()]
        card = _front_matter(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
        from_card = {name: card[name] for name in ("pipeline_tag", "library_name") if name in card}
        info = {"id": repo_id, "author": repository.owner, "sha": commit.sha, "lastModified": COMMIT_DATE}
        access = {"private": repository.private, "gated": False, "disabled": False}
        self.reply({**info, **access, "tags": [*from_card.values()], "siblings": siblings, **from_card})

    @_route("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def list_tree(self, kind: str, repo_id: str, revision: str, folder: str = "") -> None:
        commit = self.repository(kind, repo_id).commit_at(revision)
        prefix = folder.strip("/") + "/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in commit.files.items():
            if path.startswith(prefix):
                parts = path[len(prefix) :].split("/")
                for parent in (prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))):
                    oid = hashlib.sha1(parent.encode()).hexdigest()
                    entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
                entries[path] = {"type": "file", "path": path, **file.described("oid", "oid")}
        if prefix and not entries:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist at revision {revision}")
        is_deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        self.reply([entries[path] for path in sorted(entries) if is_deep or "/" not in path[len(prefix) :]])

    @_route("POST", API + "/(?P<ref>branch|tag)/(?P<name>[^/]+)")
    def create_ref(self, kind: str, repo_id: str, ref: str, name: str) -> None:
        """`name` is that of the new branch, but for a tag the revision to put it on."""
        repository, request = self.repository(kind, repo_id, write=True), json.loads(self.body)
        commit = repository.commit_at(name if ref == "tag" else request.get("startingPoint", "main"))
        name, refs = (request["tag"], repository.tags) if ref == "tag" else (name, repository.branches)
        if name in refs:
            raise HubError(409, "Conflict", f"Reference already exists: {name}")
        refs[name] = commit
        self.reply({})

    @_route("POST", API + "/preupload/(?P<revision>[^/]+)")
    def choose_upload_modes(self, kind: str, repo_id: str, revision: str) -> None:
        current = self.repository(kind, repo_id, write=True).commit_at(revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            binary = file["path"].endswith(LFS_SUFFIXES) or b"\0" in base64.b64decode(file["sample"])
            mode = "lfs" if binary or file["size"] > LFS_THRESHOLD_BYTES else "regular"
            oid = current[file["path"]].etag if file["path"] in current else None
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answers})

    @_route("POST", SITE + r"\.git/info/lfs/objects/batch")
    def offer_lfs_uploads(self, repo_id: str, kind: str = "model") -> None:
        self.repository(kind, repo_id, write=True)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(self.body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.hub.objects:
                wanted["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    @_route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def receive_lfs_object(self, oid: str) -> None:
        """Without a token, like the signed URLs of the real Hub's storage."""
        with self.hub.lock:
            if self.hub.uploads_until_cut == 0:
                self.close_connection = True
                return self.connection.close()
            if self.hub.uploads_until_cut is not None:
                self.hub.uploads_until_cut -= 1
        self.hub.objects[oid] = StoredFile(self.body, is_lfs=True)
        self.reply({})

    @_route("POST", API + "/commit/(?P<revision>[^/]+)")
    def receive_commit(self, kind: str, repo_id: str, revision: str) -> None:
        repository = self.repository(kind, repo_id, write=True)
        operations = [(line["key"], line["value"]) for line in map(json.loads, self.body.splitlines())]
        with self.hub.lock:
            files = dict(repository.branches[revision].files)
            for key, value in operations:
                if key == "file":
                    files[value["path"]] = StoredFile(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                elif key in ("deletedFile", "deletedFolder"):
                    path = value["path"].rstrip("/")
                    files = {name: file for name, file in files.items() if not f"{name}/".startswith(f"{path}/")}
            commit = self.hub.commit(repository, revision, files)
            self.hub.messages.append(dict(operations)["header"].get("summary", ""))
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit.sha}"
        self.reply({"success": True, "commitOid": commit.sha, "commitUrl": url, "pullRequestUrl": None})

    @_route("GET", SITE + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def send_file(self, repo_id: str, revision: str, path: str, kind: str = "model") -> None:
        repository = self.repository(kind, repo_id)
        commit = repository.commit_at(revision)
        headers: dict[str, Any] = {"X-Repo-Commit": commit.sha}
        if (file := commit.files.get(path)) is None:
            raise HubError(404, "EntryNotFound", f"{path} does not exist at revision {revision}", headers)
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        start, stop = 0, len(file.content)
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": stop}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), min(int(wanted[2] or stop) + 1, stop)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(file.content)}"
        self.start_reply(206 if wanted else 200, headers | {"Content-Length": stop - start})
        if self.command != "HEAD":
            self.wfile.write(file.content[start:stop])
