"""Downloads the published checkpoint from Hugging Face, at one fixed commit.

huggingface_hub does the requests: who may read, where a file is, another try after a cut, a bar. Here: the commit is fixed,
room is made sure of, a file goes on where an earlier run stopped (hf_hub_download begins anew), and gets its name only when its
size and digest are those the hub lists (sha256 of large files, git's sha1 of small ones). HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE are respected.
"""
import hashlib
import os
import pathlib
import re
import shutil
import sys

import manifest

REPOSITORY = "openbmb/MiniCPM-o-2_6"
# The beginning of the commit that public measurements name; the whole hash is looked up among the repository's commits.
REVISION = "9da79acd"
PATTERNS = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer*.json", "vocab.json", "merges.txt",
            "added_tokens.json", "special_tokens_map.json", "model.safetensors.index.json", "model*.safetensors",
            "assets/Vocos.*", "assets/chattts_tokenizer/*", "README.md", "LICENSE*"]


class FetchError(Exception):
    """What went wrong, in words for the user."""


def full_revision(api, repository: str, revision: str) -> str:
    """A commit is 40 hex digits; the beginning of one is looked up. Branches and tags move, so they are refused."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if not re.fullmatch(r"[0-9a-f]{7,39}", revision):
        raise FetchError(f"--revision {revision}: not a commit (7 to 40 hex digits); branches and tags can change, so "
                         "they are not accepted")
    found = sorted({c.commit_id for c in api.list_repo_commits(repository) if c.commit_id.startswith(revision)})
    if len(found) != 1:
        what = f"{len(found)} commits that begin" if found else "no commit that begins"
        raise FetchError(f"{repository} has {what} with {revision}; name one in full with --revision (the list is on "
                         f"{api.endpoint}/{repository}/commits/main)")
    return found[0]


def git_sha1(path: pathlib.Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def difference(path: pathlib.Path, sibling) -> str | None:
    """How a file differs from what the hub lists; None if it does not."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"is {size} bytes, the hub lists {sibling.size}"
    if sibling.lfs and manifest.sha256(path) != sibling.lfs.sha256:
        return f"does not have the listed sha256 {sibling.lfs.sha256}"
    if not sibling.lfs and sibling.blob_id and git_sha1(path) != sibling.blob_id:
        return f"does not have the listed git hash {sibling.blob_id}"
    return None


def wanted_files(api, repository: str, commit: str) -> list:
    from huggingface_hub.utils import filter_repo_objects
    listed = api.model_info(repository, revision=commit, files_metadata=True).siblings or []
    chosen = list(filter_repo_objects(listed, allow_patterns=PATTERNS, key=lambda s: s.rfilename))
    for sibling in chosen:
        name = pathlib.PurePosixPath(sibling.rfilename)
        if name.is_absolute() or ".." in name.parts or len(name.parts) > 3:
            raise FetchError(f"{repository} lists a file {sibling.rfilename!r}, which leads out of the directory")
    if not any(s.rfilename.endswith(".safetensors") for s in chosen):
        raise FetchError(f"{repository} at {commit} has no safetensors files")
    return chosen


def download_file(folder: pathlib.Path, repository: str, commit: str, sibling) -> None:
    from huggingface_hub import file_download, hf_hub_url
    from huggingface_hub.utils import build_hf_headers
    path = folder / sibling.rfilename
    # The digest in the name: what another commit has begun is not gone on with.
    digest = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or commit)[:12]
    part = path.with_name(f"{path.name}.{digest}.incomplete")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        file_download.http_get(hf_hub_url(repository, sibling.rfilename, revision=commit), file, resume_size=file.tell(),
                               headers=build_hf_headers(), expected_size=sibling.size, displayed_filename=sibling.rfilename)
        file.flush()
        os.fsync(file.fileno())
    if problem := difference(part, sibling):
        part.unlink()
        raise FetchError(f"{path} {problem}; what had arrived was removed, fetch again")
    part.replace(path)


def download(folder: pathlib.Path, repository: str, revision: str) -> None:
    import huggingface_hub
    from huggingface_hub import constants
    if constants.HF_HUB_OFFLINE:
        raise FetchError("HF_HUB_OFFLINE is set: nothing is downloaded")
    api = huggingface_hub.HfApi()
    commit = full_revision(api, repository, revision)
    files = wanted_files(api, repository, commit)
    print(f"{repository} at {commit}: {len(files)} files, {sum(s.size or 0 for s in files) / 1e9:.2f} GB", file=sys.stderr)
    needed = sum((s.size or 0) for s in files if not (folder / s.rfilename).exists())
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < needed + 100_000_000:
        raise FetchError(f"{folder} needs {needed / 1e9:.1f} GB, {shutil.disk_usage(folder).free / 1e9:.1f} GB are free")
    for sibling in sorted(files, key=lambda s: s.size or 0):
        if difference(folder / sibling.rfilename, sibling) is not None:
            download_file(folder, repository, commit, sibling)


def reason(error: Exception) -> str:
    from huggingface_hub import errors
    if isinstance(error, errors.GatedRepoError):
        return "access has to be asked for on the repository's page; then set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = {401: " (is HF_TOKEN right?)", 403: " (may HF_TOKEN read this repository?)",
              404: " (is the name or the commit right?)"}.get(status, "")
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}{advice}"


def fetch(folder: pathlib.Path, repository: str, revision: str, quiet: bool) -> int:
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        import httpx
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as e:
        print(f"tools/checkpoint fetch needs the packages of tools/requirements-checkpoint.txt: {e}", file=sys.stderr)
        return 1
    try:
        download(folder, repository, revision)
    except FetchError as e:
        print(f"tools/checkpoint fetch: {e}", file=sys.stderr)
        return 1
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as e:
        print(f"tools/checkpoint fetch: {repository}: {reason(e)}\n"
              "What has arrived stays; the same command goes on from there.", file=sys.stderr)
        return 1
    if (folder / "assets/Vocos.pt").exists() and not (folder / "assets/Vocos.safetensors").exists():
        print(f"next: tools/checkpoint convert {folder}")
    print(f"{folder}: fetched")
    return 0
