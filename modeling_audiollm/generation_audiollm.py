"""Generation with audio: rows that own several windows, and ids past the head's width."""

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from .configuration_audiollm import AudioLlmConfig
from .projector import slot_counts

#: Name of the key-value cache in transformers' outputs and keywords: `past_key_values` before 5.24.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """
    Return the cache that was passed by either of its names.

    Raises:
        ValueError: two were passed.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are one argument. Pass one of them.")
    return past_key_values if cache is None else cache


class OnOwnVocabulary(LogitsProcessor):
    """Gives a processor that compares with scores of its own as many columns as those have; the audio ids' stay out."""

    def __init__(self, processor: LogitsProcessor, vocab_size: int):
        self.processor, self.vocab_size = processor, vocab_size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        own: Any = self.processor(input_ids, scores[:, : self.vocab_size])
        return nn.functional.pad(own, (0, scores.shape[-1] - self.vocab_size), value=float("-inf"))  # type: ignore


class AudioLlmGenerationMixin(GenerationMixin):
    """
    transformers' `generate` for a prompt whose slots hold audio, to be mixed into a model class.

    (transformers types its own mixin's `self` as the model that it becomes part of; hence the ignored types.)
    """

    config: AudioLlmConfig

    @property
    def _padded_vocab_size(self) -> int:
        """Columns of scores that every id of a prompt, audio ids included, finds one in."""
        config = self.config
        return max(config.audio_begin_token_id, config.audio_token_id, config.audio_end_token_id) + 1

    def pad_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """
        Adds columns of minus infinity up to the highest audio id.

        Processors such as the repetition penalty look up the scores of the prompt's ids, audio ids included.
        """
        return nn.functional.pad(logits, (0, self._padded_vocab_size - logits.shape[-1]), value=float("-inf"))

    def prepare_inputs_for_generation(  # type: ignore[override]  # the other arguments are in kwargs
        self, input_ids, inputs_embeds: torch.Tensor | None = None, is_first_iteration: bool = False, **kwargs
    ):
        """Pass audio and adapters' names on at prefill only; the cache remembers which rows they belong to."""
        cache = given_cache(kwargs.get("cache"), kwargs.get("past_key_values"))
        # `generate` says of an assistant model that no iteration of its is the first, but its prefill needs audio as well.
        length = cache.get_seq_length() if cache is not None else None
        is_first_iteration = is_first_iteration or (isinstance(length, int) and not length)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # self is a model, see above
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("encoded_audio", "encoded_audio_lengths", "audio_embeds", "adapter_names"):
                inputs.pop(name, None)
            # Prompt lookup may draft a slot, which never is the model's own choice: any other id is refused as well.
            ids = inputs["input_ids"]
            inputs["input_ids"] = ids.masked_fill(ids == self.config.audio_token_id, self.config.audio_end_token_id)
        return inputs

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        """Classifier-free guidance runs the model on text alone, whose scores have no columns for the audio ids."""
        processors: Any = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]  # self is a model
        for index, processor in enumerate(processors):
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processors[index] = OnOwnVocabulary(processor, self.config.vocab_size)
        return processors

    def _get_candidate_generator(self, *args, **kwargs):
        """Prompt lookup tries its drafts on scores of its own, which must be as wide as the prompt's ids."""
        generator: Any = super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]  # self is a model
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
        """
        Repeats rows for beams and samples. A row's windows stay together: w1 w2 w1 w2, not w1 w1 w2 w2.

        They go through the encoder before that, once for all of a row's beams.
        """
        audio_names = ("input_features", "input_features_mask", "encoded_audio", "encoded_audio_lengths")
        embeds = model_kwargs.pop("audio_embeds", None)
        audio = {name: model_kwargs.pop(name) for name in audio_names if model_kwargs.get(name) is not None}
        names = model_kwargs.pop("adapter_names", None)
        if "input_features" in audio and expand_size > 1:
            features, mask = audio.pop("input_features"), audio.pop("input_features_mask", None)
            encoded, lengths = self.model.encode_audio(features, mask)  # type: ignore[attr-defined]  # self is a model
            audio.update(encoded_audio=encoded, encoded_audio_lengths=lengths)
        if audio and expand_size > 1:
            order = self._window_order(input_ids, audio["encoded_audio_lengths"], expand_size)
            audio = {name: value.index_select(0, order.to(value.device)) for name, value in audio.items()}
        if embeds is not None and expand_size == 1:
            audio["audio_embeds"] = embeds
        elif embeds is not None:
            if audio:
                raise ValueError("Beams and several samples need audio_embeds or features for all rows, not both.")
            row_slots = (input_ids == self.config.audio_token_id).sum(dim=1).tolist()
            rows = [row for row in embeds.split(row_slots) for _ in range(expand_size)]
            audio["audio_embeds"] = torch.cat(rows)
        if names is not None:
            model_kwargs["adapter_names"] = [name for name in names for _ in range(expand_size)]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]  # self is a model
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        # Only then: sampling draws as many random numbers as there are columns, and a text-only batch is the base's.
        model_kwargs["pad_logits_to_audio_ids"] = bool((input_ids >= self.config.vocab_size).any())
        return input_ids, {**model_kwargs, **audio}

    def _window_order(self, input_ids, lengths: torch.Tensor, expand_size: int) -> torch.Tensor:
        """
        Indices that repeat each row's windows as a block, found by matching slots to windows in reading order.

        Args:
            lengths: encoder frames of each window, `(windows,)`.
        """
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
        scores = tuple(step[..., :width] for step in scores)
        return super().compute_transition_scores(sequences, scores, *args, **kwargs)  # type: ignore[misc]  # self is a model


__all__ = ["CACHE_NAME", "AudioLlmGenerationMixin", "given_cache"]
