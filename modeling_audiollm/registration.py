"""
Registration with transformers' Auto classes, on first use.

Their tables hold classes, and ours cannot be imported without torch. So that `import audiollm` costs nothing, a table imports
our module when it is first looked at, and the module's import registers its class. Importing it right after the table's own
module would fail, because transformers imports these in the middle of others.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
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


def _register_configuration(ours: ModuleType) -> None:
    from transformers import AutoConfig

    AutoConfig.register(ours.AudioLlmConfig.model_type, ours.AudioLlmConfig, exist_ok=True)


def _register_processor(ours: ModuleType) -> None:
    from audiollm.configuration import AudioLlmConfig
    from transformers import AutoProcessor

    AutoProcessor.register(AudioLlmConfig, ours.AudioLlmProcessor, exist_ok=True)


def _register_models(ours: ModuleType) -> None:
    import transformers
    from audiollm.configuration import AudioLlmConfig

    for name in AUTO_CLASSES:
        getattr(transformers, name).register(AudioLlmConfig, ours.AudioLlmForConditionalGeneration, exist_ok=True)


def _register_pipeline(ours: ModuleType) -> None:
    from transformers import AutoModelForMultimodalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    PIPELINE_REGISTRY.register_pipeline(
        ours.TASK, pipeline_class=ours.AudioLlmPipeline, pt_model=AutoModelForMultimodalLM
    )


#: Our modules, and what registers their classes.
REGISTERED: dict[str, Callable[[ModuleType], None]] = {
    "audiollm.configuration.configuration_audiollm": _register_configuration,
    "audiollm.processing.processing_audiollm": _register_processor,
    "audiollm.modeling_audiollm": _register_models,
    "audiollm.inference.pipeline": _register_pipeline,
}


class _Pending(dict):
    """An entry in one of transformers' tables, whose classes are imported when it is first looked at."""

    def __init__(self, known: dict, module: str):
        super().__init__(known)
        self.module: str | None = module


def _completing(method: Callable) -> Callable:
    def completed(table: _Pending, *arguments: Any) -> Any:
        if table.module is not None:
            importlib.import_module(table.module)  # whose import registers here
            table.module = None
        return method(table, *arguments)

    return completed


for _name in ("__contains__", "__getitem__", "__iter__", "__len__", "keys", "values", "items"):
    setattr(_Pending, _name, _completing(getattr(dict, _name)))


def _await_configuration(theirs: ModuleType) -> None:
    _await(theirs.CONFIG_MAPPING, "audiollm.configuration.configuration_audiollm")


def _await_processor(theirs: ModuleType) -> None:
    _await(theirs.PROCESSOR_MAPPING, "audiollm.processing.processing_audiollm")


def _await_models(theirs: ModuleType) -> None:
    for name in AUTO_CLASSES:
        _await(getattr(theirs, name)._model_mapping, "audiollm.modeling_audiollm")
    # The any-to-any pipeline reads the names of supported classes here; `register` does not write them.
    theirs.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["audiollm"] = "AudioLlmForConditionalGeneration"


def _await(table: Any, module: str) -> None:
    table._extra_content = _Pending(table._extra_content, module)


def _import_pipeline(theirs: ModuleType) -> None:
    importlib.import_module("audiollm.inference.pipeline")


#: Modules of transformers that hold tables, and what prepares these for ours.
TABLES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _await_configuration,
    "transformers.models.auto.processing_auto": _await_processor,
    "transformers.models.auto.modeling_auto": _await_models,
    "transformers.pipelines": _import_pipeline,
}


class _RegisteringFinder(MetaPathFinder):
    """Finds modules as the finders behind it do, and registers or prepares once one is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec, if it is one of ours or one with tables."""
        if fullname not in REGISTERED and fullname not in TABLES:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            then = {**REGISTERED, **TABLES}[fullname]

            def exec_module(module: ModuleType) -> None:
                execute(module)
                then(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register AudioLLM's classes once transformers' tables are looked at."""
    sys.meta_path.insert(0, _RegisteringFinder())
    for name, prepare in TABLES.items():
        if name in sys.modules:
            prepare(sys.modules[name])
