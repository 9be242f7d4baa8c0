"""Runs cells in one namespace that stays, as a notebook's kernel does. Runs in the sandbox.

A cell is the body of a POST; the answer says in JSON what it wrote, the value of its last expression, and where it failed.
"""

import ast
import contextlib
import io
import json
import signal
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

PORT = 8888
namespace = {"__name__": "__main__"}


def run(code: str) -> object:
    """Executes a cell; the value of its last statement if that is an expression."""
    statements = ast.parse(code).body
    last = statements.pop() if statements and isinstance(statements[-1], ast.Expr) else None
    exec(compile(ast.Module(statements, []), "<cell>", "exec"), namespace)
    if last is not None:
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)


def answer(code: str) -> dict:
    output, result, failed = io.StringIO(), None, None
    # An interrupt ends the cell. At any other time it is too late, and must not end the kernel.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            value = run(code)
            result = None if value is None else repr(value)
    except BaseException as error:  # also what an interrupt and `exit()` raise
        lines = traceback.format_exception(error)
        failed = "".join(line for line in lines if __file__ not in line)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return {"output": output.getvalue(), "result": result, "traceback": failed}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        code = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body = json.dumps(answer(code)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGINT, signal.SIG_IGN)
server = HTTPServer(("127.0.0.1", PORT), Handler)
print("ready", flush=True)
server.serve_forever()
