"""A repository of the Hugging Face Hub, downloaded to its usual cache: only the files that are needed, resumable."""

import re
from collections.abc import Iterable
from pathlib import Path

from reangle_jax.errors import InputError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve(source: str, patterns: Iterable[str], *, download: bool = True) -> Path:
    """The local file or folder that ``--source`` means: a path or, where there is none such, a repo id, ``owner/name``.

    Of a repository the files of these patterns are downloaded first; without ``download`` it must be in the cache.

    Raises:
        InputError: there is no such path, or the download fails (what arrived is kept: the same command goes on).
    """
    path = Path(source)
    if path.exists():
        return path
    if not _REPOSITORY.fullmatch(source):
        raise InputError(f"--source={source}: no such file or folder, and no repo id (owner/name) either")
    return _download(source, sorted(set(patterns)), download)


def _download(repo_id: str, patterns: list[str], download: bool) -> Path:
    import huggingface_hub  # late: it takes a while, and local files need none of it

    try:
        # The token comes from HF_TOKEN or `hf auth login`.
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns, local_files_only=not download))
    except Exception as error:  # the client's and its HTTP library's, of many kinds
        if not download and isinstance(error, FileNotFoundError):
            raise InputError(
                f"--source={repo_id}: no such folder here, nor in the Hub's cache, and --check downloads nothing: give "
                "--out, which downloads, then checks before it converts"
            ) from None
        raise InputError(f"--source={repo_id}: {_words(error, repo_id)}") from None


def _words(error: Exception, repo_id: str) -> str:
    """What went wrong, and the mend."""
    from huggingface_hub import errors

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and isinstance(cause, Exception):
        chain.append(cause)  # the client wraps what the server said
    # Before huggingface_hub 1.0 the answers are those of requests, which are false where they are errors.
    found = (getattr(link, "response", None) for link in chain)
    response = next((answer for answer in found if answer is not None), None)
    status = getattr(response, "status_code", None)
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    page = "text/html" in (getattr(response, "headers", None) or {}).get("content-type", "")
    if any(isinstance(link, errors.GatedRepoError) for link in chain):
        return f"accept the licence on https://huggingface.co/{repo_id}, then log in: hf auth login"
    if status == 407 or "ProxyError" in kinds:
        return "the proxy refuses the connection; set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT as it needs it"
    if kinds & {"JSONDecodeError", "FileMetadataError"} or (page and status in (200, 403)):
        return (
            "a web page answered in place of the Hub (a proxy's or a login page?); open it in a browser, allow "
            "huggingface.co, or download the repository elsewhere and give its folder"
        )
    if any(isinstance(link, errors.RepositoryNotFoundError) for link in chain) or status == 404:
        return (
            "no such folder here and no such repository on the Hub, or a private one; check the name, or log in: "
            "hf auth login"
        )
    if status == 401:
        return (
            "the Hub does not accept the token (401); make one on https://huggingface.co/settings/tokens, then log in"
        )
    if status == 403:
        return (
            "the token may not read this repository (403); give it that right on https://huggingface.co/settings/tokens"
        )
    again = "the same command continues it"
    if status == 429:
        wait = response.headers.get("retry-after") if response is not None else None
        return f"too many requests (429); log in, which allows more, or wait {wait or 300} seconds: {again}"
    if status is not None and status >= 500:
        return f"the Hub is out of order ({status}); try later: {again}"
    if any(isinstance(link, errors.LocalEntryNotFoundError) for link in chain):
        return "not in the cache, and the Hub cannot be reached; connect, or give a local folder"
    text = " ".join(str(error).split())
    return f"the download stopped ({type(error).__name__}: {text[:200]}); {again}"
