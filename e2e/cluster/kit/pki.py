"""Certificates, service-account keys and kubeconfigs, made with openssl; everything on P-256 because it is fast."""

import base64
import os
import pathlib

from .process import run

CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]


def openssl(*arguments):
    run("openssl", *map(str, arguments))


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.certificate = self.folder / "ca.crt"
        self.key = self.folder / "ca.key"
        if not self.certificate.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            openssl("req", "-x509", *CURVE, "-keyout", self.key, "-out", self.certificate, "-subj", "/CN=umbel-local-ca",
                    "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")

    def issue(self, name, subject, hosts=()):
        """A certificate for `subject` (and for `hosts`, when it serves); returns the two files."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        names = ",".join(("IP:" if host.replace(".", "").isdigit() else "DNS:") + host for host in hosts)
        extensions = ["-addext", "basicConstraints=critical,CA:FALSE",
                      "-addext", "keyUsage=critical,digitalSignature",
                      "-addext", "extendedKeyUsage=clientAuth,serverAuth"]
        if names:
            extensions += ["-addext", f"subjectAltName={names}"]
        openssl("req", "-x509", *CURVE, "-CA", self.certificate, "-CAkey", self.key, "-keyout", key, "-out", certificate,
                "-subj", subject, *extensions)
        return str(certificate), str(key)

    def kubeconfig(self, path, context, server, certificate, key):
        """Writes a kubeconfig that carries its certificates inside."""
        def inline(file):
            return base64.b64encode(pathlib.Path(file).read_bytes()).decode()

        path = pathlib.Path(path)
        path.touch(mode=0o600)
        path.write_text(f"""apiVersion: v1
kind: Config
clusters:
- name: {context}
  cluster:
    server: {server}
    certificate-authority-data: {inline(self.certificate)}
users:
- name: {context}
  user:
    client-certificate-data: {inline(certificate)}
    client-key-data: {inline(key)}
contexts:
- name: {context}
  context:
    cluster: {context}
    user: {context}
current-context: {context}
""")
        if "SUDO_UID" in os.environ and os.geteuid() == 0:
            os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
        return str(path)


def service_account_key(folder):
    """The key that signs service-account tokens: made once, then kept."""
    key = pathlib.Path(folder) / "service-account.key"
    if not key.exists():
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    return str(key)
