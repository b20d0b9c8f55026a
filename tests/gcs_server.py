"""A server with the part of Google Cloud Storage's JSON API that checkpoints need: one bucket, in memory, over HTTP."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class GcsServer:
    """The server.

    `objects` is {name: content}; `environment` has the variables with which gcsfs and tensorstore use this server.
    """

    def __init__(self):
        self.objects, self._generations, self._uploads = {}, {}, {}
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else b""
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                with server._lock:
                    status, headers, answer = server._answer(self, url.path, query, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("localhost", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        url = f"http://localhost:{self._http.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
        }

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request, path, query, body):
        """Return (status, headers, body) for a request; each method below implements a part of the API."""
        if path.startswith("/upload/"):
            return self._upload(request, query, body)
        if path.startswith("/batch/"):
            return self._delete_many(request, body)
        if move := re.fullmatch(r"/storage/v1/b/[^/]+/o/(.+)/moveTo/o/(.+)", path):
            return _json(self._store(unquote(move[2]), self.objects.pop(unquote(move[1]))))
        if one := re.fullmatch(r"(?:/download)?/storage/v1/b/[^/]+/o/(.+)", path):
            return self._object(request, unquote(one[1]), query)
        if re.fullmatch(r"/storage/v1/b/[^/]+/o", path):
            return self._list(query)
        if re.fullmatch(r"/storage/v1/b/[^/]+", path):
            return _json({"kind": "storage#bucket", "name": "bucket"})
        return _json({"error": {"code": 404, "message": path}}, 404)

    def _store(self, name, content):
        self.objects[name] = content
        self._generations[name] = self._generations.get(name, 0) + 1
        return self._describe(name)

    def _describe(self, name):
        return {
            "kind": "storage#object", "bucket": "bucket", "name": name, "size": str(len(self.objects[name])),
            "generation": str(self._generations[name]), "timeCreated": "2026-01-01T00:00:00Z",
            "updated": "2026-01-01T00:00:00Z",
        }  # fmt: skip

    def _upload(self, request, query, body):
        name = query.get("name")
        if query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', request.headers["Content-Type"])[1].encode()
            about, content = (part for part in body.split(b"--" + boundary)[1:3])
            name = name or json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            body = re.sub(rb"\r?\n$", b"", re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1])
        elif query["uploadType"] == "resumable" and "upload_id" not in query:
            location = f"http://{request.headers['Host']}{request.path}&upload_id={name}"
            return 200, {"Location": location}, b"{}"
        elif query["uploadType"] == "resumable":
            body = self._uploads.pop(name, b"") + body
            if re.fullmatch(r"bytes \d+-\d+/\*", request.headers.get("Content-Range", "")):  # more parts will come
                self._uploads[name] = body
                return 308, {"Range": f"bytes=0-{len(body) - 1}"}, b""
        wanted = query.get("ifGenerationMatch")
        current = self._generations[name] if name in self.objects else 0
        if wanted is not None and int(wanted) != current:
            return _json({"error": {"code": 412, "message": "another generation"}}, 412)
        return _json(self._store(name, body))

    def _delete_many(self, request, body):
        boundary = re.search(r'boundary="?([^";]+)', request.headers["Content-Type"])[1]
        answers = []
        for part in body.decode().split("--" + boundary):
            if wanted := re.search(r"DELETE \S+/o/([^?\s]+)", part):
                there = self.objects.pop(unquote(wanted[1]), None) is not None
                answers.append(f"Content-Type: application/http\r\n\r\nHTTP/1.1 {204 if there else 404} -\r\n\r\n")
        text = "".join(f"--part\r\n{answer}\r\n" for answer in answers) + "--part--"
        return 200, {"Content-Type": "multipart/mixed; boundary=part"}, text.encode()

    def _object(self, request, name, query):
        if name not in self.objects:
            return _json({"error": {"code": 404, "message": "No such object"}}, 404)
        content, generation = self.objects[name], self._generations[name]
        if request.command == "DELETE":
            del self.objects[name]
            return 204, {}, b""
        if query.get("alt") != "media":
            return _json(self._describe(name))
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": str(generation)}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, headers, b""
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, headers, content[first : last + 1]
        return 200, headers, content

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for name in sorted(name for name in self.objects if name.startswith(prefix)):
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                items.append(self._describe(name))
        return _json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})


def _json(content, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
