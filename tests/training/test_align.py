"""The CTC warm start: the projector learns to be read, nothing else changes, and its tokens end among the embeddings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audiollm import AudioLlmForConditionalGeneration
from audiollm.corpora.prompts import load_studio_prompts
from audiollm.evaluation import normalize_english
from audiollm.inference.spoken_pieces import SpokenLetters, spoken_form
from audiollm.training import align as align_module
from audiollm.training.align import (
    AlignmentCollator,
    AlignTrainer,
    CtcAligner,
    PieceVocabulary,
    build_alignment_rows,
    piece_ctc_loss,
)
from audiollm.training.arguments import AudioLlmTrainingArguments
from audiollm.training.collator import pad_windows
from audiollm.training.feature_cache import FeatureCache
from runs import logged
from tiny_models import randomise_trainables

#: Short enough for the shortest clip's four slots: a character is a token, and so is the space before it.
TRANSCRIPTS = ["ab", "c", "da", "bd", "cd", "a", "db", "b", "ca", "d"]


def arguments(folder: Path, **options) -> AudioLlmTrainingArguments:
    settings = {"max_steps": 6, "batch_size": 4, "learning_rate": 3e-3, "save_strategy": "no", "disable_tqdm": True}
    return AudioLlmTrainingArguments(output_dir=str(folder), logging_steps=1, **{**settings, **options})


def align(model, cache, keys, transcripts, options: AudioLlmTrainingArguments) -> AlignTrainer:
    """The Trainer after its run."""
    trainer = AlignTrainer(model, cache, keys, transcripts, options)
    trainer.train()
    return trainer


@pytest.fixture
def keys(cache, corpus) -> list[str]:
    return cache.add(corpus.paths, progress=False)


def fresh_model(tiny_bases) -> AudioLlmForConditionalGeneration:
    torch.manual_seed(0)
    return randomise_trainables(AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4))


@torch.no_grad()
def scores(aligner: CtcAligner, encoded_audio: torch.Tensor, encoded_audio_lengths: torch.Tensor):
    """Log-probabilities `(windows, slots, 1 + pieces)`, blank first, and the mask of real slots `(windows, slots)`."""
    stacked, mask = aligner.projector.stack(encoded_audio, encoded_audio_lengths)
    projected = aligner.projector.project(stacked, mask)
    if aligner.projector.readout is None:  # a direct token holds what all embeddings have in common as well
        projected = projected - aligner.readout.table(aligner.embeddings)[0]
    real = aligner.readout.log_probabilities(projected, aligner.embeddings)
    return real.new_full((*mask.shape, real.shape[-1]), -10.0).masked_scatter(mask[:, :, None], real), mask


def greedy_transcripts(alignment, cache: FeatureCache, keys: list[str]) -> list[str]:
    """Transcripts of clips of one window by the projector alone: the best class of every slot, without repeats and blanks."""
    found, mask = scores(alignment.model, **pad_windows([cache.load(key)[0] for key in keys]))
    heard = [torch.unique_consecutive(row[real]).tolist() for row, real in zip(found.argmax(dim=-1), mask)]
    return [alignment.vocabulary.decode([one for one in row if one]) for row in heard]


@torch.no_grad()
def check_tokens_lie_among_the_embeddings(model, alignment, cache, keys, transcripts, folder: Path) -> torch.Tensor:
    """The embeddings nearest to mixtures spell the transcript, also in the checkpoint; direct tokens are as long."""
    embeddings, found = model.get_input_embeddings().weight, []
    model.save_pretrained(folder)
    again = AudioLlmForConditionalGeneration.from_pretrained(folder)
    for (frames, lengths), transcript in zip(map(cache.load, keys), transcripts):
        inputs = {"encoded_audio": frames[None], "encoded_audio_lengths": lengths}
        found.append(model.get_audio_features(**inputs).pooler_output)
        assert torch.equal(found[-1], again.get_audio_features(**inputs).pooler_output)
        nearest = torch.unique_consecutive(torch.cdist(found[-1], embeddings).argmin(dim=1)).tolist()
        said = [piece for piece in nearest if piece != alignment.vocabulary.blank_id]
        if model.model.multi_modal_projector.readout is not None:
            assert cache.processor.tokenizer.decode(said).strip() == transcript
    tokens = torch.cat(found)
    assert 0.7 < tokens.square().mean().sqrt() / embeddings.square().mean().sqrt() < 1.4
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["direct", "pieces"])
def test_the_real_pair_is_aligned(real_bases, real_processor, tmp_path, readout: str) -> None:
    torch.manual_seed(0)
    shape = {"lora_rank": 2, "projector_readout": readout}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*real_bases, **shape)
    clips = load_studio_prompts("train").filter(lambda row: len(row["text"].split()) > 1).sort("duration_s")
    clips = clips.select(range(8))
    cache = FeatureCache(model, real_processor, tmp_path / "features")
    keys = cache.add(list(clips["audio"]), progress=False)
    transcripts = [normalize_english(text) for text in clips["text"]]
    alignment = align(model, cache, keys, transcripts, arguments(tmp_path / "run", max_steps=60, batch_size=8))
    assert greedy_transcripts(alignment, cache, keys) == transcripts
    assert real_processor.tokenizer.decode([alignment.vocabulary.blank_id]) == "_"
    tokens = check_tokens_lie_among_the_embeddings(model, alignment, cache, keys, transcripts, tmp_path / "saved")
    if readout == "direct":
        common = model.get_input_embeddings().weight.detach().mean(dim=0)
        # Of what all embeddings have in common, tokens hold as much; blanks add what is their piece's own.
        assert 0.6 < (tokens.mean(dim=0) @ common) / common.square().sum() < 1.6


@pytest.mark.parametrize("readout", ["direct", "pieces"])
def test_the_loss_falls_the_clips_are_read_right_and_only_the_projector_changes(
    cache, keys, tiny_bases, tmp_path, readout: str
) -> None:
    """With a readout of pieces and letters, both learn; afterwards the letters are frozen again."""
    torch.manual_seed(0)
    shape = {"projector_readout": readout, "projector_letters": "abcd" if readout == "pieces" else None}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, lora_rank=4, **shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = arguments(tmp_path / "run", max_steps=80, learning_rate=1e-2, batch_size=10)
    alignment = align(model, cache, keys, TRANSCRIPTS, options)
    losses = logged(alignment)
    assert len(losses) == 80 and losses[-1] < 0.1 * losses[0]
    assert greedy_transcripts(alignment, cache, keys) == TRANSCRIPTS
    after = model.state_dict()
    changed = {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}
    assert changed and all("multi_modal_projector" in name for name in changed)
    check_tokens_lie_among_the_embeddings(model, alignment, cache, keys, TRANSCRIPTS, tmp_path / "saved")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in model.trainable_names() if ".letters." not in name
    }
    if readout == "pieces":
        projector, spelled = model.model.multi_modal_projector, []
        assert projector.readout.lexicon.nonzero().flatten().tolist() == alignment.vocabulary.token_ids
        for frames in (cache.load(key)[0] for key in keys):
            with torch.no_grad():
                best = projector.letters(frames[None], torch.tensor([len(frames)]))[0][0].argmax(dim=-1)
            spelled.append("".join(" abcd"[one - 1] for one in torch.unique_consecutive(best).tolist() if one))
        assert spelled == TRANSCRIPTS
        assert set(projector.letters.known_words()) == {word for text in TRANSCRIPTS for word in text.split()}


def test_classes_are_the_pieces_of_what_is_said_and_of_an_earlier_run(cache, keys, tiny_bases, tiny_processor) -> None:
    assert spoken_form("  O\u00f9 est-il: 3D, 12 new_messages, or #1? ") == "o\u00f9 est il 3d 12 new messages or one"
    tokenizer = tiny_processor.tokenizer
    vocabulary = PieceVocabulary(tokenizer, ["ab ba", "c"])
    assert sorted(tokenizer.decode([id_]) for id_ in vocabulary.token_ids) == [" ", "a", "b", "c"]
    assert vocabulary.decode(vocabulary.encode("c ab")) == "c ab" and 0 not in vocabulary.encode("ab ba c")
    for one in (vocabulary, PieceVocabulary(tokenizer, ["a_b", "-"])):
        assert one.blank_id not in {*one.token_ids, *tokenizer.all_special_ids}
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(*tiny_bases, projector_readout="pieces")
    first, second = (AlignTrainer(model, cache, keys, [text] * len(keys), arguments("x")).vocabulary for text in "ab")
    assert {*first.token_ids, *tokenizer("a b", add_special_tokens=False)["input_ids"]} <= set(second.token_ids)


def test_clips_that_cannot_be_aligned_are_left_out_and_counted(
    cache, keys, tiny_bases, tiny_processor, tmp_path, capsys
) -> None:
    (two_windows,) = cache.add([torch.randn(31 * 16_000).clamp(-1, 1).numpy() * 0.1], progress=False)
    keys = [*keys, two_windows]
    transcripts = ["a", "ab " * 40, "", *["b"] * 7, "a"]
    vocabulary = PieceVocabulary(tiny_processor.tokenizer, transcripts)
    rows = build_alignment_rows(keys, transcripts, cache, vocabulary)
    assert [row["audio"] for row in rows] == [[key] for key in (keys[0], *keys[3:-1])]
    align(fresh_model(tiny_bases), cache, keys, transcripts, arguments(tmp_path / "run", max_steps=1))
    assert "3 of 11 clips are left out" in capsys.readouterr().out
    for only in (transcripts[1], None):
        with pytest.raises(ValueError, match="No clip can be aligned"):
            align(fresh_model(tiny_bases), cache, keys[1:2], [only], arguments(tmp_path / "none"))


def test_recordings_without_speech_are_heard_as_nothing(cache, keys, tiny_bases, tmp_path) -> None:
    noise = np.random.default_rng(0).standard_normal((6, 16_000)).astype(np.float32) * 0.05
    without = cache.add(noise, progress=False)
    options = arguments(tmp_path, max_steps=40, learning_rate=1e-2)
    alignment = align(fresh_model(tiny_bases), cache, [*keys, *without], [*TRANSCRIPTS, *[None] * 6], options)
    found, mask = scores(alignment.model, **pad_windows([cache.load(key)[0] for key in without]))
    assert float(found[mask][:, 0].exp().mean()) > 0.9
    assert alignment.vocabulary.token_ids == PieceVocabulary(cache.processor.tokenizer, TRANSCRIPTS).token_ids
    assert greedy_transcripts(alignment, cache, without) == [""] * len(without)


def test_letters_that_cannot_be_spelled_do_not_count(cache, keys, tiny_bases, tiny_processor) -> None:
    letters = SpokenLetters("ab")
    texts = ["ab", "ac", "a 12", None]
    vocabulary = PieceVocabulary(tiny_processor.tokenizer, [text or "" for text in texts])
    rows = build_alignment_rows(keys[:4], texts, cache, vocabulary, letters)
    assert [row["letters"] for row in rows] == [[2, 3], None, None, []]
    torch.manual_seed(0)
    model = AudioLlmForConditionalGeneration.from_audio_text_pretrained(
        *tiny_bases, lora_rank=4, projector_readout="pieces", projector_letters="ab"
    )
    aligner = CtcAligner(model, vocabulary.token_ids, vocabulary.blank_id)
    batch = AlignmentCollator(cache)(rows)
    frozen = {**batch, "letter_lengths": torch.tensor([-1, -1, -1, -1])}
    without = {name: value for name, value in batch.items() if "letter" not in name}
    assert aligner(**frozen)["loss"] == aligner(**without)["loss"] < aligner(**batch)["loss"]


class OnePiece:
    """A vocabulary in which every text is one piece, so that any fits."""

    def encode(self, text: str) -> list[int]:
        return [1]


def test_as_much_text_as_slots_is_kept_and_one_more_is_not(cache, keys, tiny_processor) -> None:
    frames = len(cache.load(keys[0])[0])
    slots, letter_slots = -(-frames // tiny_processor.stack_factor), -(-frames // 2)
    pieces = "abcdefghijklmnopqrstuvwxyz"
    # A leading space is a piece of its own here; a repeated letter needs a blank between.
    for text, fits in ((pieces[: slots - 1], True), (pieces[:slots], False), (pieces[: slots - 3] + "zz", False)):
        vocabulary = PieceVocabulary(tiny_processor.tokenizer, [text])
        assert bool(build_alignment_rows(keys[:1], [text], cache, vocabulary)) == fits, text
    for count, fits in ((letter_slots, True), (letter_slots + 1, False)):
        spelled = ("ab" * count)[:count]
        (row,) = build_alignment_rows(keys[:1], [spelled], cache, OnePiece(), SpokenLetters("ab"))
        assert (row["letters"] is not None) == fits


SLOTS = [9, 5, 7, 3]
#: A piece that comes twice, one twice in a row, nothing said, and more than there are slots for.
TARGETS = [[3, 8, 3], [2, 2], [], [1, 2, 3, 4]]


def of_torch(queries, blanks, directions, slots, targets, lengths):
    logits = torch.cat([blanks[:, :, None], queries @ directions.T], dim=2).log_softmax(dim=2)
    return torch.nn.functional.ctc_loss(
        logits.transpose(0, 1), targets, slots, lengths, reduction="sum", zero_infinity=True
    )


@pytest.mark.parametrize("chunk", [1024, 4])
@pytest.mark.parametrize("spoken", [TARGETS, [[]] * 4])
def test_loss_and_gradients_are_those_of_the_whole_lexicon(chunk, spoken, monkeypatch) -> None:
    monkeypatch.setattr(align_module, "SLOTS_PER_CHUNK", chunk)
    torch.manual_seed(0)
    targets = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one, dtype=torch.long) for one in spoken], batch_first=True
    )
    inputs = torch.randn(4, 9, 6), torch.randn(4, 9), torch.randn(11, 6)
    rest = torch.tensor(SLOTS), targets, torch.tensor([len(one) for one in spoken])
    found = []
    for loss_of in (of_torch, piece_ctc_loss):
        queries, blanks = (one.clone().requires_grad_() for one in inputs[:2])
        loss = loss_of(queries, blanks, inputs[2], *rest)
        (2 * loss).backward()
        found.append((loss.detach(), queries.grad, blanks.grad))
    for expected, got in zip(*found):
        torch.testing.assert_close(got, expected)
    assert found[1][1][3].eq(0).all() == (spoken == TARGETS) and found[1][1][0].ne(0).any()
    with torch.autocast("cpu", torch.bfloat16):
        half = piece_ctc_loss(*inputs[:2], inputs[2].bfloat16(), *rest)
    assert half.dtype == torch.float32 and float(half) == pytest.approx(float(found[0][0]), rel=0.02)
