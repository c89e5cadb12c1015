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


def test_a_batch_in_which_nobody_speaks() -> None:
    queries = torch.randn(2, 5, 6, requires_grad=True)
    nothing, lengths = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    inputs = torch.zeros(2, 5), torch.randn(11, 6), torch.tensor([5, 3]), nothing, lengths
    loss = PieceCtcLoss.apply(queries, *inputs)
    loss.backward()
    assert loss.detach() == pytest.approx(float(of_torch(queries.detach(), *inputs)), rel=1e-5)
    assert queries.grad.isfinite().all() and queries.grad[1, 3:].eq(0).all()


def test_half_precision_products_give_nearly_the_same() -> None:
    torch.manual_seed(1)
    queries = torch.randn(2, 9, 6, requires_grad=True)
    targets, lengths = torch.tensor([[1, 2], [3, 4]]), torch.tensor([2, 2])
    rest = torch.zeros(2, 9), torch.tensor([9, 7]), targets, lengths
    directions = torch.randn(11, 6)
    whole = float(PieceCtcLoss.apply(queries, rest[0], directions, *rest[1:]).detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss = PieceCtcLoss.apply(queries, rest[0], directions.bfloat16(), *rest[1:])
    loss.backward()
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(whole, rel=0.02)
    assert queries.grad.isfinite().all()
