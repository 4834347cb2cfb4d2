"""Starts the workers of a program on this machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import tfalign

TIMEOUT = 240  # s; starting TensorFlow twice on a busy machine takes long


def ports(count):
    """Free ports of the loopback."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def started(program, *arguments, count=2):
    """Processes of `python program arguments`, each a worker; ended with the context."""
    hosts = [f"127.0.0.1:{port}" for port in ports(count)]
    path = os.pathsep.join([str(Path(tfalign.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    processes = []
    try:
        for index in range(count):
            cluster = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(cluster), "PYTHONPATH": path}
            command = [sys.executable, str(program), *map(str, arguments)]
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )  # fmt: skip
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finished(processes):
    """Waits for all to end well; what each said."""
    said = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    for process, text in zip(processes, said):
        assert process.returncode == 0, text[-4000:]
    return said
