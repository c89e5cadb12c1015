"""
Stage *align*, the CTC warm start: teaches the projector to speak the language model's embeddings, without running it.

The projector's tokens are scored against the frozen embeddings of the word pieces that occur in the transcripts, plus
a learned blank, under connectionist temporal classification (Graves et al. 2006), from the encoder's cached output.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import datasets
import torch
from audiollm.command_line.option_parser import CheckedOptions, one_of, option
from audiollm.corpora.examples import Example
from audiollm.corpora.normalisers import NORMALISERS
from audiollm.corpora.rows import ASSISTANT
from audiollm.corpora.sources import Examples, settle_problems
from audiollm.inference.letter_search import add_words
from audiollm.inference.spoken_pieces import SpokenLetters, SpokenLexicon, piece_ids, spoken_form
from audiollm.processing.conversations import AUDIO_PLACEHOLDER
from audiollm.projector import LETTER_FRAMES, PieceReadout, slot_counts
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments

from .arguments import DataArguments, TrainingError
from .augmentation import recordings_below
from .collator import pad_windows
from .feature_cache import FeatureCache
from .instruct import InstructData, open_training_data
from .posteriors import BANK_FILE, collect_posteriors
from .preparing import Prepared
from .rows import EXAMPLE_ERRORS, ExampleEncoder
from .trainer import AudioLlmTrainer

#: Filler of gaps in texts, and so the look of a slot without a word: the first that is one piece by itself.
#: Measured zero-shot on SmolLM2, words with such gaps cost 1.1 nats a token, with gaps of the mean embedding 2.9.
GAP_PIECES = ("_", " ", "-")
#: Most by which a channel's gain may be raised when the projector's first norm is fitted to the features.
MAX_INPUT_GAIN = 5.0
#: Clips that the projector's input gain and the hand-over are fitted on.
CLIPS_TO_FIT = 300
#: Share of the mean variance added when the constant combination of the last layer's inputs is fitted.
CONSTANT_FIT_RIDGE = 1e-3
#: Slots whose logits over the whole lexicon are in memory at a time.
SLOTS_PER_CHUNK = 1024
#: Log-probability of slots past a clip's end, which no path goes through.
NEVER = -30.0


@dataclass
class AlignArguments(CheckedOptions):
    """Options of stage align."""

    _argument_group_name = "stage align"

    transcript_normaliser: Annotated[str, one_of(NORMALISERS)] = option(
        "basic",
        "Normaliser that makes transcripts of responses: basic (lower case, no punctuation, no combining marks), english "
        "(Whisper's, which also writes numbers as digits) or none, for scripts with vowel signs, such as Hindi's.",
    )
    no_speech_dir: str | None = option(
        None,
        "Folder of recordings in which nobody speaks, such as noise, music and silence, of up to 30 s each: the "
        "projector learns to hear nothing in them.",
    )

    def __post_init__(self):
        super().__post_init__()
        self.without_speech()

    def without_speech(self) -> list[Example]:
        """Return an example for each recording of `no_speech_dir`, without a response."""
        if self.no_speech_dir is None:
            return []
        paths = recordings_below(self.no_speech_dir, "--no_speech_dir")
        return [Example(AUDIO_PLACEHOLDER, (path,), "") for path in paths]


class TranscribedClips(Sequence[Any]):
    """
    The rows of one recording whose response is its transcript, each read anew when it is asked for.

    Others are left out, and counted in print. Then come the examples `without_speech`, whose transcript is None.
    """

    def __init__(self, data: InstructData, normaliser: str, without_speech: Sequence[Example] = ()):
        self.data = data
        #: Examples, the index among them, and the normalised transcript.
        self._clips: list[tuple[Sequence[Any], int, str | None]] = []
        left_out: Counter[str] = Counter()
        for source in data.sources:
            for index, example in enumerate(source):
                answers = [message["content"] for message in example.messages if message["role"] == ASSISTANT]
                transcript = NORMALISERS[normaliser](answers[-1])
                if len(example.recordings) != 1:
                    left_out["with several recordings" if example.recordings else "without audio"] += 1
                elif len(answers) != 1:
                    left_out["of several turns"] += 1
                elif not any(map(str.isalnum, transcript)):
                    left_out["whose response has no words"] += 1
                else:
                    self._clips.append((source, index, transcript))
        if total := left_out.total():
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
            print(f"The warm start leaves out {total} of {total + len(self)} rows: {counts}.")
        if not self._clips:
            raise TrainingError("No row can be aligned: expected one recording, and its transcript as the response.")
        self._clips += [(without_speech, index, None) for index in range(len(without_speech))]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index):
        examples, place, _ = self._clips[index]
        return examples[place]

    def encode(self, prepared: Prepared) -> list[tuple[str, str | None]]:
        """Return cache key and transcript of all clips, encoded if need be; bad ones are refused, or left out aloud."""
        encoder = ExampleEncoder(prepared.processor, prepared.cache)
        problems = {source.source.name: list(source.problems) for source in self.data.sources}
        usable, found = [], []
        for one in tqdm(self._clips, desc="Checking examples", unit="example", disable=not prepared.progress):
            examples, place, transcript = one
            clip = examples[place]
            try:
                found.append((encoder.measure(clip.recordings[0])[0], transcript))
                usable.append(one)
            except EXAMPLE_ERRORS as error:
                name = examples.source.name if isinstance(examples, Examples) else "--no_speech_dir"
                problems.setdefault(name, []).append((clip.where, str(error)))
        settle_problems(list(problems.items()), self.data.skip_bad)
        if not usable:
            raise TrainingError("No row can be aligned: no recording can be decoded.")
        self._clips = usable
        encoder.add_features(self, prepared.progress)
        return found


# ----------------------------------------------------------------------------------------------------- scores and loss


def piece_ctc_loss(
    queries: torch.Tensor,
    blank_logits: torch.Tensor,
    directions: torch.Tensor,
    slots: torch.Tensor,
    targets: torch.Tensor,
    target_lengths: torch.Tensor,
) -> torch.Tensor:
    """
    Return the sum of the clips' CTC losses, as `torch.nn.functional.ctc_loss` of the logits' `log_softmax` gives it.

    The recursion runs over the transcript's pieces alone. The logits of all other pieces only take part in the
    normaliser: they are computed a chunk of slots at a time, and again for the gradients, instead of being kept.

    Args:
        queries, blank_logits: `(clips, max_slots, hidden)` and `(clips, max_slots)`, of [`PieceReadout.queries`].
        directions: of the pieces, `(pieces, hidden)`; in half precision where the products are to be computed so.
        slots, target_lengths: `(clips,)`, of each clip.
        targets: classes `(clips, max_targets)`, padded with anything; piece `n` is class `n + 1`.
    """
    if not targets.shape[1]:  # nobody speaks in any clip
        targets = targets.new_zeros(len(targets), 1)
    real = torch.arange(queries.shape[1], device=queries.device) < slots[:, None]
    chunks = queries[real].to(directions.dtype).split(SLOTS_PER_CHUNK)
    normaliser = torch.cat([checkpoint(_normaliser, chunk, directions, use_reentrant=False) for chunk in chunks])
    normaliser = torch.logaddexp(normaliser, blank_logits[real])

    # A piece that comes twice is one class: that of its first place.
    places = (targets[:, :, None] == targets[:, None, :]).int().argmax(dim=2)
    spoken = directions[(targets - 1).clamp(min=0)].float()
    logits = torch.cat([blank_logits[:, :, None], queries @ spoken.transpose(1, 2)], dim=2)
    scores = logits.new_full(logits.shape, NEVER)
    scores[real] = logits[real] - normaliser[:, None]
    losses = nn.functional.ctc_loss(
        scores.transpose(0, 1), places + 1, slots, target_lengths, reduction="none", zero_infinity=True
    )
    # torch takes the scores for log-probabilities of all classes, and adds their exponential to the gradient. The loss
    # of a clip with more pieces than slots is zero, and so is its gradient.
    alignable = real & (losses.detach() > 0)[:, None]
    added = scores.exp()[alignable].sum()
    return losses.sum() - (added - added.detach())


def _normaliser(queries: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    return (queries @ directions.T).float().logsumexp(dim=1)


class CtcAligner(nn.Module):
    """
    A model's projector, trained in place, with the scoring of its readout of pieces, or of one for this stage only.

    The blank looks like `blank_id`, a token that text fills gaps with: the language model takes it for nothing said.
    """

    def __init__(self, model, token_ids: Sequence[int], blank_id: int):
        super().__init__()
        self.projector = model.model.multi_modal_projector
        # Not a member: the language model is not part of what is trained and saved here.
        self._input_embeddings = model.get_input_embeddings
        embeddings = self.embeddings
        if self.projector.readout is None:
            self.own_readout = PieceReadout(*embeddings.shape).to(embeddings.device)
        with torch.no_grad():
            self.readout.lexicon.fill_(False)
            self.readout.lexicon[torch.tensor(list(token_ids), device=embeddings.device)] = True
            self.readout.blank.copy_(embeddings[blank_id])
        # Neither belongs to what CTC can tell.
        self.readout.blank.requires_grad_(False)
        self.readout.residual_gain.requires_grad_(False)
        if self.projector.letters is not None:
            self.projector.letters.requires_grad_(True)

    @property
    def embeddings(self) -> torch.Tensor:
        """Input embeddings of the language model, `(vocab_size, hidden_size)`."""
        return self._input_embeddings().weight.detach()

    @property
    def readout(self) -> PieceReadout:
        """Readout that scores: the projector's own, or one for this stage only."""
        return self.own_readout if self.projector.readout is None else self.projector.readout

    def forward(
        self,
        encoded_audio,
        encoded_audio_lengths,
        targets,
        target_lengths,
        letters=None,
        letter_lengths=None,
        **kwargs,
    ) -> dict[str, Any]:
        """Return the CTC loss per word piece, and that per letter added; letters of length -1 do not count."""
        common, _, directions = self.readout.table(self.embeddings)
        stacked, mask = self.projector.stack(encoded_audio.float(), encoded_audio_lengths)
        projected = stacked.new_zeros(*mask.shape, len(common))
        projected[mask] = self.projector.project(stacked, mask).float()
        queries, blank_logits = self.readout.queries(projected, common)
        if torch.is_autocast_enabled(queries.device.type):
            directions = directions.to(torch.get_autocast_dtype(queries.device.type))
        slots = slot_counts(encoded_audio_lengths, self.projector.stack_factor)
        loss = piece_ctc_loss(queries, blank_logits, directions, slots, targets, target_lengths)
        loss = loss / target_lengths.sum().clamp(min=1)
        if letters is not None:
            scores, slots = self.projector.letters(encoded_audio.float(), encoded_audio_lengths)
            lengths = letter_lengths.clamp(min=0)
            losses = nn.functional.ctc_loss(
                scores.transpose(0, 1), letters, slots, lengths, reduction="none", zero_infinity=True
            )
            loss = loss + (losses * (letter_lengths >= 0)).sum() / lengths.sum().clamp(min=1)
        return {"loss": loss}

    @torch.no_grad()
    def fit_input_norm(self, frames: Iterable[torch.Tensor]) -> None:
        """Set the gain of the first norm so that channels vary alike; Whisper's differ by orders of magnitude."""
        sample = torch.cat([clip.to(self.readout.blank) for clip in frames])
        gain = (1 / sample.std(dim=0)).clamp(max=MAX_INPUT_GAIN) * sample.square().mean().sqrt()
        letters = self.projector.letters
        for norm in (self.projector.norm_pre, None if letters is None else letters.norm_in):
            if isinstance(norm, nn.RMSNorm):
                norm.weight.copy_(gain.repeat(len(norm.weight) // len(gain)))

    @torch.no_grad()
    def hand_over(self, frames: Iterable[torch.Tensor]) -> None:
        """
        Put the tokens among the language model's embeddings, as a readout of pieces does by itself.

        For direct tokens, cosines fix neither length nor offset: the last layer is scaled until tokens are as far from
        the common part of the embeddings as the pieces are, and then made to add that part. It has no bias, but a
        combination of its inputs that is nearly constant does the same (found by least squares on `frames`).
        """
        self.readout.blank.requires_grad_(True)
        self.readout.residual_gain.requires_grad_(True)
        if self.projector.letters is not None:
            self.projector.letters.requires_grad_(False)
        if self.projector.readout is not None:
            return
        last = self.projector.linear_3 if self.projector.context else self.projector.linear_2
        inputs: list[torch.Tensor] = []
        hook = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        tokens = []
        for clip in frames:
            clip = clip.to(self.readout.blank)
            stacked, mask = self.projector.stack(clip[None], torch.tensor([len(clip)], device=clip.device))
            tokens.append(self.projector.project(stacked, mask))
        hook.remove()
        common, pieces, _ = self.readout.table(self.embeddings)
        last.weight.mul_((pieces - common).square().mean().sqrt() / torch.cat(tokens).square().mean().sqrt())
        hidden = torch.cat(inputs)
        gram = hidden.T @ hidden / len(hidden)
        ridge = CONSTANT_FIT_RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), device=gram.device)
        constant = torch.linalg.solve(gram + ridge, hidden.mean(dim=0))
        last.weight.add_(torch.outer(common, constant))


class PieceVocabulary(SpokenLexicon):
    """The word pieces of transcripts in their spoken form, and `more_ids`, as CTC classes."""

    def __init__(self, tokenizer, transcripts: Sequence[str], more_ids: Iterable[int] = ()):
        said = (id_ for text in transcripts for id_ in piece_ids(tokenizer, text))
        super().__init__(tokenizer, sorted({*more_ids, *said}))

    @property
    def blank_id(self) -> int:
        """Id of the piece that a blank should look like to the language model."""
        taken = {*self.token_ids, *self.tokenizer.all_special_ids}
        alone = (self.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in GAP_PIECES)
        fitting = [ids[0] for ids in alone if len(ids) == 1 and ids[0] not in taken]
        return fitting[0] if fitting else next(id_ for id_ in range(len(self.tokenizer)) if id_ not in taken)


def build_alignment_rows(
    keys: Sequence[str],
    transcripts: Sequence[str | None],
    cache: FeatureCache,
    vocabulary: PieceVocabulary,
    letters: SpokenLetters | None = None,
) -> list[dict[str, Any]]:
    """
    Return rows of `audio` (one cache key), `targets` (classes, none where the transcript is None) and `length` (frames).

    `letters` of a row are None where a transcript has others, such as figures, or more than fit. Clips that CTC cannot
    align are left out: more pieces than slots, several windows, or no words.
    """
    rows = []
    for key, transcript in zip(keys, transcripts):
        length, *more_windows = cache.lengths(key)
        targets = vocabulary.encode(transcript or "")
        too_long = _slots_needed(targets) > -(-length // cache.processor.stack_factor)
        if more_windows or too_long or (transcript is not None and not targets):
            continue
        row = {"audio": [key], "targets": targets, "length": length}
        if letters is not None:
            spelled = letters.encode(transcript or "")
            fits = letters.covers(transcript or "") and _slots_needed(spelled) <= -(-length // LETTER_FRAMES)
            row["letters"] = spelled if fits else None
        rows.append(row)
    return rows


def _slots_needed(targets: Sequence[int]) -> int:
    """Return how many slots CTC needs: one more wherever a class follows itself."""
    return len(targets) + sum(first == second for first, second in pairwise(targets))


@dataclass
class AlignmentCollator:
    """Makes inputs of [`CtcAligner.forward`] of rows, with the clips' frames."""

    cache: FeatureCache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad_windows([self.cache.load(row["audio"][0])[0].float() for row in rows])
        batch["targets"], batch["target_lengths"] = _padded([row["targets"] for row in rows])
        if "letters" in rows[0]:
            letters = [row["letters"] for row in rows]
            batch["letters"], lengths = _padded([each or [] for each in letters])
            batch["letter_lengths"] = lengths.masked_fill(torch.tensor([each is None for each in letters]), -1)
        return batch


def _padded(targets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return targets in one tensor, at least one wide, and the length of each."""
    rows = [torch.tensor(each or [0], dtype=torch.long) for each in targets]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(each) for each in targets])


class AlignTrainer(AudioLlmTrainer):
    """Trains the projector of a model, in place, by CTC, on clips in the cache; a transcript of None is nobody's speech."""

    def __init__(
        self,
        model,
        cache: FeatureCache,
        keys: Sequence[str],
        transcripts: Sequence[str | None],
        arguments: TrainingArguments,
    ):
        spoken = [None if text is None else spoken_form(text) for text in transcripts]
        readout = model.model.multi_modal_projector.readout
        # A model that was aligned before keeps the pieces that it knows.
        known = [] if readout is None or bool(readout.lexicon.all()) else readout.lexicon.nonzero().flatten().tolist()
        said = [text for text in spoken if text is not None]
        self.vocabulary = PieceVocabulary(cache.processor.tokenizer, said, known)
        spelled = model.config.projector_letters
        letters = None if spelled is None else SpokenLetters(spelled)
        rows = build_alignment_rows(keys, spoken, cache, self.vocabulary, letters)
        if left_out := len(keys) - len(rows):
            print(f"{left_out} of {len(keys)} clips are left out of the warm start: too long, or too much said.")
        if not any(row["targets"] for row in rows):
            raise TrainingError("No clip can be aligned: each has several windows, or more said than audio tokens.")
        add_words(model, said)
        aligner = CtcAligner(model, self.vocabulary.token_ids, self.vocabulary.blank_id)
        self.frames_to_fit = [cache.load(row["audio"][0])[0] for row in rows[:CLIPS_TO_FIT]]
        if not known:
            aligner.fit_input_norm(self.frames_to_fit)
        dataset, collator = datasets.Dataset.from_list(rows), AlignmentCollator(cache)
        super().__init__(aligner, arguments, collator, dataset)
        self.whole_model, self.cache = model, cache
        self.spoken_clips = [(key, text) for key, text in zip(keys, transcripts) if text is not None]

    #: As transformers has it: the recipe's weight decay was found with it.
    get_decay_parameter_names = Trainer.get_decay_parameter_names

    def train(self, *args: Any, **kwargs: Any):
        """The Trainer's, and put the projector's tokens among the language model's embeddings."""
        output = super().train(*args, **kwargs)
        cast(CtcAligner, self.model.eval()).hand_over(self.frames_to_fit)
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's within the run; at its end, the whole model, and what the projector hears, for stage read."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        self.whole_model.save_pretrained(folder)
        self.cache.processor.save_pretrained(folder)
        if self.whole_model.config.projector_readout == "pieces":
            try:
                bank = collect_posteriors(self.whole_model, self.cache, self.spoken_clips, not self.args.disable_tqdm)
            except TrainingError as error:
                print(f"There is no {BANK_FILE} for --stage read: {error}")
            else:
                bank.save(folder / BANK_FILE)
                print(bank.describe())


def open_data(data_arguments: DataArguments, own: AlignArguments) -> tuple[TranscribedClips, None]:
    """Return the clips; nothing is held out."""
    data = open_training_data(data_arguments)
    return TranscribedClips(data, own.transcript_normaliser, own.without_speech()), None


def build(prepared: Prepared, clips: TranscribedClips, held_out: None, own: AlignArguments) -> AlignTrainer:
    """Return the Trainer of this stage."""
    assert prepared.cache is not None  # check_arguments has seen to it
    keys, transcripts = zip(*clips.encode(prepared))
    return AlignTrainer(prepared.model, prepared.cache, keys, transcripts, prepared.arguments)
