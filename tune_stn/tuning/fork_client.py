"""What Ray starts for a worker where a fork server runs: `python -I -S fork_client.py SOCKET SCRIPT ARGUMENT ...`.

It has the server fork a process that goes on as this one would. If the server is gone, it runs the script itself, as
Ray would have.
"""

import json
import os
import socket
import sys

path, arguments = sys.argv[1], sys.argv[2:]
request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
data = json.dumps(request).encode() + b"\n"
server = socket.socket(socket.AF_UNIX)
try:
    server.connect(path)
    sent = socket.send_fds(server, [data], [0, 1, 2])
    server.sendall(data[sent:])
    has_forked = server.recv(1) == b"1"
except OSError:
    has_forked = False
if not has_forked:
    os.execv(sys.executable, [sys.executable, *arguments])
