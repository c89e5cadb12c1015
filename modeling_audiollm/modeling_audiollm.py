"""AudioLLM: a frozen Whisper encoder, a projector, and a frozen language model whose LoRA acts on rows with audio."""

import warnings
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils import TransformersKwargs, can_return_tuple, logging, torch_compilable_check

from .audio_tower import AUDIO_TOWERS
from .checkpoints import AudioLlmPreTrainedModel, scale_logits
from .configuration_audiollm import AudioLlmConfig
from .lora import MASKS_KEYWORD, add_adapters
from .projector import AudioLlmProjector, slot_counts

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
#: Name of the key-value cache in transformers' outputs and keywords: `past_key_values` before 5.24.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
#: Arguments of a call that hold audio.
AUDIO_INPUTS = ("input_features", "input_features_mask", "encoded_audio", "encoded_audio_lengths", "audio_embeds")
#: Keywords that go on to the language model: transformers' own, and what its `generate` and processors add.
KNOWN_KEYWORDS = TransformersKwargs.__optional_keys__ | {"cache_position", "mm_token_type_ids", "tokenizer"}
#: Outputs that a configuration may ask of every call.
CONFIGURED_OUTPUTS = ("output_hidden_states", "output_attentions")
#: Attribute under which a key-value cache remembers the rows that each adapter acted on, as `rows_of_adapters` gives them.
CACHE_ROWS_ATTRIBUTE = "audiollm_adapter_rows"


@dataclass
class AudioLlmModelOutputWithPast(BaseModelOutputWithPast):
    """Output of [`AudioLlmModel`], with the batch's audio tokens one after the other, `(total_slots, hidden_size)`."""

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class AudioLlmCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`AudioLlmForConditionalGeneration`], with its audio tokens `(total_slots, hidden_size)`.

    `logits` `(batch, kept positions, vocab_size)` are None in training mode with labels: the head then runs on the
    supervised positions only.
    """

    audio_hidden_states: torch.Tensor | None = None


class AudioLlmModel(AudioLlmPreTrainedModel):
    """Encoder, projector and language model without the head."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: AudioLlmConfig):
        super().__init__(config)
        self.audio_tower = AUDIO_TOWERS[config.audio_config.model_type](config.audio_config)
        # Trained weights are float32, also where a model is made in the precision of its bases.
        self.multi_modal_projector = AudioLlmProjector(config).float()
        #: The embeddings of `<audio>` and `</audio>`, `(2, hidden_size)`; the base's embedding matrix stays as it is.
        self.audio_boundary_embeds = nn.Parameter(torch.empty(2, config.text_config.hidden_size, dtype=torch.float32))
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        # After post_init, which would give LoRA's B the language model's random initialisation.
        add_adapters(self.language_model, config)
        self.freeze_bases()

    def train(self, mode: bool = True):
        """Set the mode of all but the audio tower, which stays in evaluation mode while it is frozen."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            self.audio_tower.eval()
        return self

    def encode_audio(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the encoder alone.

        Args:
            input_features: log-mel windows, `(windows, num_mel_bins, mel_frames)`.
            input_features_mask: `(windows, mel_frames)`, 1 for real frames.

        Returns:
            Frames `(windows, max_frames, d_model)` and the number of real ones, `(windows,)`.
        """
        encoded, lengths = self._run_tower(input_features, input_features_mask)
        return encoded.last_hidden_state, lengths

    def _run_tower(self, input_features, input_features_mask, **kwargs) -> tuple[Any, torch.Tensor]:
        trains = any(parameter.requires_grad for parameter in self.audio_tower.parameters())
        if trains and self.training and not self.audio_tower.training:  # unfrozen after `train()`
            self.audio_tower.train()
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            encoded = self.audio_tower(input_features, attention_mask=input_features_mask, return_dict=True, **kwargs)
        if input_features_mask is None:
            input_features_mask = input_features.new_ones(
                len(input_features), input_features.shape[2], dtype=torch.long
            )
        counts = self.audio_tower.frame_counts(input_features_mask.sum(dim=1))
        return encoded, counts.to(encoded.last_hidden_state.device)

    def _project(self, frames: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """Project encoder frames; a readout of pieces is given the language model's embeddings."""
        if self.multi_modal_projector.readout is None:
            return self.multi_modal_projector(frames, num_frames)
        embeddings = cast(nn.Embedding, self.get_input_embeddings()).weight
        if embeddings.is_meta:
            raise ValueError(
                "projector_readout='pieces' reads the language model's embeddings, which are offloaded. Keep "
                "'model.language_model.embed_tokens' in memory (device_map)."
            )
        return self.multi_modal_projector(frames, num_frames, embeddings)

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
        Return audio tokens of log-mel windows, or of encoder frames computed before.

        Returns:
            `last_hidden_state`: encoder frames `(windows, max_frames, d_model)`; `pooler_output`: audio tokens of all
            windows one after the other, `(total_slots, hidden_size)`; `hidden_states`, `attentions`: the encoder's.
        """
        if (input_features is None) == (encoded_audio is None):
            raise ValueError("Pass exactly one of input_features and encoded_audio.")
        encoded: Any = BaseModelOutput(last_hidden_state=encoded_audio)
        if input_features is not None:
            encoded, encoded_audio_lengths = self._run_tower(input_features, input_features_mask, **kwargs)
        elif encoded_audio_lengths is None:
            raise ValueError("encoded_audio needs encoded_audio_lengths, the real frames of each window.")
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=self._project(encoded.last_hidden_state, encoded_audio_lengths),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def get_placeholder_mask(self, input_ids: torch.LongTensor, num_audio_tokens: int) -> torch.Tensor:
        """
        Return the boolean mask `(batch, length)` of the audio slots.

        Raises:
            ValueError: the slots and the audio tokens are not equally many.
        """
        mask = input_ids == self.config.audio_token_id
        num_slots = mask.sum()
        torch_compilable_check(
            num_slots == num_audio_tokens,
            lambda: (
                f"input_ids has {num_slots} audio slots (id {self.config.audio_token_id}) but the audio gives "
                f"{num_audio_tokens} tokens. Prepare text and audio together with AudioLlmProcessor."
            ),
        )
        return mask

    def embed_text(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Return the base's embeddings, with the boundary vectors at `<audio>` and `</audio>`; slots hold no meaning."""
        config = self.config
        ids = config.audio_begin_token_id, config.audio_token_id, config.audio_end_token_id
        begin, slot, end = (input_ids == token_id for token_id in ids)
        try:
            embeds = self.get_input_embeddings()(input_ids.masked_fill(begin | slot | end, 0))
        except IndexError as error:
            raise IndexError(
                f"input_ids holds the id {int(input_ids.max())}, but the language model has {config.vocab_size} tokens "
                f"and the audio tokens are {min(ids)} to {max(ids)}."
            ) from error
        boundary = self.audio_boundary_embeds.to(embeds)
        embeds = torch.where(begin[..., None], boundary[0], embeds)
        return torch.where(end[..., None], boundary[1], embeds)

    def _silent_token(self) -> torch.Tensor:
        """Return an audio token of silence, `(1, hidden_size)`: every rank must run the same modules in training."""
        if any(parameter.requires_grad for parameter in self.audio_tower.parameters()):
            silence = self.audio_boundary_embeds.new_zeros(1, self.audio_tower.num_features, 1)
            frame, _ = self.encode_audio(silence)
        else:
            frame = self.audio_boundary_embeds.new_zeros(1, 1, self.config.audio_config.hidden_size)
        one = torch.ones(1, dtype=torch.long, device=frame.device)
        return self._project(frame, one)

    def _remembered_rows(self, cache: Cache | None, num_rows: int) -> dict[str, torch.Tensor | None]:
        """Return the rows that each adapter acted on when the cache was filled."""
        length = 0 if cache is None else cache.get_seq_length()
        if isinstance(length, int) and not length:
            return {}
        remembered = getattr(cache, CACHE_ROWS_ATTRIBUTE, None)
        if remembered is None:
            if not self.config.lora_adapters or not length:
                return {}
            raise ValueError(
                "The cache holds tokens that were not run by AudioLLM. Pass adapter_names: None, or an adapter's name, for "
                "each row."
            )
        rows: dict[str, torch.Tensor | None] = {}
        for name, mask in remembered.items():
            if isinstance(length, torch.Tensor):  # of a static cache, which may have been reset: empty again
                filled = (length > 0).expand(num_rows)
                mask = filled if mask is None else mask & filled.to(mask.device)
            if mask is not None and len(mask) != num_rows:
                raise ValueError(
                    f"The cache was filled with {len(mask)} rows, but the batch has {num_rows}. Pass adapter_names for "
                    "each row."
                )
            rows[name] = mask
        return rows

    def rows_of_adapters(
        self,
        inputs_embeds: torch.Tensor,
        adapter_names: list[str | None] | None,
        slots: torch.Tensor | None,
        has_audio: bool,
        cache: Cache | None,
        starts: torch.Tensor | None,
    ) -> tuple[dict[str, torch.Tensor | None], dict[str, torch.Tensor | None]]:
        """
        Decide which adapter acts where: as asked, else the first one on rows that hold audio now or, in the cache, before.

        Args:
            inputs_embeds: `(batch, length, hidden_size)`.
            slots: boolean mask `(batch, length)` of the audio's positions, None where there is no audio.
            has_audio: some slot is marked for certain.
            starts: boolean mask `(batch, length)` of packed examples' first positions; these are the rows then.

        Returns:
            For each adapter that acts its rows, a boolean mask `(rows,)`, and its positions, a float mask
            `(batch, length, 1)`; None stands for all of them.
        """
        batch, length, _ = inputs_embeds.shape
        examples = None if starts is None else starts.flatten().cumsum(dim=0) - 1
        rows: dict[str, torch.Tensor | None] = {}
        if adapter_names is not None:
            num_rows = batch if examples is None else int(examples[-1]) + 1
            if len(adapter_names) != num_rows:
                raise ValueError(
                    f"There are {len(adapter_names)} adapter names for a batch of {num_rows} rows. Pass adapter_names "
                    "with one name, or None, per row."
                )
            unknown = sorted({name for name in adapter_names if name is not None} - set(self.config.lora_adapters))
            if unknown:
                raise ValueError(f"There is no adapter {unknown}; this model has {list(self.config.lora_adapters)}.")
            for adapter in dict.fromkeys(name for name in adapter_names if name is not None):
                chosen = [name == adapter for name in adapter_names]
                mask = None if all(chosen) else torch.tensor(chosen).to(inputs_embeds.device, non_blocking=True)
                rows[adapter] = mask
        else:
            rows = self._remembered_rows(cache, batch)
            if slots is not None and self.config.lora_adapters and None not in rows.values():
                default = next(iter(self.config.lora_adapters))
                if batch == 1 and has_audio and examples is None and not rows:
                    rows[default] = None  # there is no other row that the audio could be in
                else:
                    if examples is None:
                        hears = slots.any(dim=1)
                    else:  # as many as there are positions, the most that can be
                        hears = torch.zeros_like(examples).index_add(0, examples, slots.flatten().long()) > 0
                    for others in rows.values():
                        hears = hears & ~cast(torch.Tensor, others)
                    rows[default] = hears | cast(torch.Tensor, rows[default]) if default in rows else hears
        if self.training:  # a gradient, of zero, reaches every adapter, in every process
            count = batch if examples is None else batch * length
            idle = torch.zeros(count, dtype=torch.bool, device=inputs_embeds.device)
            rows = {**dict.fromkeys(self.config.lora_adapters, idle), **rows}
        positions: dict[str, torch.Tensor | None] = {}
        for name, mask in rows.items():
            if mask is not None:
                mask = mask[:, None].expand(batch, length) if examples is None else mask[examples].view(batch, length)
                mask = mask[..., None].to(inputs_embeds.dtype).contiguous()
            positions[name] = mask
        return rows, positions

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        adapter_names: list[str | None] | None = None,
        encoded_audio: torch.Tensor | None = None,
        encoded_audio_lengths: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        for_loss: bool = False,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> AudioLlmModelOutputWithPast:
        """
        See [`AudioLlmForConditionalGeneration.forward`].

        With `for_loss`, neither a cache nor hidden states of padding are used, so that padding on the right needs no mask.
        """
        cache = given_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        unknown = sorted(kwargs.keys() - KNOWN_KEYWORDS)
        if unknown:
            raise TypeError(f"AudioLLM's forward got the unexpected arguments {unknown}.")
        for name in CONFIGURED_OUTPUTS:
            if getattr(self.config, name, False) or getattr(self.config.text_config, name, False):
                kwargs.setdefault(name, True)
        projects = input_features is not None or encoded_audio is not None
        has_audio = projects or audio_embeds is not None
        if has_audio and input_ids is None:
            raise ValueError("Audio needs input_ids, whose slots say where it goes; inputs_embeds has none.")

        audio_tokens, slots = audio_embeds, None
        if input_ids is not None:
            inputs_embeds = self.embed_text(input_ids)
            if projects:
                projected = self.get_audio_features(
                    input_features, input_features_mask, encoded_audio, encoded_audio_lengths, return_dict=True
                ).pooler_output
                given = [] if audio_embeds is None else [audio_embeds.to(projected)]
                audio_tokens = torch.cat([*given, projected])
            if audio_tokens is not None:
                slots = self.get_placeholder_mask(input_ids, audio_tokens.shape[0])
                inputs_embeds = inputs_embeds.masked_scatter(
                    slots[..., None].expand_as(inputs_embeds), audio_tokens.to(inputs_embeds)
                )
            elif input_ids.shape[1] > 1:
                self.get_placeholder_mask(input_ids, 0)
        else:
            # Embeddings of audio stand between those of `<audio>` and `</audio>`.
            slots = (cast(Any, inputs_embeds) == self.audio_boundary_embeds[0].to(inputs_embeds)).all(dim=-1)
        assert inputs_embeds is not None  # one of the two was given
        if self.training and not has_audio and adapter_names is None and torch.is_grad_enabled():
            logger.warning_once(
                "A training batch holds no audio. Text-only rows go through the frozen base alone, and train nothing; "
                "adapter_names=[name, ...] would send them through an adapter."
            )
        if self.training and not projects:
            inputs_embeds = inputs_embeds + 0.0 * self._silent_token().to(inputs_embeds)

        if use_cache is None and (for_loss or getattr(self.config, "use_cache", None) is False):
            use_cache = False
        plain = for_loss and not use_cache and cache is None and position_ids is None and not kwargs
        starts = example_starts(position_ids, attention_mask, cache)
        if starts is not None and use_cache is not False:
            # With a cache, attention would not tell a row's examples apart.
            starts, use_cache = (starts, False) if bool(starts[:, 1:].any()) else (None, use_cache)
        hears = audio_tokens is not None and len(audio_tokens) > 0
        rows, masks = self.rows_of_adapters(inputs_embeds, adapter_names, slots, hears, cache, starts)
        if self.config.lora_adapters:
            kwargs[MASKS_KEYWORD] = masks
        if plain and is_padded_on_the_right(attention_mask):
            attention_mask = None  # causal attention does not look ahead, so no token sees padding

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        filled = getattr(outputs, CACHE_NAME)
        if filled is not None:
            setattr(filled, CACHE_ROWS_ATTRIBUTE, rows)
        return AudioLlmModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE_NAME: filled},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_tokens,
        )


class AudioLlmForConditionalGeneration(AudioLlmPreTrainedModel, GenerationMixin):
    """A language model that listens: [`AudioLlmModel`] with the base's own head."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: AudioLlmConfig):
        super().__init__(config)
        self.model = AudioLlmModel(config)
        text_config = config.text_config
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()
        self.freeze_bases()

    def get_audio_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """See [`AudioLlmModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run the base's head, and what its own class does after it."""
        return scale_logits(self.lm_head(hidden_states), self.config.text_config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        adapter_names: list[str | None] | None = None,
        encoded_audio: torch.Tensor | None = None,
        encoded_audio_lengths: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        pad_logits_to_audio_ids: bool = False,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> AudioLlmCausalLMOutputWithPast:
        r"""
        Args:
            input_ids: `(batch, length)`; each audio's slots carry `config.audio_token_id`.
            input_features: log-mel windows of the batch's audios in reading order, `(windows, mel_bins, mel_frames)`.
            input_features_mask: `(windows, mel_frames)`, 1 for real frames.
            position_ids: `(batch, length)`. Where they start over within a row, and there is no attention mask, the row
                holds several examples, each of which attends to itself alone and has an adapter of its own. The first
                label of each must be -100.
            labels: `(batch, length)`, -100 where nothing is to be learned; shifted inside.
            logits_to_keep: as in transformers. A boolean mask `(batch, length)` keeps what it marks, row by row: `logits` is
                then `(marked, vocab_size)`.
            adapter_names: one per row, None for the untouched base. By default rows that hold audio use the first
                adapter, and others none.
            encoded_audio: encoder frames computed before, `(windows, max_frames, d_model)`, instead of
                `input_features`; with `encoded_audio_lengths`, `(windows,)`.
            audio_embeds: audio tokens that need no projector, `(slots, hidden_size)`: those of the batch's first slots.
                The audio of later slots is given as features.
            pad_logits_to_audio_ids: adds columns of minus infinity for the audio ids, as `generate` needs for
                processors that look up the scores of the prompt's ids.
            kwargs: transformers' own; `shift_labels` `(batch, length)`, those of the next positions, instead of `labels`.

        Raises:
            ValueError: slots and audio tokens differ in number, or both or neither of ids and embeddings are given.
        """
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel does not keep recordings with their rows. Train in a process per GPU (`accelerate launch "
                "--num_processes 2 -m audiollm.training.train ...`), or hide all but one (CUDA_VISIBLE_DEVICES=0)."
            )
        shift_labels = kwargs.pop("shift_labels", None)
        wants_loss = labels is not None or shift_labels is not None
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            adapter_names=adapter_names,
            encoded_audio=encoded_audio,
            encoded_audio_lengths=encoded_audio_lengths,
            audio_embeds=audio_embeds,
            for_loss=self.training and wants_loss,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = None
        if wants_loss:
            if labels is not None and shift_labels is None:
                shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
            loss = self._supervised_loss(hidden_states, shift_labels, kwargs.get("num_items_in_batch"))
        if not (wants_loss and self.training):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            per_row = isinstance(kept, torch.Tensor) and kept.dim() == 2
            logits = self.compute_logits(hidden_states[kept] if per_row else hidden_states[:, kept, :])
            if pad_logits_to_audio_ids:
                logits = self.pad_logits(logits)
        return AudioLlmCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
        )

    def _supervised_loss(self, hidden_states, next_labels, num_items_in_batch) -> torch.Tensor:
        """Return the cross-entropy of the next token; the head runs on supervised positions only."""
        next_labels = next_labels.to(hidden_states.device).flatten()
        (supervised,) = (next_labels != IGNORED_LABEL).nonzero(as_tuple=True)
        targets = next_labels[supervised]
        logits = self.compute_logits(hidden_states.flatten(0, 1)[supervised])
        if not len(targets):
            return logits.float().sum()
        try:
            return self.loss_function(
                logits=logits,
                labels=None,
                vocab_size=logits.shape[-1],
                shift_labels=targets,
                num_items_in_batch=num_items_in_batch,
            )
        except IndexError as error:  # on a CPU; looking before would make a GPU's host wait
            raise ValueError(
                f"labels holds the id {int(targets.max())}; expected ids below {logits.shape[-1]}. Audio tokens must be "
                f"{IGNORED_LABEL} in the labels."
            ) from error

    # ---- transformers' `generate`, for a prompt whose slots hold audio ------------------------------------------------
    # (It types its `self` as a class that it makes of this one; hence the ignored types.)

    @property
    def _padded_vocab_size(self) -> int:
        """Number of columns of scores, audio ids included."""
        config = self.config
        return max(config.audio_begin_token_id, config.audio_token_id, config.audio_end_token_id) + 1

    def pad_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Add columns of minus infinity up to the highest audio id; see [`forward`]."""
        return nn.functional.pad(logits, (0, self._padded_vocab_size - logits.shape[-1]), value=float("-inf"))

    def prepare_inputs_for_generation(  # type: ignore[override]  # the others are in kwargs
        self, input_ids, inputs_embeds: torch.Tensor | None = None, is_first_iteration: bool = False, **kwargs
    ):
        """Pass audio and adapters' names on at prefill only; the cache remembers which rows they belong to."""
        cache = given_cache(kwargs.get("cache"), kwargs.get("past_key_values"))
        # `generate` says of an assistant model that no iteration of its is the first, but its prefill needs audio as well.
        length = cache.get_seq_length() if cache is not None else None
        is_first_iteration = is_first_iteration or (isinstance(length, int) and not length)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # see above
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("encoded_audio", "encoded_audio_lengths", "audio_embeds", "adapter_names"):
                inputs.pop(name, None)
            # Prompt lookup may draft a slot, which never is the model's own choice: any other id is refused as well.
            ids = inputs["input_ids"]
            inputs["input_ids"] = ids.masked_fill(ids == self.config.audio_token_id, self.config.audio_end_token_id)
        return inputs

    def _get_candidate_generator(self, *args, **kwargs):
        """Make the scores of prompt lookup as wide as the prompt's ids."""
        generator: Any = super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]  # see above
        if isinstance(generator, PromptLookupCandidateGenerator):
            generator.vocab_size = self._padded_vocab_size
        return generator

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ):
        """Repeat rows for beams and samples. A row's windows stay together, and are encoded once for all of its beams."""
        audio = {name: model_kwargs.pop(name) for name in AUDIO_INPUTS if model_kwargs.get(name) is not None}
        names = model_kwargs.pop("adapter_names", None)
        if audio and expand_size > 1:
            if "audio_embeds" in audio and len(audio) > 1:
                raise ValueError("Beams and several samples need audio_embeds or features for all rows, not both.")
            if "input_features" in audio:
                encoded = self.model.encode_audio(audio["input_features"], audio.get("input_features_mask"))
                audio = dict(zip(("encoded_audio", "encoded_audio_lengths"), encoded))
            if "audio_embeds" in audio:
                slots = torch.ones_like(audio["audio_embeds"][:, 0], dtype=torch.long)
            else:
                slots = slot_counts(audio["encoded_audio_lengths"], self.config.stack_factor).long()
            order = self._repeated_by_row(input_ids, slots, expand_size)
            audio = {name: value.index_select(0, order.to(value.device)) for name, value in audio.items()}
        if names is not None:
            model_kwargs["adapter_names"] = [name for name in names for _ in range(expand_size)]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]  # see above
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        # Only then: sampling draws as many random numbers as there are columns, and a text-only batch is the base's.
        model_kwargs["pad_logits_to_audio_ids"] = bool((input_ids >= self.config.vocab_size).any())
        return input_ids, {**model_kwargs, **audio}

    def _repeated_by_row(self, input_ids, slots: torch.Tensor, expand_size: int) -> torch.Tensor:
        """Return indices that repeat each row's windows, of so many `slots`, as a block: w1 w2 w1 w2, not w1 w1 w2 w2."""
        row_ends = torch.eq(input_ids, self.config.audio_token_id).sum(dim=1).cumsum(dim=0).to(slots.device)
        rows = torch.searchsorted(row_ends, slots.cumsum(dim=0) - slots, right=True)
        copies = torch.arange(expand_size, device=slots.device)[:, None]
        windows = torch.arange(len(slots), device=slots.device).expand(expand_size, -1)
        return windows.flatten()[(rows * expand_size + copies).flatten().argsort(stable=True)]

    def compute_transition_scores(self, sequences, scores, *args, **kwargs):
        """Compute as transformers does, without the columns that `generate` added for the audio ids."""
        width = self.config.text_config.vocab_size
        scores = tuple(step[..., :width] for step in scores)
        return super().compute_transition_scores(sequences, scores, *args, **kwargs)  # type: ignore[misc]  # see above


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache that was passed by either of its names; the old one is deprecated where transformers has a new one."""
    if past_key_values is None:
        return cache
    if cache is not None:
        raise ValueError("cache and past_key_values are one argument. Pass one of them.")
    if CACHE_NAME == "cache":
        warnings.warn("`past_key_values` is deprecated. Pass `cache`.", FutureWarning, stacklevel=3)
    return past_key_values


def example_starts(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor | None:
    """
    Return the boolean mask `(batch, length)` of the positions where an example starts; None where rows are not packed.

    As for transformers, rows are packed where position ids start over, with neither an attention mask nor a cache.
    """
    if position_ids is None or position_ids.dim() != 2 or attention_mask is not None or cache is not None:
        return None
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    return starts


def is_padded_on_the_right(attention_mask: torch.Tensor | None) -> bool:
    """Return True where an attention mask `(batch, length)` masks only what lies behind each row's last token."""
    if attention_mask is None or attention_mask.dim() != 2:
        return False
    is_token = attention_mask.bool()
    return bool((is_token[:, :-1] >= is_token[:, 1:]).all())


__all__ = ["CACHE_NAME", "AudioLlmForConditionalGeneration", "AudioLlmModel", "AudioLlmPreTrainedModel"]
