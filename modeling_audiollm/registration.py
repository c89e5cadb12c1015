"""
Registration with transformers, at the first import of what it concerns.

transformers' tables hold classes, and ours cannot be imported without torch. So that `import audiollm` costs nothing, each
of our modules is imported right after the module of transformers in whose tables its class belongs, and registers there.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_configuration(ours: ModuleType) -> None:
    from transformers import AutoConfig

    AutoConfig.register(ours.AudioLlmConfig.model_type, ours.AudioLlmConfig, exist_ok=True)


def _register_processor(ours: ModuleType) -> None:
    from audiollm.configuration import AudioLlmConfig
    from transformers import AutoProcessor

    AutoProcessor.register(AudioLlmConfig, ours.AudioLlmProcessor, exist_ok=True)


def _register_models(ours: ModuleType) -> None:
    from audiollm.configuration import AudioLlmConfig
    from transformers import AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    for auto_class in (AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq):
        auto_class.register(AudioLlmConfig, ours.AudioLlmForConditionalGeneration, exist_ok=True)
    # The any-to-any pipeline reads the names of supported classes here; `register` does not write them.
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[AudioLlmConfig.model_type] = ours.AudioLlmForConditionalGeneration.__name__


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
    "audiollm.pipeline_audiollm": _register_pipeline,
}
#: Modules of transformers that hold tables, and ours that belong in them.
TABLES = {
    "transformers.models.auto.configuration_auto": "audiollm.configuration.configuration_audiollm",
    "transformers.models.auto.processing_auto": "audiollm.processing.processing_audiollm",
    "transformers.models.auto.modeling_auto": "audiollm.modeling_audiollm",
    "transformers.pipelines": "audiollm.pipeline_audiollm",
}


def _after_import(module: ModuleType) -> None:
    if module.__name__ in REGISTERED:
        REGISTERED[module.__name__](module)
    elif TABLES[module.__name__] not in sys.modules:  # there already: it is being imported, and will register itself
        importlib.import_module(TABLES[module.__name__])


class _RegisteringFinder(MetaPathFinder):
    """Finds modules as the finders behind it do, and has [`_after_import`] called once each is executed."""

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

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _after_import(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Has AudioLLM's classes registered: now where transformers' tables are imported already, else when they are."""
    sys.meta_path.insert(0, _RegisteringFinder())
    for table, ours in TABLES.items():
        if table in sys.modules:
            importlib.import_module(ours)


__all__ = ["register"]
