"""Downloads the published checkpoint from Hugging Face, at one fixed commit.

huggingface_hub does the transfer: files go on where they stopped, appear under their names only when whole, a bar shows how
far they are. Here: the commit is fixed, room is made sure of, and sizes and digests are compared with those the hub lists
(sha256 of large files, git's sha1 of small ones). HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected.
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
        raise FetchError(f"{repository} has {len(found) or 'no'} commit{'s' if len(found) > 1 else ''} that begin with "
                         f"{revision}; name one in full with --revision (the list is on "
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
    if not any(s.rfilename.endswith(".safetensors") for s in chosen):
        raise FetchError(f"{repository} at {commit} has no safetensors files")
    return chosen


def download(folder: pathlib.Path, repository: str, revision: str) -> None:
    # The other protocol keeps no half-written file to go on from.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import huggingface_hub
    from huggingface_hub import constants
    if constants.HF_HUB_OFFLINE:
        raise FetchError("HF_HUB_OFFLINE is set: nothing is downloaded")
    api = huggingface_hub.HfApi()
    commit = full_revision(api, repository, revision)
    files = wanted_files(api, repository, commit)
    needed = sum((s.size or 0) for s in files if not (folder / s.rfilename).exists())
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < needed + 100_000_000:
        raise FetchError(f"{folder} needs {needed / 1e9:.1f} GB, {shutil.disk_usage(folder).free / 1e9:.1f} GB are free")
    print(f"{repository} at {commit}: {len(files)} files, {sum(s.size or 0 for s in files) / 1e9:.2f} GB", file=sys.stderr)
    for sibling in sorted(files, key=lambda s: s.size or 0):
        path = folder / sibling.rfilename
        if difference(path, sibling) is None:
            continue
        huggingface_hub.hf_hub_download(repository, sibling.rfilename, revision=commit, local_dir=folder,
                                        force_download=path.exists())
        if problem := difference(path, sibling):
            path.unlink(missing_ok=True)
            raise FetchError(f"{path} {problem}; it was removed, fetch again")


def reason(error: Exception) -> str:
    from huggingface_hub import errors
    if isinstance(error, errors.GatedRepoError):
        return "access has to be asked for on the repository's page; then set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = {401: " (is HF_TOKEN right?)", 403: " (may HF_TOKEN read this repository?)",
              404: " (is the name or the commit right?)"}.get(status, "")
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}{advice}"


def fetch(folder: pathlib.Path, repository: str, revision: str) -> int:
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
        print(f"tools/checkpoint fetch: {repository}: {reason(e)}\nWhat has arrived stays; the same command goes on from there.",
              file=sys.stderr)
        return 1
    if (folder / "assets/Vocos.pt").exists() and not (folder / "assets/Vocos.safetensors").exists():
        print(f"next: tools/checkpoint convert {folder}")
    print(f"{folder}: fetched")
    return 0
