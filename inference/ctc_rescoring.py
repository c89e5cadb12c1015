"""
N-best rescoring: transcripts of the language model and of CTC, and of them all the one that both find likeliest.

A projector with the readout of pieces has CTC posteriors of every audio slot. CTC and the language model err
differently, so candidates of both, scored by both, hold fewer errors than either's own best: hybrid CTC/attention
decoding (Watanabe et al. 2017), as rescoring of N-best lists (U2, Zhang et al. 2020, arXiv:2012.05481).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from audiollm.modeling_audiollm import CACHE_NAME
from audiollm.projector import slot_counts
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache

from .answer_ends import AnswerEnds
from .ctc_search import ctc_log_likelihoods, prefix_beam_search
from .spoken_pieces import SpokenLexicon

#: Beams of the language model, and how many texts of CTC's own are candidates besides.
NUM_BEAMS, NUM_CTC_CANDIDATES = 4, 6
#: Weight of CTC's log-likelihood beside the language model's, chosen on development clips.
DEFAULT_CTC_WEIGHT = 1.5
#: Rows times positions of one pass that scores candidates, and positions of one pass of the head.
MAX_SCORED_POSITIONS, MAX_HEAD_POSITIONS = 8192, 512
#: Only a search that is greedy can be chosen from anew.
ALLOWED_OPTIONS = {"do_sample": False, "num_beams": 1}


@dataclass(frozen=True)
class Candidate:
    """
    A transcript with what speaks for it.

    Attributes:
        text: without special tokens or surrounding space.
        token_ids: as the language model writes it, without its end.
        is_finished: whether it ends by itself, not at the bound on new tokens.
        lm_logprob: of the tokens, and of the end where it is finished, in nats.
        ctc_logprob: of its spoken form, in nats; minus infinity where the slots are too few for it.
    """

    text: str
    token_ids: tuple[int, ...]
    is_finished: bool
    lm_logprob: float = math.nan
    ctc_logprob: float = math.nan

    @property
    def num_tokens(self) -> int:
        """Tokens that `lm_logprob` is of."""
        return len(self.token_ids) + self.is_finished

    def score(self, ctc_weight: float) -> tuple[bool, float]:
        """Return the joint score. Texts that do not fit into the audio tokens come after all that do."""
        possible = math.isfinite(self.ctc_logprob)
        ctc = ctc_weight * self.ctc_logprob if possible else 0.0
        return possible, self.lm_logprob + ctc


def default_ctc_weight(config) -> float:
    """Return the weight that transcripts are chosen with unless one is asked for: 0 where the model has no CTC."""
    return DEFAULT_CTC_WEIGHT if config.projector_readout == "pieces" else 0.0


def check_ctc_weight(config, ctc_weight: float) -> None:
    """
    Refuse a weight that is none, or a model without CTC.

    Args:
        config: the model's.

    Raises:
        ValueError: the weight is no number of 0 or more, or the model's projector has no readout of pieces.
    """
    if isinstance(ctc_weight, bool) or not isinstance(ctc_weight, (int, float)) or not 0 <= ctc_weight < math.inf:
        raise ValueError(f"ctc_weight is {ctc_weight!r}; expected a number of 0 (off) or more, such as 1.5.")
    if ctc_weight and config.projector_readout != "pieces":
        raise ValueError(
            f"ctc_weight is {ctc_weight:g}, but this model's projector has no CTC to ask: projector_readout is "
            f"{config.projector_readout!r}. Leave ctc_weight at 0, or train a model with "
            "`--stage align --projector_readout pieces`."
        )


def check_ctc_options(options: dict[str, Any]) -> None:
    """
    Refuses options of `generate` that have no meaning where transcripts are chosen from candidates.

    Raises:
        ValueError: there are such.
    """
    others = sorted(name for name, value in options.items() if value != ALLOWED_OPTIONS.get(name, value is None))
    if others:
        raise ValueError(
            f"ctc_weight chooses among greedy and beam transcripts; it cannot be given with {', '.join(others)}."
        )


class CtcRescorer:
    """
    Transcribes with the language model and CTC together.

    Args:
        model: an [`AudioLlmForConditionalGeneration`] whose projector has the readout of pieces.
        tokenizer: the language model's.
        ctc_weight: of CTC's log-likelihood beside the language model's; more than 0.

    Raises:
        ValueError: see [`check_ctc_weight`].
    """

    def __init__(self, model, tokenizer, ctc_weight: float):
        check_ctc_weight(model.config, ctc_weight)
        if not ctc_weight:
            raise ValueError("ctc_weight is 0: there is nothing to choose by. Call the model's `generate`.")
        self.model, self.tokenizer, self.ctc_weight = model, tokenizer, ctc_weight
        readout = model.model.multi_modal_projector.readout
        self.lexicon = SpokenLexicon(tokenizer, readout.lexicon.bool().nonzero().flatten().tolist())
        ends = model.generation_config.eos_token_id
        self._end_ids = [one for one in (ends if isinstance(ends, (list, tuple)) else [ends]) if one is not None]

    def choose(self, *args: Any, **kwargs: Any) -> list[Candidate]:
        """The best candidate of each row; see [`candidates`] for the arguments."""
        return [max(row, key=lambda one: one.score(self.ctc_weight)) for row in self.candidates(*args, **kwargs)]

    @torch.inference_mode()
    def candidates(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        encoded_audio: torch.Tensor,
        encoded_audio_lengths: torch.Tensor,
        bounds: Sequence[int],
        adapter_names: list[str | None] | None = None,
        stop: StoppingCriteria | None = None,
    ) -> list[list[Candidate]]:
        """
        Return candidates of each row, scored by both: the greedy answer, those of the beams, and CTC's own.

        Prompt and audio go through the language model once for all of them.

        Args:
            input_ids, attention_mask: prompts `(batch, length)`, padded on the left, every one with audio.
            encoded_audio: encoder frames `(windows, max_frames, d_model)` of all rows in reading order. Several windows
                of a row are heard as one.
            encoded_audio_lengths: `(windows,)`.
            bounds: new tokens that each row may have.
            adapter_names: one per row; see the model.
            stop: ends the writing early, from outside; there is one candidate then, what was written, without scores.

        Raises:
            ValueError: a row has no audio.
        """
        rows = len(input_ids)
        audio = {"encoded_audio": encoded_audio, "encoded_audio_lengths": encoded_audio_lengths}
        heard = self._slot_log_probabilities(input_ids, **audio)
        adapters = self.model.config.lora_adapters
        names = adapter_names or [next(iter(adapters), None)] * rows  # as the model does for rows that hold audio
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask}
        cache = self._prefill(prompt, audio, names)
        stopping = [AnswerEnds(input_ids.shape[1], bounds), *([stop] if stop is not None else [])]
        options: dict[str, Any] = {
            **prompt,
            "max_new_tokens": max(bounds),
            "do_sample": False,
            "stopping_criteria": StoppingCriteriaList(stopping),
            "adapter_names": names,
        }
        greedy = self.model.generate(**options, num_beams=1, **{CACHE_NAME: copy.deepcopy(cache)})
        length = input_ids.shape[1]
        if stop is not None and bool(stop(greedy, None).any()):
            return [[self._written(ids.tolist())] for ids in greedy[:, length:]]
        repeated = copy.deepcopy(cache)
        repeated.batch_repeat_interleave(NUM_BEAMS)
        beams = self.model.generate(
            **options,
            num_beams=NUM_BEAMS,
            num_return_sequences=NUM_BEAMS,
            length_penalty=0.0,
            **{CACHE_NAME: repeated},
        )
        found: list[dict[str, Candidate]] = []
        for row, bound in enumerate(bounds):
            written = [greedy[row, length:], *beams[row * NUM_BEAMS : (row + 1) * NUM_BEAMS, length:]]
            own = [self._written(ids[:bound].tolist()) for ids in written]
            own += [self._heard(classes) for classes, _ in prefix_beam_search(heard[row], NUM_CTC_CANDIDATES)]
            found.append({})
            for one in own:
                found[row].setdefault(one.text, one)
        candidates = [list(each.values()) for each in found]
        lm = iter(self._lm_logprobs(prompt, cache, names, candidates))
        return [
            [
                Candidate(one.text, one.token_ids, one.is_finished, next(lm), ctc)
                for one, ctc in zip(row, ctc_log_likelihoods(scores, [self.lexicon.encode(one.text) for one in row]))
            ]
            for row, scores in zip(candidates, heard)
        ]

    def _slot_log_probabilities(self, input_ids, encoded_audio, encoded_audio_lengths) -> list[torch.Tensor]:
        """CTC's log-probabilities of each row's slots, `(slots, 1 + pieces)`."""
        projector, config = self.model.model.multi_modal_projector, self.model.config
        embeddings = self.model.get_input_embeddings().weight
        scores = projector.log_probabilities(encoded_audio, encoded_audio_lengths, embeddings)
        counts = (input_ids == config.audio_token_id).sum(dim=1).tolist()
        total = int(slot_counts(encoded_audio_lengths, config.stack_factor).sum())
        if 0 in counts:
            raise ValueError(f"Row {counts.index(0)} has no audio: there is nothing for CTC to hear in it.")
        if sum(counts) != total:
            raise ValueError(f"input_ids has {sum(counts)} audio slots, but the audio gives {total} tokens.")
        return list(scores.float().cpu().split(counts))

    def _prefill(self, prompt: dict[str, torch.Tensor], audio: dict[str, torch.Tensor], names) -> Cache:
        """Keys and values of all but the prompts' last tokens."""
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        mask = prompt["attention_mask"]
        return self.model.model(
            input_ids=prompt["input_ids"][:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=_positions(mask)[:, :-1],
            **{CACHE_NAME: cache},
            use_cache=True,
            adapter_names=names,
            **audio,
        )[CACHE_NAME]

    def _written(self, ids: list[int]) -> Candidate:
        """Return what the language model has written, up to its end."""
        end = next((place for place, one in enumerate(ids) if one in self._end_ids), None)
        ids = ids[:end]
        return Candidate(self.tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(ids), end is not None)

    def _heard(self, classes: Sequence[int]) -> Candidate:
        """Return what CTC has heard, with a capital as written texts begin."""
        text = self.lexicon.decode(classes)
        text = text[:1].upper() + text[1:]
        return Candidate(text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), True)

    def _lm_logprobs(self, prompt, cache: Cache, names, candidates: Sequence[Sequence[Candidate]]) -> list[float]:
        """The language model's log-probability of each candidate of each row, one after the other."""
        owners = [row for row, each in enumerate(candidates) for _ in each]
        every = [one for each in candidates for one in each]
        positions = prompt["input_ids"].shape[1] + max(len(one.token_ids) for one in every)
        step = max(1, MAX_SCORED_POSITIONS // positions)
        return [
            logprob
            for start in range(0, len(every), step)
            for logprob in self._lm_logprobs_of(
                prompt, cache, names, owners[start : start + step], every[start : start + step]
            )
        ]

    def _lm_logprobs_of(self, prompt, cache: Cache, names, owners: list[int], every: list[Candidate]) -> list[float]:
        device = prompt["input_ids"].device
        index = torch.tensor(owners, device=device)
        cache = copy.deepcopy(cache)
        cache.batch_select_indices(index)
        # The prompt's last token, and the candidate's after it: each says how likely what follows is.
        said = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(one.token_ids, dtype=torch.long) for one in every], batch_first=True
        ).to(device)
        lengths = torch.tensor([len(one.token_ids) for one in every], device=device)
        ids = torch.cat([prompt["input_ids"][index, -1:], said], dim=1)
        real = torch.arange(ids.shape[1], device=device)[None] <= lengths[:, None]
        mask = torch.cat([prompt["attention_mask"][index, :-1], real.long()], dim=1)
        hidden = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -ids.shape[1] :],
            **{CACHE_NAME: cache},
            use_cache=True,
            adapter_names=[names[row] for row in owners],
        ).last_hidden_state
        finished = torch.tensor([one.is_finished for one in every], device=device)
        is_end = real & (torch.arange(ids.shape[1], device=device)[None] == lengths[:, None])
        counted = real & ~(is_end & ~finished[:, None])
        targets = torch.nn.functional.pad(said, (0, 1))[counted]
        ends = torch.tensor(self._end_ids, device=device)
        logprobs = []
        for part, target, end in zip(
            hidden[counted].split(MAX_HEAD_POSITIONS),
            targets.split(MAX_HEAD_POSITIONS),
            is_end[counted].split(MAX_HEAD_POSITIONS),
        ):
            scores = self.model.compute_logits(part).float().log_softmax(dim=-1)
            said_so = scores.gather(-1, target[:, None])[:, 0]
            logprobs.append(torch.where(end, scores[:, ends].logsumexp(dim=-1), said_so) if len(ends) else said_so)
        of_row = counted.nonzero()[:, 0]
        sums = torch.zeros(len(every), device=device).index_add_(0, of_row, torch.cat(logprobs))
        return sums.tolist()


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids as `generate` gives them to rows that are padded on the left."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


__all__ = [
    "DEFAULT_CTC_WEIGHT",
    "Candidate",
    "CtcRescorer",
    "check_ctc_options",
    "check_ctc_weight",
    "default_ctc_weight",
]
