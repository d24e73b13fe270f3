"""SHA256SUMS in a checkpoint's directory: as `sha256sum` writes it and `sha256sum -c` reads it."""
import hashlib
import pathlib
import re

from progress import Progress

NAME = "SHA256SUMS"
BLOCK = 1 << 22


def sha256(path: pathlib.Path, progress: Progress | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if progress:
                progress.add(len(block))
    return digest.hexdigest()


def files(folder: pathlib.Path) -> list[str]:
    """What a manifest covers: every file that is no hidden one, no half-written one and not the manifest."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(n for n in names if n != NAME and not n.endswith((".part", ".incomplete"))
                  and not any(part.startswith(".") for part in n.split("/")))


def total(folder: pathlib.Path, names: list[str]) -> int:
    return sum((folder / n).stat().st_size for n in names)


def write(folder: pathlib.Path, quiet: bool) -> int:
    names = files(folder)
    progress = Progress("sha256", total(folder, names), quiet)
    lines = [f"{sha256(folder / name, progress)}  {name}\n" for name in names]
    progress.finish()
    part = folder / (NAME + ".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(folder / NAME)
    return len(names)


def read(folder: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    """Name -> digest, and what is wrong with the manifest itself."""
    wanted: dict[str, str] = {}
    problems = []
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        return {}, [f"{NAME}: cannot be read: {e}"]
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        path = pathlib.PurePosixPath(match[2]) if match else None
        if path is None or path.is_absolute() or ".." in path.parts:
            problems.append(f"{NAME}: line {number} is not a digest and a file of this directory")
        else:
            wanted[match[2]] = match[1]
    return wanted, problems


def verify(folder: pathlib.Path, quiet: bool) -> list[str]:
    wanted, problems = read(folder)
    present = [name for name in wanted if (folder / name).is_file()]
    problems += [f"{name}: missing; {NAME} names it" for name in wanted if name not in set(present)]
    progress = Progress("sha256", total(folder, present), quiet)
    for name in present:
        found = sha256(folder / name, progress)
        if found != wanted[name]:
            problems.append(f"{name}: sha256 is {found}, {NAME} says {wanted[name]}; get the file again")
    progress.finish()
    return problems
