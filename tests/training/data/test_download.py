from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.data.download import DataError, Source, fetch, git_blob

CONTENT = b"the same text as ever\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        promised = len(CONTENT) + (100 if self.path == "/short" else 0)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_good_file_arrives_and_is_not_fetched_again(address: str, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "file"
    assert fetch(Source(url=f"{address}/good", sha256=SHA256), path).read_bytes() == CONTENT
    assert fetch(Source(url=f"{address}/absent", sha256=SHA256), path) == path
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_git_blob_id_proves_a_file_as_well(address: str, tmp_path: Path) -> None:
    path = fetch(Source(url=f"{address}/good", git_blob=git_blob(CONTENT)), tmp_path / "file")
    assert path.read_bytes() == CONTENT


def test_the_git_blob_id_is_gits_own(tmp_path: Path) -> None:
    result = subprocess.run(
        ["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True
    )
    assert git_blob(CONTENT) == result.stdout.decode().strip()


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("/short", {"sha256": SHA256}, "IncompleteRead"),
        ("/good", {"sha256": "0" * 64}, f"digest is {SHA256}, expected 0000"),
        ("/good", {"git_blob": "0" * 40}, "expected 0000"),
        ("/absent", {"sha256": SHA256}, "404"),
    ],
)
def test_anything_else_is_an_error_that_leaves_no_file(
    address: str, tmp_path: Path, path: str, source: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch(Source(url=address + path, **source), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_spoiled_copy_in_the_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match=f"{path}.*expected {SHA256}"):
        fetch(Source(url="http://127.0.0.1:9/unused", sha256=SHA256), path)


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="refused"):
        fetch(Source(url="http://127.0.0.1:9/file", sha256=SHA256), tmp_path / "file")
