"""Fetch one file into a cache and prove that it is the right one."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec

TIMEOUT_S = 60.0


class DataError(RuntimeError):
    """Data that cannot be had or is not what it should be; the message names the file."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A public file and the digest that proves it.

    Attributes:
        url: Where it is.
        sha256: Digest of the content, or empty if only the git blob id is known.
        git_blob: Name that git gives the content: SHA-1 of the word blob, the length, a zero byte, and the content.
        convert: Makes the content from what is fetched, where that is in another format; the digest is of the result.
    """

    url: str
    sha256: str = ""
    git_blob: str = ""
    convert: Callable[[bytes], bytes] | None = None


def fetch(source: Source, path: Path) -> Path:
    """Download a file unless it is there, and verify it either way.

    Args:
        source: What to fetch.
        path: Where to keep it; appears whole and verified, or not at all.

    Raises:
        DataError: The file cannot be reached, is cut short, or is not the expected one.
    """
    if path.exists():
        _verify(path.read_bytes(), source, str(path))
        return path
    data = _get(source.url)
    if source.convert is not None:
        data = source.convert(data)
    _verify(data, source, source.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
    return path


def git_blob(data: bytes) -> str:
    """The id under which git stores a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            data: bytes = response.read()
            return data
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise DataError(f"{url}: {error!r}; a copy in SEQSERVE_DATA is read instead") from error


def _verify(data: bytes, source: Source, where: str) -> None:
    if source.sha256:
        expected, found = source.sha256, hashlib.sha256(data).hexdigest()
    else:
        expected, found = source.git_blob, git_blob(data)
    if found != expected:
        raise DataError(
            f"{where}: digest is {found}, expected {expected}; delete the file or change the source"
        )
