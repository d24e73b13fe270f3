"""Builds the image of modal/Dockerfile without Docker: the base by debootstrap, each stage a folder, RUN by chroot.

    replay.py WORK [--arg NAME=VALUE]...               builds into WORK/STAGE, and prints what each step took
    replay.py WORK --keep STAGE ...                    does not build this stage again
    replay.py WORK --run STAGE COMMAND...              runs a program in a stage that is built, as its last USER

Needs root, debootstrap, and Debian's and PyPI's registries; what pip needs to reach them here (pip.conf, certificates,
wheels) is passed on. Nothing else of this machine is seen inside.
"""
import argparse
import json
import os
import pathlib
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time

import dockerfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SUITE = "bookworm"  # debian:12
PIP = ("PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "SSL_CERT_FILE",
       "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class Failed(Exception):
    """A step did not end well."""


def run(command: list, **options) -> None:
    done = subprocess.run([str(c) for c in command], **options)
    if done.returncode:
        raise Failed(f"status {done.returncode}: {' '.join(map(str, command))[:300]}")


def base(work: pathlib.Path, image: str) -> pathlib.Path:
    """debian:12-slim: its smallest set of packages, and no documents."""
    if not re.fullmatch(r"debian:(12|bookworm)(\.\d+)?(-slim)?", image):
        raise Failed(f"no way to make {image} here: debian:12-slim is made by debootstrap")
    folder = work / "base"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", SUITE, folder, "http://deb.debian.org/debian"], stdout=subprocess.DEVNULL)
        (folder / "etc/apt/sources.list").write_text(
            f"deb http://deb.debian.org/debian {SUITE} main\ndeb http://deb.debian.org/debian {SUITE}-updates main\n"
            f"deb http://deb.debian.org/debian-security {SUITE}-security main\n")
        (folder / "etc/dpkg/dpkg.cfg.d/slim").write_text("path-exclude /usr/share/doc/*\npath-exclude /usr/share/man/*\n")
        run(["chroot", folder, "apt-get", "clean"])
        (folder / "complete").touch()
    return folder


# What a container engine puts into a container: /proc, /dev, name resolution; and pip's way out. In a mount namespace
# of its own, so that whoever deletes the folder later deletes nothing of this machine.
ENTER = r"""
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
while read -r name minor; do mknod -m 666 "$root/dev/$name" c 1 "$minor"; done <<'N'
null 3
zero 5
full 7
random 8
urandom 9
N
while [ $# -gt 0 ]; do
  mkdir -p "$(dirname "$root$2")"
  if [ -d "$1" ]; then mkdir -p "$root$2"; else : >>"$root$2"; fi
  mount --bind "$1" "$root$2"
  shift 2
done
"""


def outside() -> list[str]:
    """Files of this machine that pip's settings name."""
    named = [os.environ[n] for n in PIP if os.environ.get(n, "").startswith("/") and os.path.exists(os.environ[n])]
    return sorted(set(named + [f for f in ("/etc/pip.conf",) if os.path.exists(f)]))


def pip_settings() -> dict[str, str]:
    found = {n: os.environ[n] for n in PIP if n in os.environ}
    found = {n: "/run/replay" + v if v in outside() else v for n, v in found.items()}
    if "/etc/pip.conf" in outside():
        found["PIP_CONFIG_FILE"] = "/run/replay/etc/pip.conf"
        # A file named in there is not at its place inside; the same one as a setting is.
        if "PIP_CERT" not in found and "SSL_CERT_FILE" in found:
            found["PIP_CERT"] = found["SSL_CERT_FILE"]
    return found


class Container:
    """A stage that is being built or used."""

    def __init__(self, root: pathlib.Path, environment: dict[str, str], user: str = "root", folder: str = "/"):
        self.root, self.environment, self.user, self.folder = root, environment, user, folder

    def execute(self, command: list[str], **options) -> None:
        users = {line.split(":")[0]: line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines()}
        if self.user not in users:
            raise Failed(f"USER {self.user}: there is no such user in the image")
        _, _, uid, gid, _, home, _ = users[self.user]
        settings = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home} | self.environment
        inner = ["chroot", f"--userspec={uid}:{gid}", self.root, "env", "-i",
                 *(f"{n}={v}" for n, v in (settings | pip_settings()).items()),
                 "sh", "-c", 'cd "$0" && exec "$@"', self.folder, *command]
        seen = [("/etc/resolv.conf", "/etc/resolv.conf"), ("/etc/hosts", "/etc/hosts")] + [(f, "/run/replay" + f) for f in outside()]
        # A process space, too: what a step leaves running ends with it.
        run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER + shlex.join(map(str, ["exec", *inner])), "sh",
             self.root, *(word for pair in seen for word in pair)], **options)


def ignored(context: pathlib.Path) -> list[str]:
    """The patterns of .dockerignore for rsync: anchored at the top, unless they begin with **/."""
    lines = [line.strip() for line in (context / ".dockerignore").read_text().splitlines()]
    return [line[3:] if line.startswith("**/") else "/" + line for line in lines if line and not line.startswith("#")]


def copy(rest: str, context: pathlib.Path, work: pathlib.Path, container: Container) -> None:
    words = rest.split()
    source = context
    if words[0].startswith("--from="):
        source = work / words.pop(0).removeprefix("--from=")
    if words[0].startswith("--"):
        raise Failed(f"COPY {words[0]} is not understood here")
    *names, target = words
    place = container.root / os.path.join(container.folder, target).lstrip("/")
    for name in names:
        found = sorted(source.glob(name.strip("/"))) if name != "." else [source]
        if not found:
            raise Failed(f"COPY {name}: there is no such file")
        for one in found:
            into = place if one.is_dir() else place / one.name if target.endswith("/") or len(names) > 1 else place
            into.parent.mkdir(parents=True, exist_ok=True)
            excludes = [f"--exclude={p}" for p in ignored(context)] if source == context else []
            run(["rsync", "-a", "--chown=root:root", *excludes, f"{one}/" if one.is_dir() else one, into])


def build(work: pathlib.Path, path: pathlib.Path, context: pathlib.Path, given: dict[str, str], kept: list[str]) -> None:
    unknown, names = set(given), set()
    for stage in dockerfile.stages(path):
        root = work / stage.name
        if stage.name in kept and (work / f"{stage.name}.json").exists():
            names.add(stage.name)
            unknown -= {n for step in stage.instructions if step.name == "ARG" for n in dockerfile.assignments(step.rest)}
            continue
        shutil.rmtree(root, ignore_errors=True)
        parent = work / stage.base if stage.base in names else base(work, stage.base)
        names.add(stage.name)
        run(["cp", "-a", "--reflink=auto", parent, root])
        container, values, program = Container(root, {}), {}, []
        for step in stage.instructions:
            began = time.monotonic()
            rest = step.rest if step.name in ("RUN", "CMD") else dockerfile.expand(step.rest, container.environment | values)
            if step.name == "ARG":
                for name, value in dockerfile.assignments(rest).items():
                    values[name] = given.get(name, value)
                    unknown.discard(name)
            elif step.name == "ENV":
                container.environment |= dockerfile.assignments(rest)
            elif step.name == "WORKDIR":
                container.folder = os.path.join(container.folder, rest)
                (root / container.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif step.name == "COPY":
                copy(rest, context, work, container)
            elif step.name == "RUN":
                Container(root, values | container.environment, container.user, container.folder).execute(dockerfile.command(rest))
            elif step.name == "USER":
                container.user = rest
            elif step.name == "CMD":
                program = dockerfile.command(rest)
            took = time.monotonic() - began
            print(f"{stage.name}:{step.line} {step.name} {rest[:80]} {took:.1f} s", flush=True)
        # Beside the root, so that it is not in the image.
        state = {"environment": container.environment, "user": container.user, "folder": container.folder, "command": program}
        (work / f"{stage.name}.json").write_text(json.dumps(state))
        size = subprocess.run(["du", "-sm", "--one-file-system", root], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"{stage.name}: {size} MB", flush=True)
    if unknown:
        raise Failed(f"--arg {' '.join(sorted(unknown))}: the Dockerfile has no such ARG")


def built(work: pathlib.Path, stage: str) -> tuple[Container, list[str]]:
    state = json.loads((work / f"{stage}.json").read_text())
    return Container(work / stage, state["environment"], state["user"], state["folder"]), state["command"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--dockerfile", type=pathlib.Path, default=ROOT / "modal/Dockerfile")
    parser.add_argument("--context", type=pathlib.Path, default=ROOT)
    parser.add_argument("--keep", action="append", default=[], metavar="STAGE")
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="STAGE COMMAND")
    options = parser.parse_args()
    if pwd.getpwuid(os.geteuid()).pw_name != "root":
        print("replay.py: needs root, for chroot", file=sys.stderr)
        return 1
    try:
        if options.run:
            container, _ = built(options.work, options.run[0])
            container.execute(options.run[1:])
        else:
            options.work.mkdir(parents=True, exist_ok=True)
            build(options.work, options.dockerfile, options.context, dict(a.partition("=")[::2] for a in options.arg), options.keep)
    except (Failed, dockerfile.Invalid) as e:
        print(f"replay.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
