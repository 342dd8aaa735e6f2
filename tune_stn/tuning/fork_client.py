"""What Ray starts for a worker where a fork server runs: `python -I -S fork_client.py SOCKET SCRIPT ARGUMENT ...`.

It has the server fork a process that goes on as this one would. If the server is gone, it runs the script itself, as
Ray would have.
"""

import json
import os
import socket
import sys

path, arguments = sys.argv[1], sys.argv[2:]
server = socket.socket(socket.AF_UNIX)
try:
    server.connect(path)
    is_heard = server.recv(1) == b"1"
except OSError:
    is_heard = False
if not is_heard:
    os.execv(sys.executable, [sys.executable, *arguments])
request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
data = json.dumps(request).encode() + b"\n"
sent = socket.send_fds(server, [data], [0, 1, 2])
if sent < len(data):  # else the server may be through with it, and an empty rest be an error
    server.sendall(data[sent:])
