"""Packs programs and the libraries they need into an image archive: image.py FOLDER NAME:TAG PROGRAM ...

Prints the archive's path in FOLDER, whose name carries a hash of everything
inside: the same programs give the same file, without work. An image is one
layer with /usr/local/bin, the libraries at their own paths, /tmp, and the
unprivileged user that runs it; there is nothing else in it, not even a shell.
"""

import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

USER = 65532
RECIPE = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()


def libraries(program):
    """The shared libraries and the loader of a program, as the loader itself finds them."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True)
    if done.returncode:
        return set()  # linked statically
    words = (word for line in done.stdout.splitlines() for word in line.split())
    return {word for word in words if word.startswith("/")}


def stripped(program):
    """The program without debugging symbols, which would be nine tenths of an image."""
    with tempfile.NamedTemporaryFile() as scratch:
        subprocess.run(["strip", "--strip-debug", "-o", scratch.name, program], check=True)
        return pathlib.Path(scratch.name).read_bytes()


def layer(files):
    """One tar with `files` (path → bytes), the same bytes for the same input."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        def add(name, content=None, mode=0o755):
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

        folders = {str(parent) for path in files for parent in pathlib.PurePath(path).parents} - {"/"}
        for folder in sorted(folders):
            add(folder)
        add("/tmp", mode=0o1777)
        for path, content in sorted(files.items()):
            add(path, content, 0o644 if path.startswith("/etc/") else 0o755)
    return buffer.getvalue()


def pack(target, name, programs):
    files = {
        "/etc/passwd": f"umbel:x:{USER}:{USER}::/tmp:/sbin/nologin\n".encode(),
        "/etc/group": f"umbel:x:{USER}:\n".encode(),
        "/etc/nsswitch.conf": b"hosts: files dns\n",
    }
    for program in programs:
        files[f"/usr/local/bin/{os.path.basename(program)}"] = stripped(program)
        for library in libraries(program):
            files[library] = pathlib.Path(library).read_bytes()
    content = layer(files)
    digest = hashlib.sha256(content).hexdigest()
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/local/bin"],
            "Entrypoint": [f"/usr/local/bin/{os.path.basename(programs[0])}"],
            "WorkingDir": "/tmp",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "hack/image.py"}],
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [f"docker.io/library/{name}"], "Layers": [f"{digest}/layer.tar"]}])
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    with tarfile.open(scratch, "w") as archive:
        for path, data in (("manifest.json", manifest.encode()), (config_name, config), (f"{digest}/layer.tar", content)):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    scratch.replace(target)


def main():
    folder, name, programs = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    missing = [program for program in programs if not os.path.exists(program)]
    if missing:
        sys.exit(f"image {name}: {', '.join(missing)} is not there: build it first")
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(RECIPE.encode())
    for file in [*programs, *sorted({library for program in programs for library in libraries(program)})]:
        with open(file, "rb") as content:
            key.update(f"{os.path.basename(file)} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    stem = name.partition(":")[0]
    target = folder / f"{stem}-{key.hexdigest()[:16]}.tar"
    if not target.exists():
        pack(target, name, programs)
        # What it replaces is of no more use.
        for old in folder.glob(f"{stem}-????????????????.tar"):
            if old != target:
                old.unlink(missing_ok=True)
    print(target)


main()
