"""Re-export, so that the modeling files and their copies on the Hub find base models the same, flat way."""

from audiollm.processing.base_models import (
    EMBEDDED_PREFIX,
    audiollm_cache_dir,
    embedded_base_folder,
    how_to_get,
    naming_base,
    resolve_base,
)

__all__ = [
    "EMBEDDED_PREFIX",
    "audiollm_cache_dir",
    "embedded_base_folder",
    "how_to_get",
    "naming_base",
    "resolve_base",
]
