"""CTC over the transcript's own pieces: the loss and gradients of torch's CTC over the whole lexicon."""

import pytest
import torch
from audiollm.training import ctc_loss
from audiollm.training.ctc_loss import PieceCtcLoss

SLOTS = [9, 5, 7, 3]
#: A piece that comes twice, one twice in a row, nothing said, and more than there are slots for.
TARGETS = [[3, 8, 3], [2, 2], [], [1, 2, 3, 4]]


def of_torch(queries, blanks, directions, slots, targets, lengths):
    logits = torch.cat([blanks[:, :, None], queries @ directions.T], dim=2).log_softmax(dim=2)
    return torch.nn.functional.ctc_loss(
        logits.transpose(0, 1), targets, slots, lengths, reduction="sum", zero_infinity=True
    )


@pytest.mark.parametrize("chunk", [1024, 4])
def test_loss_and_gradients_are_those_of_the_whole_lexicon(chunk, monkeypatch) -> None:
    monkeypatch.setattr(ctc_loss, "SLOTS_PER_CHUNK", chunk)
    torch.manual_seed(0)
    targets = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one, dtype=torch.long) for one in TARGETS], batch_first=True
    )
    inputs = torch.randn(4, 9, 6), torch.randn(4, 9), torch.randn(11, 6)
    found = []
    for loss_of in (of_torch, PieceCtcLoss.apply):
        queries, blanks = (one.clone().requires_grad_() for one in inputs[:2])
        loss = loss_of(
            queries, blanks, inputs[2], torch.tensor(SLOTS), targets, torch.tensor([len(one) for one in TARGETS])
        )
        (2 * loss).backward()
        found.append((loss.detach(), queries.grad, blanks.grad))
    for expected, got in zip(*found):
        torch.testing.assert_close(got, expected)
    assert found[1][1][3].eq(0).all() and found[1][1][0].ne(0).any()
