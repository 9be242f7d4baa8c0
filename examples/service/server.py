"""A service that counts its visitors, and that anybody can crash. Runs in the sandbox."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

# In a file, so that the count outlives a crash.
COUNT = Path("/workspace/count")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(1)
        if self.path == "/":
            COUNT.write_text(str(int(COUNT.read_text()) + 1))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"visitor {COUNT.read_text()}".encode())


if not COUNT.exists():
    COUNT.write_text("0")
HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
