"""Files of `transformers` and its hub: read without running anybody's code, and one sentence for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.models.pretrained.loading.backbone import BackboneError

# Parts that models for other purposes leave out, and that nothing here reads.
UNREAD = ("pooler", "masked_spec_embed", "mask_token")


def from_pretrained(part: str, label: str, source: str, kind: Any = None, attention: str | None = None) -> Any:
    """Configuration, model or tokenizer: from the folder or the local cache, else from the hub.

    Args:
        label: what it is called in sentences. kind: class of the library; None = a tokenizer.
        attention: of a model, implementation in transformers' table; None = the library's choice.

    Raises:
        BackboneError: one sentence.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    # Said each time, where None would ask a person on a terminal.
    options: dict[str, Any] = {"trust_remote_code": False}
    found: Any
    if part == "model":
        options |= {"use_safetensors": True, "attn_implementation": attention, "dtype": torch.float32}
        options["output_loading_info"] = True
    try:
        with _quiet():
            try:
                found = (kind or AutoTokenizer).from_pretrained(source, local_files_only=True, **options)
            except OSError:
                if Path(source).is_dir():
                    raise
                _ask_hub()
                found = (kind or AutoTokenizer).from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise BackboneError(_why_not(part, label, source, error)) from error
    except ImportError as error:
        # E.g. timm, with torchvision, of models that transformers only wraps.
        raise BackboneError(f"{label}: {source} needs a library that is not installed: {_missing(error)}") from error
    if part != "model":
        return found
    model, info = found
    lost = [name for name in info["missing_keys"] if not any(part in name for part in UNREAD)]
    if lost:
        raise BackboneError(f"{label}: {source} has no weights for {len(lost)} parameters, e.g. {sorted(lost)[0]}")
    other = sorted(name for name, value in model.named_parameters() if value.dtype != torch.float32)
    assert not other, f"{other[0]} is not float32 although the library was told so"
    return model


def preprocessing(source: str) -> dict[str, Any]:
    """What a model's source says about its pictures or sounds, where it says anything."""
    own = _json_of(source, "preprocessor_config.json")
    if own is not None:
        return own
    # Newer ones keep what belongs to several parts of a model in one file.
    whole = _json_of(source, "processor_config.json") or {}
    return dict(whole.get("image_processor") or whole.get("feature_extractor") or {})


def _json_of(source: str, name: str) -> dict[str, Any] | None:
    from transformers.utils.hub import cached_file

    causes = ("gated_repo", "missing_entries", "connection_errors")
    optional: dict[str, Any] = {f"_raise_exceptions_for_{cause}": False for cause in causes}
    found = cached_file(source, name, **optional)
    return None if found is None else dict(json.loads(Path(found).read_text(encoding="utf-8")))


@contextmanager
def _quiet() -> Iterator[None]:
    """What is wrong is said by us, in a sentence, and not by the library in tables."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _ask_hub() -> None:
    """Raise ConnectionError at once if nobody answers: the library itself would try for half a minute, file by file."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # which one depends on the HTTP client that the library has chosen
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached: {error}") from error


def _missing(error: ImportError) -> str:
    """What the library says is missing, in one line."""
    return " ".join(str(error).split()).removesuffix(
        " Please note that you may need to restart your runtime after installation."
    )


def _why_not(part: str, label: str, source: str, error: Exception) -> str:
    if "mismatch" in str(error):
        return f"{label}: {source} has weights of other shapes than its config.json says: one of the two was changed"
    if Path(source).is_dir():
        reason = " ".join(str(error).split())[:200]
        return f"{label}: {source} holds no usable {part} (it needs config.json and model.safetensors): {reason}"
    return (
        f"{label}: {source!r} is not a folder (of a model, or of a run of job=tower), is not in the local cache "
        f"of the Hugging Face hub, and could not be fetched ({type(error).__name__}): give a folder with config.json "
        f"and model.safetensors, or fetch it once where there is a network (hf download {source})"
    )
