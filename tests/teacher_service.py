"""Servers for tests/test_teacher_server.py: a real vLLM one, and one that misbehaves as told. Loopback only."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vopd_recipes.recipe import free_port


class VLLMServer:
    """`python -m vllm.entrypoints.openai.api_server` on a CPU; can be killed and started again on its port."""

    def __init__(self, model: Path, log: Path, *flags: str, pooling: bool = False) -> None:
        kind = ["--runner", "pooling", "--convert", "embed", "--pooler-config.task", "token_embed"]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._words = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1",
            "--port", str(self.port), "--enforce-eager", "--dtype", "float32", "--served-model-name", "teacher",
            "--max-model-len", "256", *(kind if pooling else ["--max-logprobs", "20"]), *flags,
        ]  # fmt: skip
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5):
                    return
            except OSError:
                assert self._process is not None and self._process.poll() is None, self._log.read_text()[-3000:]
                assert time.monotonic() < deadline, self._log.read_text()[-3000:]
                time.sleep(0.2)

    def kill(self) -> None:
        """With everything that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


Answer = tuple[int, dict[str, str], object]


class Recorded:
    """Answers each request with what `reply(path, body, number)` gives: status, headers, JSON, or text or bytes."""

    def __init__(self, reply: Callable[[str, dict, int], Answer]) -> None:
        requests: list[tuple[str, dict]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                requests.append((self.path, body))
                status, headers, content = reply(self.path, body, len(requests))
                if status == 0:  # hang up
                    self.connection.close()
                    return
                data = content if isinstance(content, bytes) else str(content).encode()
                if not isinstance(content, bytes | str):
                    data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.requests = requests
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
