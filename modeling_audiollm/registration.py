"""
Registration with transformers' Auto classes, on first use.

Their tables hold classes, and ours cannot be imported without torch. So that `import audiollm` costs nothing, a table imports
our class when it is first looked at. Doing so right after the table's own module would fail, because transformers imports
these in the middle of others.
"""

import importlib
import sys
from collections import UserDict
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Auto classes that load an AudioLLM; each of them gives the class that generates.
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMultimodalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
)


class _Pending(UserDict):
    """The registered entries of one of transformers' tables, to which ours is added when they are first looked at."""

    def __init__(self, known: Mapping, module: str, name: str):
        self._known = dict(known)
        self._awaited: tuple[str, str] | None = (module, name)

    @property
    def data(self) -> dict:  # type: ignore[override]  # read by every method of UserDict
        """The entries, ours among them unless its module is being imported."""
        if self._awaited is not None:
            module, name = self._awaited
            ours = getattr(importlib.import_module(module), name, None)
            if ours is not None:
                from audiollm.configuration import AudioLlmConfig

                self._known[AudioLlmConfig.model_type if ours is AudioLlmConfig else AudioLlmConfig] = ours
                self._awaited = None
        return self._known


#: Modules of transformers with tables: the tables or the classes that have them, and the module and name of our class.
TABLES = {
    "transformers.models.auto.configuration_auto": (
        ("CONFIG_MAPPING",),
        ("audiollm.configuration.configuration_audiollm", "AudioLlmConfig"),
    ),
    "transformers.models.auto.processing_auto": (
        ("PROCESSOR_MAPPING",),
        ("audiollm.processing.processing_audiollm", "AudioLlmProcessor"),
    ),
    "transformers.models.auto.modeling_auto": (
        AUTO_CLASSES,
        ("audiollm.modeling_audiollm", "AudioLlmForConditionalGeneration"),
    ),
    # Importing our pipeline registers it.
    "transformers.pipelines": ((), ("audiollm.inference.pipeline", "AudioLlmPipeline")),
}


def _prepare(theirs: ModuleType) -> None:
    """Let the tables of a module of transformers await our class."""
    owners, (module, name) = TABLES[theirs.__name__]
    if not owners:
        importlib.import_module(module)
    for owner in owners:
        table: Any = getattr(theirs, owner)
        table = table._model_mapping if owners is AUTO_CLASSES else table
        table._extra_content = _Pending(table._extra_content, module, name)
    if owners is AUTO_CLASSES:  # the any-to-any pipeline reads the names of supported classes here
        theirs.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["audiollm"] = name


class _PreparingFinder(MetaPathFinder):
    """Finds modules with tables as the finders behind it do, and prepares them once they are executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module with tables; None for any other."""
        if fullname not in TABLES:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _prepare(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register AudioLLM's classes once transformers' tables are looked at."""
    sys.meta_path.insert(0, _PreparingFinder())
    for name in TABLES.keys() & sys.modules.keys():
        _prepare(sys.modules[name])
