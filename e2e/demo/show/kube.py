"""A small Kubernetes client: GET, watch and logs over one TLS context; everything else is kubectl's."""

import base64
import http.client
import json
import os
import pathlib
import socket
import ssl
import subprocess
import tempfile
import urllib.parse


class Refused(Exception):
    """An answer that is not 2xx."""


def kubectl(config, *arguments, text=None):
    """Runs kubectl and returns what it prints; its complaint becomes the exception."""
    done = subprocess.run([os.environ["KUBECTL"], f"--kubeconfig={config}", *arguments],
                          input=text, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()}")
    return done.stdout


class Client:
    """One API server, by a kubeconfig with inline certificates."""

    def __init__(self, config):
        self.config = config
        view = json.loads(kubectl(config, "config", "view", "--raw", "--minify", "-o", "json"))
        cluster, user = view["clusters"][0]["cluster"], view["users"][0]["user"]
        address = urllib.parse.urlsplit(cluster["server"])
        self.host, self.port = address.hostname, address.port
        self.tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.TemporaryDirectory() as scratch:
            pair = pathlib.Path(scratch, "pair.pem")
            pair.touch(mode=0o600)
            pair.write_bytes(base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"]))
            self.tls.load_cert_chain(pair)

    def connection(self, timeout):
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.tls)

    def open(self, path, timeout):
        connection = self.connection(timeout)
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status >= 300:
            raise Refused(f"GET {path}: {answer.status} {answer.read(300).decode(errors='replace')}")
        return answer

    def get(self, path):
        with self.open(path, 10) as answer:
            return json.load(answer)

    def exists(self, path):
        try:
            return self.get(path)
        except Refused:
            return None

    def items(self, path):
        return self.get(path)["items"]

    def lines(self, path, timeout=60):
        """The lines of a streamed answer, until it ends or nothing comes for `timeout` seconds."""
        with self.open(path, timeout) as answer:
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")


class Proxied(Client):
    """Any kubeconfig, by whatever means it logs in: kubectl does that, behind a socket that is nobody else's."""

    def __init__(self, config, sock):
        self.config, self.socket = config, str(sock)
        self.proxy = subprocess.Popen([os.environ["KUBECTL"], f"--kubeconfig={config}", "proxy", f"--unix-socket={sock}"],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if not self.proxy.stdout.readline():
            raise Refused("kubectl proxy does not start")

    def connection(self, timeout):
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout)
        connection.sock.connect(self.socket)
        return connection

    def close(self):
        self.proxy.terminate()
        self.proxy.wait()
        pathlib.Path(self.socket).unlink(missing_ok=True)
