"""A local server that answers requests for downloads and commits as the Hugging Face hub does.

A repository is a dict of files. As on the real hub, big files have an address elsewhere, to which requests are
redirected. The name of a dataset begins with `datasets/`, as in the address of its web page.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

BIG = (".safetensors", ".parquet")  # files with these suffixes are big


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


class HubServer:
    """The server and its state; tests set the attributes to choose answers and read them to see requests."""

    def __init__(self):
        self.revisions: dict[str, dict[str, str]] = {}  # id -> branch, tag or commit -> commit
        self.commits: dict[str, dict[str, bytes]] = {}  # commit -> files
        self.gated: set[str] = set()
        self.tokens: dict[str, bool] = {}  # a known token -> whether it may read gated repositories
        self.forbidden: set[str] = set()  # tokens that may list repositories but not read files
        self.requests: list[tuple[str, str]] = []  # (method, file) of the requests that were answered with 200 or 206
        self.ranges: list[str] = []  # the Range headers that came
        self.cut: dict[str, int] = {}  # file -> the next answer with it ends after this many bytes
        self.stall: dict[str, threading.Event] = {}  # file -> its answer stops halfway until the event is set
        self.stalled = threading.Event()
        self.failing = False  # if true, downloads are answered with 503
        self.accounts: dict[str, dict] = {}  # a known token -> the answer of whoami to it
        self.private: set[str] = set()
        self.uploads: list[str] = []  # sha256 of the uploaded big files, in order
        self.large: dict[str, bytes] = {}  # sha256 -> content of the uploaded big files
        self.refused: dict[str, tuple[int, str]] = {}  # end of a path -> (status, reason) of the answer to it
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = f"http://localhost:{self._server.server_port}/elsewhere"  # another name counts as another host
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def push(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit as the newest of a branch and return it."""
        text = repr(sorted((file, hashlib.sha1(content).hexdigest()) for file, content in files.items()))
        commit = hashlib.sha1((name + text).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions.setdefault(name, {}).update({branch: commit, commit: commit})
        return commit

    def account(self, token: str, name: str = "owner", role: str = "write", orgs=(), **more) -> str:
        """Add a token of an account and return it."""
        self.tokens[token] = True
        self.accounts[token] = {
            "name": name, "orgs": [{"name": org} for org in orgs],
            "auth": {"type": "access_token", "accessToken": {"role": role, **more}},
        }  # fmt: skip
        return token

    def files(self, name: str) -> dict[str, bytes]:
        """Return the files of the newest commit."""
        return self.commits[self.revisions[name]["main"]]

    def downloads(self) -> list[str]:
        """Return the files whose content was requested since the last call."""
        asked, self.requests = self.requests, []
        return [file for method, file in asked if method == "GET"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _described(name, content):
    """Return the hub's description of a file: sha256 of big files, which are not in git, and git's hash of others."""
    described = {"rfilename": name, "size": len(content), "blobId": _git_hash(content)}
    if name.endswith(BIG):
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        described |= {"blobId": _git_hash(pointer), "lfs": {"sha256": sha256, "size": len(content),
                                                            "pointerSize": len(pointer)}}  # fmt: skip
    return described


def _in_tree(name, content):
    """Return the description of a file in the form in which the hub lists a folder."""
    described = _described(name, content)
    entry = {"type": "file", "path": name, "size": len(content), "oid": described["blobId"]}
    if lfs := described.get("lfs"):
        entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return entry


def _git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._write()

    def do_PUT(self):
        self._write()

    def _write(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        path = unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        stored = re.fullmatch(r"/elsewhere/(\w{64})", path)
        if stored and stored[1] in self.hub.stall:
            self.hub.stalled.set()
            self.hub.stall[stored[1]].wait(60)
        if refused := next((answer for end, answer in self.hub.refused.items() if path.endswith(end)), None):
            self._send(refused[0], {"X-Error-Message": refused[1]})
        elif stored:  # this address is signed and needs no token
            assert hashlib.sha256(body).hexdigest() == stored[1]
            self.hub.large[stored[1]] = body
            self.hub.uploads.append(stored[1])
            self._send(200)
        elif token not in self.hub.accounts:
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/validate-yaml":
            bad = re.search(rb"^license: nonsense$", json.loads(body)["content"].encode(), re.MULTILINE)
            errors = [{"message": '"license" must be one of [apache-2.0, ...]'}] if bad else []
            self._send_json({"errors": errors, "warnings": []}, 400 if bad else 200)
        elif path == "/api/repos/create":
            self._create(json.loads(body), self.hub.accounts[token])
        elif asked := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._send_json({"transfer": "basic", "objects": [self._upload(it) for it in json.loads(body)["objects"]]})
        elif asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload/main|commit/main|settings)", path):
            if asked[1] not in self.hub.revisions:
                self._send(404, {"X-Error-Code": "RepoNotFound"})
            elif asked[2] == "settings":
                self.hub.private.discard(asked[1])
                assert json.loads(body) == {"visibility": "public"}
                self._send_json({})
            elif asked[2] == "commit/main":
                self._commit(asked[1], [json.loads(line) for line in body.splitlines()])
            else:
                self._send_json({"files": [self._mode(asked[1], it["path"]) for it in json.loads(body)["files"]]})
        else:
            self._send(404)

    def _chunk(self):
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _create(self, asked, account):
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in (account["name"], *(org["name"] for org in account["orgs"])):
            return self._send(403, {"X-Error-Message": "You don't have the rights to create a model under this name"})
        there = name in self.hub.revisions
        if not there:
            self.hub.push(name, {".gitattributes": b""})
            if asked["visibility"] == "private":
                self.hub.private.add(name)
        return self._send_json({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def _mode(self, name, file):
        """Return how a file must be uploaded, and the hash of the file of this name that the hub already has."""
        described = _in_tree(file, self.hub.files(name).get(file, b""))
        oid = described.get("lfs", described)["oid"] if file in self.hub.files(name) else None
        mode = "lfs" if file.endswith(BIG) else "regular"
        return {"path": file, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _upload(self, described):
        href = f"{self.hub.url}/elsewhere/{described['oid']}"
        action = {} if described["oid"] in self.hub.large else {"actions": {"upload": {"href": href}}}
        return {**described, **action}

    def _commit(self, name, lines):
        files = dict(self.hub.files(name))
        header, *operations = [(line["key"], line["value"]) for line in lines]
        if header[1].get("parentCommit") != self.hub.revisions[name]["main"]:
            return self._send(412, {"X-Error-Message": "The branch has moved on"})
        for key, value in operations:
            if key == "deletedFile":
                del files[value["path"]]
            else:
                content = self.hub.large[value["oid"]] if key == "lfsFile" else base64.b64decode(value["content"])
                files[value["path"]] = content
        commit = self.hub.push(name, files)
        return self._send_json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _send_json(self, content, status=200):
        self._send(status, content=json.dumps(content).encode())

    def _answer(self):
        path = unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.failing:
            self._send(503)
        elif token and token not in self.hub.tokens:
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/whoami-v2":
            self._send_json(self.hub.accounts[token])
        elif stored := re.fullmatch(r"/elsewhere/(\w+)/(.+)", path):
            self._send_file(stored[2], self.hub.commits[stored[1]][stored[2]])
        elif asked := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._repository(
                ("datasets/" if asked[1] == "datasets" else "") + asked[2], asked[3] or "main", None, token
            )
        elif asked := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._repository(
                ("datasets/" if asked[1] == "datasets" else "") + asked[2], asked[3], None, token, tree=True
            )
        elif asked := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._repository(asked[1], asked[2], asked[3], token)
        else:
            self._send(404)

    def _repository(self, name, revision, file, token, tree=False):
        if name not in self.hub.revisions:
            return self._send(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        if revision not in self.hub.revisions[name]:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        commit = self.hub.revisions[name][revision]
        files = self.hub.commits[commit]
        if tree:
            return self._send(200, content=json.dumps([_in_tree(*item) for item in files.items()]).encode())
        if file is None:
            siblings = [_described(path, content) for path, content in files.items()]
            described = {"id": name, "sha": commit, "siblings": siblings, "private": name in self.hub.private}
            return self._send_json(described)
        if name in self.hub.gated and not self.hub.tokens.get(token):
            return self._send(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        if token in self.hub.forbidden:
            return self._send(403, {"X-Error-Message": "Enable access to gated repositories"})
        if file not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        described = _described(file, files[file])
        etag = described["lfs"]["sha256"] if "lfs" in described else described["blobId"]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not file.endswith(BIG):
            return self._send_file(file, files[file], headers)
        headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(files[file]))}
        return self._send(302, headers | {"Location": f"{self.hub.elsewhere}/{commit}/{file}"})

    def _send_file(self, file, content, headers=None):
        self.hub.requests.append((self.command, file))
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            self.hub.ranges.append(asked[0])
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._send(206 if start else 200, (headers or {}) | span, content[start:], file)

    def _send(self, status, headers=None, content=b"", file=""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if file in self.hub.stall:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.stall[file].wait(60)
            self.close_connection = True
        elif file in self.hub.cut:
            self.wfile.write(content[: self.hub.cut.pop(file)])
            self.close_connection = True
        else:
            self.wfile.write(content)
