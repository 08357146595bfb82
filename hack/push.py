"""Pushes an image archive of hack/image.py to a registry: push.py ARCHIVE PREFIX/NAME:TAG

Prints the image as PREFIX/NAME@sha256:…, which names these bytes and no other.
Logs in as docker and podman do, with what their config.json says of the
registry. A registry on this machine's loopback is spoken to without TLS.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"
HUB = "registry-1.docker.io"


def parse(image):
    """Registry, path and tag of `registry/path/name:tag`; without a registry it is Docker's."""
    name, _, tag = image.rpartition(":")
    first, _, rest = name.partition("/")
    if rest and (re.search("[.:]", first) or first == "localhost"):
        return first, rest, tag
    return "docker.io", name, tag


def login(registry):
    """User and password as the tools of containers keep them."""
    names = [registry] + (["https://index.docker.io/v1/"] if registry == "docker.io" else [])
    folders = [os.environ.get("DOCKER_CONFIG"), pathlib.Path.home() / ".docker"]
    files = [pathlib.Path(folder) / "config.json" for folder in folders if folder]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(pathlib.Path(runtime) / "containers" / "auth.json")
    for file in files:
        if not file.exists():
            continue
        config = json.loads(file.read_text())
        for name in names:
            if helper := config.get("credHelpers", {}).get(name) or (config.get("credsStore") and name in config.get("auths", {}) and config["credsStore"]):
                done = subprocess.run([f"docker-credential-{helper}", "get"], input=name, capture_output=True, text=True)
                if done.returncode == 0:
                    said = json.loads(done.stdout)
                    return f"{said['Username']}:{said['Secret']}"
            if auth := config.get("auths", {}).get(name, {}).get("auth"):
                return base64.b64decode(auth).decode()
    return None


class Registry:
    def __init__(self, registry, path):
        self.path, self.login, self.token = path, login(registry), None
        host = HUB if registry == "docker.io" else registry
        bare = host.rpartition(":")[0] or host
        self.root = f"{'http' if bare in ('localhost', '127.0.0.1', '[::1]') else 'https'}://{host}"

    def ask(self, method, address, body=None, kind="application/octet-stream", good=(), again=True):
        """An answer and its headers; status codes of `good` are answers, too."""
        request = urllib.request.Request(urllib.parse.urljoin(self.root, address), data=body, method=method)
        request.add_header("Content-Type", kind)
        if self.token:
            # Not to where a redirect leads.
            request.add_unredirected_header("Authorization", self.token)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as fault:
            if fault.code == 401 and again:
                self.token = self.authorize(fault.headers.get("WWW-Authenticate", ""))
                return self.ask(method, address, body, kind, good, again=False)
            if fault.code in good:
                return fault.code, fault.headers
            sys.exit(f"push: {method} {request.full_url}: {fault.code} {fault.read(300).decode(errors='replace')}")
        except OSError as fault:
            sys.exit(f"push: {method} {request.full_url}: {fault}")

    def authorize(self, challenge):
        scheme, _, rest = challenge.partition(" ")
        basic = self.login and "Basic " + base64.b64encode(self.login.encode()).decode()
        if scheme.lower() == "basic" and basic:
            return basic
        facts = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or "realm" not in facts:
            sys.exit(f"push: {self.root} wants a login, and none is known: docker login")
        query = urllib.parse.urlencode({"service": facts.get("service", ""), "scope": f"repository:{self.path}:pull,push"})
        request = urllib.request.Request(f"{facts['realm']}?{query}", headers={"Authorization": basic} if basic else {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)
        return f"Bearer {said.get('token') or said['access_token']}"

    def blob(self, content):
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if self.ask("HEAD", f"/v2/{self.path}/blobs/{digest}", good=(404,))[0] == 404:
            _, headers = self.ask("POST", f"/v2/{self.path}/blobs/uploads/", b"")
            place = headers["Location"]
            self.ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", content)
        return {"size": len(content), "digest": digest}


def main():
    archive, image = sys.argv[1:]
    registry, path, tag = parse(image)
    to = Registry(registry, path)
    with tarfile.open(archive) as tar:
        index = json.load(tar.extractfile("manifest.json"))[0]
        config = {"mediaType": CONFIG, **to.blob(tar.extractfile(index["Config"]).read())}
        layers = [{"mediaType": LAYER, **to.blob(tar.extractfile(layer).read())} for layer in index["Layers"]]
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).encode()
    to.ask("PUT", f"/v2/{path}/manifests/{tag}", manifest, MANIFEST)
    print(f"{registry}/{path}@sha256:{hashlib.sha256(manifest).hexdigest()}")


main()
