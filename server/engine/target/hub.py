"""Models on the Hugging Face hub: configuration first, so that what cannot be served is never downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from redraft.server.engine.types import RedraftError

WANTED = ["*.safetensors", "*.json", "*.jinja"]
UNWANTED = ["*/*", "consolidated*"]
"""Copies of the same weights that some repositories keep for other programs."""


def fetch_snapshot(repository: str, revision: str | None, offline: bool, check_config: Callable[[Path], None]) -> Path:
    """The folder of ``repository`` in the hub's own cache, downloaded where it is not there yet.

    ``check_config`` gets config.json before anything large is fetched.  Raises ``RedraftError``.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{repository} at {revision}" if revision else repository
    try:
        config = hf_hub_download(repository, "config.json", revision=revision, local_files_only=offline)
        check_config(Path(config))
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=offline,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
        )
    except GatedRepoError as error:
        reason = f"{repository} is gated: accept its terms on the hub, then run `hf auth login`"
        raise RedraftError(reason) from error
    except RepositoryNotFoundError as error:
        reason = f"there is no folder {repository} and no such model on the hub (a private one needs `hf auth login`)"
        raise RedraftError(reason) from error
    except RevisionNotFoundError as error:
        raise RedraftError(f"{repository} has no revision {revision} on the hub") from error
    except LocalEntryNotFoundError as error:
        reason = (
            "leave out --offline once" if offline else "the hub cannot be reached: check the network, or give a folder"
        )
        raise RedraftError(f"{at} is not on this machine; {reason}") from error
    except EntryNotFoundError as error:
        raise RedraftError(f"{at} has no config.json, so it is not a model in transformers' layout") from error
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RedraftError(f"{at} cannot be fetched from the hub ({first}); check network and disk") from error
    return Path(folder)
