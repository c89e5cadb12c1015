"""Re-export, so that the modeling files and their copies on the Hub find base models the same, flat way."""

from audiollm.processing.base_models import (  # noqa: F401
    EMBEDDED_PREFIX,
    audiollm_cache_dir,
    embedded_base_folder,
    how_to_get,
    load_base,
    resolve_base,
)
