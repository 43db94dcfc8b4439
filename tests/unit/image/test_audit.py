"""The audit against a database of vulnerabilities on this machine: it is green only when it was answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hack.image.audit import CLEAN, FOUND, NOT_AUDITED, code, packages
from hack.sim.processes import free_port

LOCK = "".join(f"{name}==1.0.0 --hash=sha256:{'0' * 64}\n" for name in ("good", "bad"))
KNOWN: dict[str, Any] = {
    "bad": {
        "vulns": [
            {
                "id": "PYSEC-2020-1",
                "summary": "It is bad.",
                "affected": [
                    {
                        "package": {"name": "bad", "ecosystem": "PyPI"},
                        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.0.1"}]}],
                    }
                ],
            }
        ]
    }
}


class Database(BaseHTTPRequestHandler):
    """OSV's API, as far as pip-audit uses it."""

    known: dict[str, Any]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps(self.known.get(asked["package"]["name"], {})).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def database() -> Iterator[type[Database]]:
    class Mine(Database):
        known: dict[str, Any] = {}  # noqa: RUF012
        service: tuple[str, ...] = ()

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        Mine.service = asked_at(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Mine
        server.shutdown()
        thread.join()


def asked_at(port: int) -> tuple[str, ...]:
    return ("--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{port}/v1/query")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "lock.txt").write_text(LOCK)
    return tmp_path / "lock.txt"


def test_a_known_vulnerability_is_found(database: Any, lock: Path) -> None:
    database.known = KNOWN
    found = packages(lock, database.service)
    assert found.code == FOUND
    assert found.lines == ("bad 1.0.0: PYSEC-2020-1, fixed in 1.0.1",)


def test_nothing_known_is_clean(database: Any, lock: Path) -> None:
    found = packages(lock, database.service)
    assert (found.code, found.lines) == (CLEAN, ("2 packages",))


def test_a_database_that_does_not_answer_is_not_clean(lock: Path) -> None:
    found = packages(lock, asked_at(free_port()))
    assert found.code == NOT_AUDITED
    assert found.lines[-1] == "the database of vulnerabilities could not be asked"


def test_a_lock_without_hashes_is_not_clean(database: Any, tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("good==1.0.0\n")
    assert packages(tmp_path / "lock.txt", database.service).code == NOT_AUDITED


def test_the_codes_own_rules_hold() -> None:
    assert code().code == CLEAN
