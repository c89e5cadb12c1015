"""Loading, saving, merging and freezing of AudioLLM models; the adapter checkpoints of a few MB."""

import os
from copy import deepcopy
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, logging

from .checkpoints import (
    HUB_ARGUMENTS,
    changed_files,
    check_fingerprints,
    is_adapter_key,
    load_bases,
    merged_state_dict,
    modification_times,
    one_adapter,
    refuse_incomplete,
    upload_files,
    write_code,
)
from .configuration_audiollm import AudioLlmConfig
from .lora import merge_layers, refuse_foreign_adapters, reset_adapters
from .piece_readout import PieceReadout
from .quantisation import language_model_only, refuse_quantised, settle_quantised
from .safe_loading import check_finite, check_kinds, load_adapter, refuse_oversized, weights_at_hand, weights_in_files

logger = logging.get_logger(__name__)

#: Auto classes that resolve to `AudioLlmForConditionalGeneration`, in the package and in a checkpoint's `auto_map`.
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
#: Arguments of `from_pretrained` that are the model's, though the configuration has fields of the same names.
MODEL_ARGUMENTS = ("dtype", "torch_dtype", "attn_implementation", "quantization_config")
#: An adapter is read as the one file `model.safetensors`; this keeps it from being split.
ADAPTER_MAX_SHARD_SIZE = "1TB"


class AudioLlmPreTrainedModel(PreTrainedModel):
    """What the models with and without head share: loading, saving and freezing."""

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
    #: What trains stays in float32 whatever precision the frozen bases are loaded in.
    _keep_in_fp32_modules_strict = ["multi_modal_projector", "audio_boundary_embeds", "lora_A", "lora_B"]

    def post_init(self) -> None:
        """transformers' own, of a model whose shapes have been compared with what there is to fill them."""
        refuse_oversized(self)
        super().post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        boundary = getattr(module, "audio_boundary_embeds", None)
        if isinstance(boundary, nn.Parameter):
            nn.init.normal_(boundary, std=self.config.text_config.initializer_range)
        if isinstance(module, PieceReadout):
            module.reset_parameters()

    def initialize_weights(self) -> None:
        """As in transformers, which does not know LoRA: its A is drawn as peft draws it, its B is zero."""
        super().initialize_weights()
        reset_adapters(self)

    def resize_token_embeddings(  # type: ignore[override]  # never of another size
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """
        The embeddings, where their number stays as it is.

        Raises:
            ValueError: it would change: the ids of the audio tokens are those that follow the vocabulary.
        """
        size = self.config.text_config.vocab_size
        asked = size if new_num_tokens is None else new_num_tokens
        asked += -asked % (pad_to_multiple_of or 1)
        if asked != size:
            raise ValueError(
                f"The vocabulary of {size} tokens cannot be resized (to {asked}): the audio tokens have the ids "
                f"{self.config.audio_begin_token_id} to {self.config.audio_end_token_id} after it, and the base stays as "
                "it is. Resize the language model by itself, and compose a new AudioLLM with it."
            )
        return self.get_input_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen bases; what trains beside them is in float32."""
        return cast(nn.Embedding, self.get_input_embeddings()).weight.dtype

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """Names of the frozen bases' weights while checkpoints leave those out: the Trainer does not miss them then."""
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
        """Names of the weights that train by default: projector, boundary vectors and LoRA."""
        return [name for name, _ in self.named_parameters() if is_adapter_key(name)]

    def freeze_bases(self) -> None:
        """Lets projector, boundary vectors and LoRA require gradients, and nothing else."""
        for name, parameter in self.named_parameters():
            if parameter.is_floating_point():  # the others are quantised, and could not
                parameter.requires_grad_(is_adapter_key(name))

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse transformers' way of adding an adapter: its `save_pretrained` would no longer save AudioLLM's own."""
        raise NotImplementedError(
            "Add an adapter with peft.get_peft_model(model, config): it acts on all rows, on top of AudioLLM's. An adapter "
            "for chosen rows is one of lora_adapters in from_audio_text_pretrained."
        )

    def load_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse transformers' way of loading an adapter; see `add_adapter`."""
        raise NotImplementedError("Load an adapter with peft.PeftModel.from_pretrained(model, folder).")

    def enable_input_require_grads(self) -> None:
        """Lets gradients reach LoRA through checkpointed layers: on the embeddings only, never into the encoder."""
        self.disable_input_require_grads()  # once is enough
        hook = self.get_input_embeddings().register_forward_hook(_require_grads)
        self._require_grads_hook = hook
        self._require_grads_hooks = [hook]

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters train, in the words PEFT users know."""
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
        Loads a checkpoint folder or Hub repository, of any weight format.

        A checkpoint that holds only what was trained is completed with its two bases, from where its configuration
        says they came. The bases come back frozen; projector, boundary vectors and LoRA require gradients and stay in
        float32 whatever `dtype` says.

        Args:
            pretrained_model_name_or_path: folder or Hub id of the checkpoint.
            audio_model_id, text_model_id (`str`, *optional*):
                Where to find the bases instead: the same models in another place.
            ignore_base_mismatch (`bool`, *optional*):
                Go on, with a warning, when a base is not the one the adapter was trained on.
            kwargs: those of transformers' `from_pretrained`: `dtype`, `device_map`, `revision`, `token`, … Of a
                `quantization_config`, only the language model's layers are; what is saved is the usual adapter.

        Raises:
            FileNotFoundError: a base is not where the checkpoint says.
            ValueError: a base is another model than the adapter's, or the checkpoint lacks weights.
        """
        if pretrained_model_name_or_path is None:
            return cls._load(None, *model_args, config=config, **kwargs)
        if kwargs.get("state_dict") is not None:
            raise ValueError(
                f"state_dict cannot be given beside {str(pretrained_model_name_or_path)!r}, whose weights it would replace. "
                "Pass None instead of the checkpoint, with config=, or call load_state_dict afterwards."
            )
        if kwargs.get("use_safetensors") is False:
            raise ValueError(
                "use_safetensors=False asks for pickled weights, which AudioLLM neither writes nor reads."
            )
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
        if config.weight_format == "adapter":
            model, info = cls._from_adapter(pretrained_model_name_or_path, config, where, ignore_base_mismatch, kwargs)
        else:
            model, info = cls._from_whole(pretrained_model_name_or_path, model_args, config, where, kwargs)
        refuse_incomplete(info, pretrained_model_name_or_path)
        adapter = {name: each for name, each in model.named_parameters() if is_adapter_key(name)}
        check_finite(adapter, pretrained_model_name_or_path)
        model.freeze_bases()
        return (model, info) if wants_info else model

    @classmethod
    def _load(cls, path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """transformers' own loading. Of a model that is to be quantised, the language model's layers are."""
        quantisation = kwargs.get("quantization_config")
        if quantisation is None:
            return super().from_pretrained(path, *model_args, **kwargs)
        kwargs["quantization_config"] = language_model_only(quantisation)
        loaded: Any = super().from_pretrained(path, *model_args, **kwargs)
        settle_quantised(loaded[0] if isinstance(loaded, tuple) else loaded, quantisation)
        return loaded

    @classmethod
    def _from_whole(cls, path, model_args: tuple, config, where: dict[str, Any], kwargs: dict[str, Any]):
        """A checkpoint that holds everything; only safetensors are read."""
        settings = {**kwargs, "config": config, "use_safetensors": True, "output_loading_info": True}
        try:
            with weights_at_hand(weights_in_files(path, where, kwargs.get("variant"))):
                return cls._load(path, *model_args, **settings)
        except SafetensorError as error:
            raise ValueError(f"{path}: its weights are damaged or cut off ({error}); download them again.") from error

    @classmethod
    def _from_adapter(cls, path, config, where: dict[str, Any], ignore_base_mismatch: bool, kwargs: dict[str, Any]):
        stem, ending = SAFE_WEIGHTS_NAME.split(".")
        name = f"{stem}.{kwargs['variant']}.{ending}" if kwargs.get("variant") else SAFE_WEIGHTS_NAME
        adapter_file = cast(str, cached_file(path, name, **where))  # it raises rather than return None
        adapter = load_adapter(adapter_file, path)
        hub_arguments = {name: where[name] for name in HUB_ARGUMENTS if name in where}
        state, found = load_bases(config, **hub_arguments)
        check_fingerprints(config, found, ignore_base_mismatch)
        state.update(adapter)
        if kwargs.get("device_map") is not None and config.tie_word_embeddings:
            # A head that goes to the disk is looked for there by its own name.
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
        rest = {name: value for name, value in kwargs.items() if name not in where}
        with weights_at_hand(sum(value.numel() for value in state.values())):
            loaded: Any = cls._load(None, config=config, state_dict=state, output_loading_info=True, **rest)
        model, info = loaded
        check_kinds(model, adapter, path)
        model.config.name_or_path = str(path)
        if model.can_generate():
            try:
                model.generation_config = GenerationConfig.from_pretrained(path, **where)
            except OSError:
                logger.info(f"{path} has no generation_config.json; the default one is used.")
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
        Saves a folder that `from_pretrained` rebuilds, with the code it needs, and uploads it with `push_to_hub=True`.

        Args:
            save_directory: the folder; made if it is not there.
            is_main_process, state_dict: as in transformers' `save_pretrained`.
            push_to_hub (`bool`, *optional*):
                Upload the files written, to `repo_id` (the folder's name by default). `token`, `private`, `revision`,
                `create_pr` and `commit_message` say how.
            weights (`str`, *optional*):
                `"adapter"` (the default where the bases are known by id): only what was trained, a few MB.
                `"full"`: everything. `"merged"`: everything with LoRA folded into the language model, which then
                treats text-only rows like any other.
            kwargs: further ones of transformers' `save_pretrained`.

        Raises:
            ValueError: the weight format is unknown, or cannot be rebuilt because a base has no id.
            NotADirectoryError: there is a file where the folder should be.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(
                f"{str(save_directory)!r} is a file; expected a folder to save the checkpoint in."
            )
        has_ids = bool(self.config.audio_model_id and self.config.text_model_id)
        refuse_foreign_adapters(self.get_decoder())
        base_changed = any(getattr(module, "base_changed", False) for module in self.modules())
        compact = has_ids and self.config.weight_format != "merged" and not base_changed
        weights = weights or ("adapter" if compact else "full")
        if weights not in ("adapter", "full", "merged"):
            raise ValueError(f"weights is {weights!r}; expected 'adapter', 'full' or 'merged'.")
        if weights == "adapter" and not has_ids:
            raise ValueError(
                "weights='adapter' saves only what was trained, to be rebuilt from the bases, but this model was not "
                "composed from bases with ids. Save it with weights='full'."
            )
        if weights == "adapter" and base_changed:
            raise ValueError(
                "weights='adapter' saves only what was trained, but an adapter was merged into this model's base. Save it "
                "with weights='full'."
            )
        if weights != "adapter":
            refuse_quantised(self, f"weights={weights!r}")
        hub_names = ("repo_id", "token", "private", "revision", "create_pr", "commit_message")
        hub = {name: kwargs.pop(name) for name in hub_names if name in kwargs}
        before = modification_times(save_directory)
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
            upload_files(save_directory, changed_files(save_directory, before), **hub)

    def _save(self, weights: str, save_directory, is_main_process: bool, state_dict, **kwargs) -> None:
        self.config.weight_format = weights
        for part in (self.config.audio_config, self.config.text_config):
            part.name_or_path = ""  # a folder of this machine; the bases' ids say where they come from
        self.config.auto_map = dict(AUTO_MAP)
        if weights == "adapter":
            state_dict = self.state_dict() if state_dict is None else state_dict
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            state_dict = {k: v for k, v in state_dict.items() if is_adapter_key(k) or k in trained}
            kwargs["max_shard_size"] = ADAPTER_MAX_SHARD_SIZE
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            write_code([_own_class(self), type(self.config)], save_directory)

    def merge_adapters(self):
        """
        Fold LoRA into the language model, in place and where its weights lie, and return the model.

        There are no masks then, and no adapter's cost: for deployment. Text-only rows run the adapted weights too, so
        that the base's own ability is no longer kept exactly.

        Raises:
            ValueError: there are several adapters, so that no single merge can stand for all, or the base is quantised
                or offloaded.
        """
        refuse_quantised(self, "merge_adapters")
        merge_layers(self.get_decoder(), one_adapter(self.config))
        self.config.lora_rank, self.config.lora_adapters, self.config.weight_format = 0, {}, "merged"
        self.freeze_bases()
        return self


def _own_class(model: nn.Module) -> type:
    """The model's class, not the one that PyTorch puts over it while the model is sharded."""
    return next(cls for cls in type(model).__mro__ if not cls.__module__.startswith("torch."))


def _require_grads(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    output.requires_grad_(True)


__all__ = ["AUTO_MAP", "MODEL_AUTO_CLASSES", "AudioLlmPreTrainedModel"]
