"""
N-best rescoring: transcripts of CTC and of the language model, and of them all the one that both find likeliest.

A projector with the readout of pieces has CTC posteriors of every audio slot. CTC knows what was heard, and the language
model which words follow each other: rescoring of n-best lists (U2, Zhang et al. 2020, arXiv:2012.05481), with the base
language model's probability of the text alone beside that of the text behind the audio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from audiollm.projector import slot_counts
from transformers import StoppingCriteria, StoppingCriteriaList

from .answer_ends import AnswerEnds
from .context_words import RESCORING_BONUS, ContextTrie
from .ctc_alignment import letter_log_probabilities, slot_log_probabilities, spoken_lexicon
from .ctc_search import NUM_PREFIXES, ctc_log_likelihoods, prefix_beam_search
from .letter_search import NUM_FOLLOWED, word_trie
from .phrases import Heard, Span, hear_phrases, phrase_bound, phrase_inputs, write_phrases
from .punctuation import punctuated
from .spoken_pieces import SpokenLetters, spoken_form
from .text_likelihood import text_logprobs

#: Number of CTC's own texts among the candidates, beside the language model's greedy one. Where the model reads letters, they are
#: the likeliest of all that the search has followed, letters counted.
NUM_CTC_CANDIDATES = 32
#: Bonus of each token to the language model's log-probability of a text, without which short texts would win; chosen on
#: development clips, as is the weight of CTC's log-likelihood beside the language model's.
TOKEN_BONUS = 1.5
DEFAULT_CTC_WEIGHT = 2.0
#: Weights of the log-likelihoods of word pieces and of letters, in models that read letters: both are of the same sound.
PIECE_SHARE, LETTER_SHARE = 0.35, 0.26
#: Log-probability of each letter, in nats, of a text that has more letters than slots: it is not impossible for that.
NO_ROOM_LOGPROB = -5.0
#: Texts of known words that are searched for in the letters, beside those of word pieces.
NUM_LETTER_CANDIDATES = 32
#: By so many nats a text may be less likely to CTC than the likeliest and still be read by the language model.
HOPELESS_NATS = 50.0
#: Field of a checkpoint's generation configuration with its own settings of transcription, and one of them.
STORED_SETTINGS, WRITTEN_CANDIDATE = "audiollm_transcribe", "written_candidate"
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
        ctc_logprob: of its spoken form, in nats; minus infinity where the slots are too few for it.
        num_pieces: of its spoken form.
        letter_logprob: of its spoken form's letters, in nats; None where the model reads none.
        lm_logprob: the base language model's of its spoken form, as an answer without question or audio, in nats.
        num_lm_tokens: of that sentence.
        num_context_pieces: of the context words that it holds.
    """

    text: str
    token_ids: tuple[int, ...]
    is_finished: bool
    ctc_logprob: float = math.nan
    num_pieces: int = 0
    letter_logprob: float | None = None
    lm_logprob: float = math.nan
    num_lm_tokens: int = 0
    num_context_pieces: int = 0

    @property
    def mean_ctc_logprob(self) -> float:
        """Of CTC's log-likelihood, what falls to each word piece: how sure the projector is."""
        return self.ctc_logprob / max(self.num_pieces, 1)

    @property
    def heard_logprob(self) -> float:
        """Log-likelihood of the text for CTC, in nats: that of word pieces, or of word pieces and letters, weighed."""
        if self.letter_logprob is None:
            return self.ctc_logprob
        return PIECE_SHARE * self.ctc_logprob + LETTER_SHARE * self.letter_logprob

    def ctc_score(self, ctc_weight: float) -> float:
        """Return what speaks for the text without the language model: CTC's log-likelihood, weighed, and context words."""
        return ctc_weight * self.heard_logprob + RESCORING_BONUS * self.num_context_pieces

    @property
    def language_score(self) -> float:
        """The language model's log-probability, made up for the text's length."""
        return self.lm_logprob + TOKEN_BONUS * self.num_lm_tokens

    def score(self, ctc_weight: float) -> tuple[bool, float]:
        """Return the joint score. Texts that do not fit into the audio tokens come after all that do."""
        possible = math.isfinite(self.ctc_logprob)
        return possible, self.language_score + (self.ctc_score(ctc_weight) if possible else 0.0)


def default_ctc_weight(config) -> float:
    """Return the weight that transcripts are chosen with unless one is asked for: 0 where the model has no CTC."""
    return DEFAULT_CTC_WEIGHT if config.projector_readout == "pieces" else 0.0


def writes_candidates(generation_config) -> bool:
    """
    Return whether the language model's own transcript, written behind the audio, is among the candidates.

    That takes about half of the time. A checkpoint whose language model reads out less than CTC finds says
    `"audiollm_transcribe": {"written_candidate": false}` in its generation configuration.
    """
    return (getattr(generation_config, STORED_SETTINGS, None) or {}).get(WRITTEN_CANDIDATE, True)


def check_ctc_weight(config, ctc_weight: float) -> None:
    """Raise ValueError unless the weight is 0, or a number above 0 and the model of this configuration has CTC posteriors."""
    if isinstance(ctc_weight, bool) or not isinstance(ctc_weight, (int, float)) or not 0 <= ctc_weight < math.inf:
        raise ValueError(f"ctc_weight is {ctc_weight!r}; expected a number of 0 (off) or more, such as 1.5.")
    if ctc_weight and config.projector_readout != "pieces":
        raise ValueError(
            f"ctc_weight is {ctc_weight:g}, but this model's projector has no CTC to ask: projector_readout is "
            f"{config.projector_readout!r}. Leave ctc_weight at 0, or train a model with "
            "`--stage align --projector_readout pieces`."
        )


def check_ctc_options(options: dict[str, Any]) -> None:
    """Raise ValueError where options of `generate` have no meaning if transcripts are chosen from candidates."""
    others = sorted(name for name, value in options.items() if value != ALLOWED_OPTIONS.get(name, value is None))
    if others:
        raise ValueError(
            f"ctc_weight chooses among greedy and beam transcripts; it cannot be given with {', '.join(others)}."
        )


def best_of(candidates: Sequence[Candidate], ctc_weight: float) -> Candidate:
    """
    Return the candidate that CTC and the language model together find likeliest.

    Whether anybody speaks is for CTC alone to say: a language model has no measure of silence. Marks without a word are
    no transcript.
    """
    wordless = [one for one in candidates if not spoken_form(one.text)]
    if max(candidates, key=lambda one: one.ctc_logprob) in wordless:
        return replace(wordless[0], text="", token_ids=())
    return max((one for one in candidates if one not in wordless), key=lambda one: one.score(ctc_weight))


class CtcRescorer:
    """
    Transcribes with the language model and CTC together.

    Args:
        ctc_weight: of CTC's log-likelihood beside the language model's; more than 0.
        context: words to favour; see [`context_words`].

    Raises:
        ValueError: see [`check_ctc_weight`].
    """

    def __init__(self, model, tokenizer, ctc_weight: float, context: Sequence[str] = ()):
        check_ctc_weight(model.config, ctc_weight)
        if not ctc_weight:
            raise ValueError("ctc_weight is 0: there is nothing to choose by. Call the model's `generate`.")
        self.model, self.tokenizer, self.ctc_weight = model, tokenizer, ctc_weight
        self.lexicon = spoken_lexicon(model, tokenizer)
        letters, readout = model.config.projector_letters, model.model.multi_modal_projector.letters
        self.letters = None if letters is None else SpokenLetters(letters)
        words = [] if readout is None else readout.known_words()
        expected = [word for phrase in context for word in spoken_form(phrase).split()]
        self.words = word_trie(letters, tuple(words), tuple(expected)) if words else None
        self.context = ContextTrie(self.lexicon, context) if context else None
        ends = model.generation_config.eos_token_id
        self._end_ids = [one for one in (ends if isinstance(ends, (list, tuple)) else [ends]) if one is not None]
        self._answer_end = answer_end(tokenizer, self._end_ids)
        ids = generation_prompt(tokenizer) or [tokenizer.bos_token_id, tokenizer.eos_token_id]
        self._beginning = [one for one in ids if one is not None]
        self._names = {word for phrase in context for word in phrase.split()}
        self._writes = writes_candidates(model.generation_config)

    @torch.inference_mode()
    def choose(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        encoded_audio: torch.Tensor,
        encoded_audio_lengths: torch.Tensor,
        bounds: Sequence[int],
        adapter_names: list[str | None] | None = None,
    ) -> list[Candidate]:
        """
        Return the best text of each row, of a long window phrase by phrase.

        See [`candidates`] for the arguments.

        Several windows of a row are heard as one phrase.
        """
        audio = {"encoded_audio": encoded_audio, "encoded_audio_lengths": encoded_audio_lengths}
        spans, heard = hear_phrases(self.model, **audio) if len(encoded_audio) == len(input_ids) else ([], [])
        if max(map(len, spans), default=1) == 1:
            return self.best(input_ids, attention_mask, **audio, bounds=bounds, adapter_names=adapter_names)
        stack = self.model.config.stack_factor
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask)]

        def write(windows: list[int], parts: list[Span], before: list[list[Candidate]]) -> list[Candidate]:
            frames = [encoded_audio[window, first:end] for window, (first, end) in zip(windows, parts)]
            inputs = phrase_inputs(self.model, self.tokenizer, [prompts[window] for window in windows], frames)
            return self.best(
                **inputs,
                bounds=[min(bounds[window], phrase_bound(own)) for window, own in zip(windows, frames)],
                adapter_names=None if adapter_names is None else [adapter_names[window] for window in windows],
                before=[_joined(own).text for own in before],
                heard=[heard[window].part(span, stack) for window, span in zip(windows, parts)],
            )

        return [_joined(own) for own in write_phrases(spans, write)]

    def best(self, *args: Any, **kwargs: Any) -> list[Candidate]:
        """Return the best candidate of each row as a whole; see [`candidates`] for the arguments."""
        rows = self.candidates(*args, **kwargs)
        return [row[0] if len(row) == 1 else best_of(row, self.ctc_weight) for row in rows]

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
        before: Sequence[str] = (),
        heard: Sequence[Heard] | None = None,
    ) -> list[list[Candidate]]:
        """
        Return candidates of each row, scored by both: the language model's greedy answer, and CTC's likeliest.

        A checkpoint can leave out the greedy answer; see [`writes_candidates`].

        Args:
            input_ids, attention_mask: prompts `(batch, length)`, padded on the left, every one with audio.
            encoded_audio: encoder frames `(windows, max_frames, d_model)` of all rows in reading order. Several windows
                of a row are heard as one.
            encoded_audio_lengths: `(windows,)`.
            bounds: new tokens that each row may have.
            adapter_names: one per row; see the model.
            stop: ends the search early, from outside; there is one candidate then, what was written, without scores.
            before: text that was said before each row, which the language model reads first; empty for nothing.
            heard: what CTC hears in each row, as part of something longer; by default, in the row alone.

        Raises:
            ValueError: a row has no audio.
        """
        rows = len(input_ids)
        audio = {"encoded_audio": encoded_audio, "encoded_audio_lengths": encoded_audio_lengths}
        heard = self._heard_by_ctc(input_ids, **audio) if heard is None else heard
        written: list[tuple[Candidate, ...]] = [()] * rows
        if self._writes:
            written = self._greedy(input_ids, attention_mask, audio, bounds, adapter_names, stop)
        num_searched = NUM_CTC_CANDIDATES if self.letters is None else NUM_PREFIXES
        found: list[dict[str, Candidate]] = []
        for row in range(rows):
            if stop is not None and bool(stop(input_ids, None).any()):
                return [list(one) or [Candidate("", (), False)] for one in written]
            found_by_ctc = prefix_beam_search(heard[row].pieces, num_searched, context=self.context)
            own = [self._heard(self.lexicon.decode(classes)) for classes, _ in found_by_ctc]
            own += [self._heard(text) for text in self._found_in_letters(heard[row].letters, NUM_LETTER_CANDIDATES)]
            found.append({})
            for one in [*written[row], *own]:
                found[row].setdefault(one.text, one)
        candidates = [list(each.values()) for each in found]
        scored = []
        for texts, row_heard in zip(candidates, heard):
            all_scored = self._with_ctc(texts, *row_heard)
            first = 1 if self._writes else 0
            own = all_scored[first:]
            if self.letters is not None:
                own.sort(key=lambda one: one.ctc_score(self.ctc_weight), reverse=True)
            scored.append([*all_scored[:first], *own[:NUM_CTC_CANDIDATES]])
        return self._with_language(scored, before)

    def _greedy(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        audio: dict[str, torch.Tensor],
        bounds: Sequence[int],
        adapter_names: list[str | None] | None,
        stop: StoppingCriteria | None,
    ) -> list[tuple[Candidate, ...]]:
        """Return what the language model writes behind the audio of each row."""
        length, adapters = input_ids.shape[1], self.model.config.lora_adapters
        stopping = [AnswerEnds(length, bounds), *([stop] if stop is not None else [])]
        ids = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **audio,
            max_new_tokens=max(bounds),
            do_sample=False,
            num_beams=1,
            stopping_criteria=StoppingCriteriaList(stopping),
            # As the model does for rows that hold audio.
            adapter_names=adapter_names or [next(iter(adapters), None)] * len(input_ids),
        )
        return [(self._written(row[length : length + bound].tolist()),) for row, bound in zip(ids, bounds)]

    def punctuated(self, windows: Sequence[Sequence[str]], stop: StoppingCriteria | None = None) -> list[list[str]]:
        """Return the phrases of windows with marks and capitals; see [`punctuation.punctuated`]."""
        if self._answer_end is None:
            return [list(phrases) for phrases in windows]
        return punctuated(self.model, self.tokenizer, self._beginning, windows, self._answer_end, self._names, stop)

    @torch.inference_mode()
    def text_of(
        self,
        log_probabilities: torch.Tensor,
        num_texts: int,
        num_prefixes: int,
        before: str = "",
        letters: torch.Tensor | None = None,
        beginning: str = "",
    ) -> str:
        """
        Return the text that both find likeliest, of CTC's own alone: lower case, no punctuation.

        Args:
            log_probabilities: CTC's of one stretch of speech, `(slots, 1 + pieces)`, the blank first.
            num_texts: how many texts are compared.
            num_prefixes: width of the search for them.
            before: text that was said before, which the language model reads first.
            letters: log-probabilities of the same stretch's letters, `(slots, 2 + letters)`, where the model reads them.
            beginning: words that the text begins with, as [`sayable`] has them.
        """
        known = self.lexicon.encode(beginning)
        found = prefix_beam_search(log_probabilities, num_texts, num_prefixes, context=self.context, beginning=known)
        texts = [self.lexicon.decode(classes) for classes, _ in found]
        texts += self._found_in_letters(letters, num_texts, num_prefixes, beginning)
        unscored = [Candidate(text, (), True) for text in dict.fromkeys(texts or [beginning])]
        candidates = self._with_ctc(unscored, log_probabilities, letters)
        if len(candidates) > 1:
            (candidates,) = self._with_language([candidates], [before])
        text = best_of(candidates, self.ctc_weight).text
        return text if self.context is None else self.context.spelled(text)

    def sayable(self, text: str) -> str:
        """Return a text as CTC's word pieces spell it."""
        return self.lexicon.decode(self.lexicon.encode(text))

    def _with_language(self, rows: list[list[Candidate]], before: Sequence[str] = ()) -> list[list[Candidate]]:
        """
        Return the candidates with the language model's scores, behind the text that those of each row go on from.

        One that CTC finds hopeless, such as an answer that repeats itself up to its bound, is not read: its log-probability
        is minus infinity. It may be longer than all others together.
        """
        lasting = []
        for row in rows:
            best = max(one.heard_logprob for one in row)
            lasting.append([best - one.heard_logprob <= HOPELESS_NATS for one in row])
        sentences = [
            [self._sentence(one, text) for one in row]
            for row, text in zip(rows, before or [""] * len(rows), strict=True)
        ]
        read = [[ids for ids, lasts in zip(*each) if lasts] for each in zip(sentences, lasting)]
        found = iter([one for each in text_logprobs(self.model, [self._beginning] * len(rows), read) for one in each])
        return [
            [
                replace(one, lm_logprob=next(found) if lasts else -math.inf, num_lm_tokens=len(ids))
                for one, ids, lasts in zip(*each)
            ]
            for each in zip(rows, sentences, lasting)
        ]

    def _with_ctc(
        self, candidates: Sequence[Candidate], log_probabilities: torch.Tensor, letters: torch.Tensor | None
    ) -> list[Candidate]:
        """Return the candidates with the scores of word pieces and of letters, and their context words counted."""
        classes = [self.lexicon.encode(one.text) for one in candidates]
        logprobs = ctc_log_likelihoods(log_probabilities, classes)
        letter_logprobs = self._letter_logprobs(letters, [one.text for one in candidates])
        return [
            replace(
                one,
                ctc_logprob=ctc_logprob,
                num_pieces=len(said),
                letter_logprob=letter_logprob,
                num_context_pieces=0 if self.context is None else self.context.counted(said),
            )
            for one, said, ctc_logprob, letter_logprob in zip(candidates, classes, logprobs, letter_logprobs)
        ]

    def _found_in_letters(
        self, scores: torch.Tensor | None, num_texts: int, num_followed: int = NUM_FOLLOWED, beginning: str = ""
    ) -> list[str]:
        """Return texts of known words that fit the letters; none where the model has no list of words."""
        if scores is None or self.words is None:
            return []
        return self.words.search(scores, num_texts, num_followed, beginning)

    def _letter_logprobs(self, scores: torch.Tensor | None, texts: Sequence[str]) -> list[float] | list[None]:
        """Return the log-likelihood of each text's letters; None where the model reads none."""
        if scores is None or self.letters is None:
            return [None] * len(texts)
        classes = [self.letters.encode(text) for text in texts]
        found = ctc_log_likelihoods(scores, classes)
        return [one if math.isfinite(one) else NO_ROOM_LOGPROB * len(said) for one, said in zip(found, classes)]

    def _heard_by_ctc(self, input_ids, encoded_audio, encoded_audio_lengths) -> list[Heard]:
        """Return CTC's log-probabilities of each row."""
        config = self.model.config
        counts = (input_ids == config.audio_token_id).sum(dim=1).tolist()
        total = int(slot_counts(encoded_audio_lengths, config.stack_factor).sum())
        if 0 in counts:
            raise ValueError(f"Row {counts.index(0)} has no audio: there is nothing for CTC to hear in it.")
        if sum(counts) != total:
            raise ValueError(f"input_ids has {sum(counts)} audio slots, but the audio gives {total} tokens.")
        audio = (self.model, encoded_audio, encoded_audio_lengths, counts)
        pieces = [one.cpu() for one in slot_log_probabilities(*audio)]
        return list(map(Heard, pieces, letter_log_probabilities(*audio)))

    def _written(self, ids: list[int]) -> Candidate:
        """Return what the language model has written, up to its end."""
        end = next((place for place, one in enumerate(ids) if one in self._end_ids), None)
        ids = ids[:end]
        return Candidate(self.tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(ids), end is not None)

    def _heard(self, text: str) -> Candidate:
        """Return a text that CTC has heard, with a capital as written texts begin."""
        text = _with_capital(text if self.context is None else self.context.spelled(text))
        return Candidate(text, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), True)

    def _sentence(self, candidate: Candidate, before: str) -> list[int]:
        """Return the tokens of a candidate's spoken form as a sentence, behind the text before it."""
        sentence = _with_capital(f"{spoken_form(before)} {spoken_form(candidate.text)}".strip())
        return self.tokenizer(f"{sentence}." if sentence else "", add_special_tokens=False)["input_ids"]


def generation_prompt(tokenizer) -> list[int]:
    """
    Return the tokens by which the chat template begins an answer, such as `<|im_start|>assistant`; none where it has none.

    Behind them, a language model that was tuned for chats expects a sentence. Behind the first token of a chat it expects
    the name of a role. Where a chat begins with the tokenizer's first token, so do they.
    """
    if not tokenizer.chat_template:
        return []
    question = [{"role": "user", "content": "?"}]
    asked, open_ended = (
        tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=begins)
        for begins in (False, True)
    )
    begun = open_ended[len(asked) :] if open_ended.startswith(asked) else ""
    first = tokenizer.bos_token or ""
    if begun and asked.startswith(first) and not begun.startswith(first):
        begun = first + begun
    return tokenizer(begun, add_special_tokens=False)["input_ids"]


def answer_end(tokenizer, end_ids: Sequence[int]) -> int | None:
    """Return the token of `end_ids` by which the chat template ends an answer, or the first of them; None of none."""
    if tokenizer.chat_template:
        answer = "Yes"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        _, _, rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(answer)
        for token_id in tokenizer(rest, add_special_tokens=False)["input_ids"]:
            if token_id in end_ids:
                return token_id
    return next(iter(end_ids), None)


def _joined(phrases: Sequence[Candidate]) -> Candidate:
    """Return the text of phrases as a candidate; only of one alone are there scores."""
    if len(phrases) == 1:
        return phrases[0]
    text = " ".join(one.text for one in phrases if one.text)
    ids = tuple(token for one in phrases for token in one.token_ids)
    return Candidate(text, ids, all(one.is_finished for one in phrases))


def _with_capital(text: str) -> str:
    """Return the text with a capital, as written texts begin."""
    return text[:1].upper() + text[1:]
