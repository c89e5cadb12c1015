"""
AudioLLM gives a Llama ears.

Importing this package registers its classes with transformers, so that `AutoConfig`, `AutoProcessor`, `AutoModel` and
`AutoModelForMultimodalLM` load AudioLLM checkpoints without `trust_remote_code`, and `pipeline("audio-text-to-text")`
answers questions about recordings. Like transformers, it imports nothing heavy before it is used.

Where torch is not loaded yet, its threads are told to sleep where they wait (`OMP_WAIT_POLICY`), unless the user has said
otherwise: a spinning thread takes its core from the one that it waits for, as soon as anything else runs on the machine.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from audiollm.configuration import AudioLlmConfig as AudioLlmConfig
    from audiollm.inference.loaded import AudioLlm as AudioLlm
    from audiollm.inference.loaded import load as load
    from audiollm.inference.pipeline import AudioLlmPipeline as AudioLlmPipeline
    from audiollm.processing import AudioLlmProcessor as AudioLlmProcessor

    from .modeling_audiollm import AudioLlmForConditionalGeneration as AudioLlmForConditionalGeneration
    from .modeling_audiollm import AudioLlmModel as AudioLlmModel

__version__ = "0.1.0"

#: Public names, and the modules that define them.
_MODULES = {
    "AudioLlm": "audiollm.inference.loaded",
    "AudioLlmConfig": "audiollm.configuration",
    "AudioLlmForConditionalGeneration": "audiollm.modeling_audiollm",
    "AudioLlmModel": "audiollm.modeling_audiollm",
    "AudioLlmPipeline": "audiollm.inference.pipeline",
    "AudioLlmProcessor": "audiollm.processing",
    "load": "audiollm.inference.loaded",
}

if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
register()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = ["__version__", *_MODULES]
