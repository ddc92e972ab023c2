"""A repository of the Hugging Face Hub, downloaded to its usual cache: only the files that are needed, resumable."""

import re
from collections.abc import Iterable
from pathlib import Path

from converters.errors import SourceError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve(source: str, patterns: Iterable[str]) -> Path:
    """The local file or folder that ``--source`` means; a repo id is downloaded first.

    Args:
        source: a path, or ``owner/name`` on the Hub where no such path exists.
        patterns: which of the repository's files are needed.

    Raises:
        SourceError: there is no such path, or the download fails (what arrived is kept: the same command goes on).
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not _REPOSITORY.fullmatch(source):
        raise SourceError(f"--source={source}: no such file or folder, and no repo id (owner/name) either")
    return _download(source, sorted(set(patterns)))


def _download(repo_id: str, patterns: list[str]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise SourceError(
            f"--source={repo_id}: downloading needs huggingface_hub: pip install 'reangle-jax[convert]', "
            "or download the repository and give its folder"
        ) from None
    try:
        # The token comes from HF_TOKEN or `hf auth login`.
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise SourceError(
            f"--source={repo_id}: accept the licence on https://huggingface.co/{repo_id}, then log in: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(f"--source={repo_id}: no such folder here and no such repository on the Hub") from None
    except errors.LocalEntryNotFoundError:
        raise SourceError(
            f"--source={repo_id}: not in the cache, and the Hub cannot be reached; connect, or give a local folder"
        ) from None
    except Exception as error:  # the client's and its HTTP library's, of many kinds
        text = " ".join(str(error).split())
        raise SourceError(
            f"--source={repo_id}: the download stopped ({type(error).__name__}: {text[:200]}); "
            "the same command continues it"
        ) from None
