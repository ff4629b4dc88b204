"""Clipped sums by plain autograd, a sample at a time, and what a sample adds to a method's sum."""

import torch
import torch.nn.functional as F

from paramscope.dpsgd.book_keeping import BookKeeping
from paramscope.dpsgd.losses import sample_losses
from paramscope.dpsgd.methods import Options, make_method
from paramscope.dpsgd.parts import NoAccounts
from paramscope.dpsgd.privacy import Clipped, Privacy
from paramscope.models.sequences import Sequences

# float64 throughout: what is left is rounding, of sums of some 10⁴ terms
EXACT = {"rtol": 1e-9, "atol": 1e-11}
PLAIN = Options()
OURS = ("ghost", "flash", "bk", "per_layer", "micro")


def own_gradients(model, sequences):
    """Each sample's gradient by plain autograd, a sample at a time and without its padding."""
    rows, losses = [], []
    for ids, n in zip(sequences.ids, sequences.lengths.tolist(), strict=True):
        own = ids[None, :n]
        position = torch.arange(n)[None]
        scores = model(input_ids=own, position_ids=position, use_cache=False).logits
        loss = F.cross_entropy(scores[0, :-1], own[0, 1:])
        trained = [p for p in model.parameters() if p.requires_grad]
        rows.append(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))
        losses.append(loss.detach())
    return [torch.stack(parts) for parts in zip(*rows, strict=True)], torch.stack(losses)


def clipped_oracle(model, sequences, max_norm):
    """Σ_s min(1, C/‖G_s‖) G_s by parameter, and the norms."""
    gradients, losses = own_gradients(model, sequences)
    norms = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    factors = (max_norm / norms).clamp(max=1)
    return [torch.tensordot(factors, g, 1) for g in gradients], norms, losses


def run(model, name, sequences, max_norm, options=PLAIN, batches=(None,)):
    """The sums that a method leaves in `.grad`, and what it says of the samples."""
    method = make_method(name, model, Privacy(max_norm, 0.0, 1.0), options)
    told = []
    try:
        for part in batches:
            method.forward(sequences if part is None else sequences[part])
            told.append(method.backward())
        found = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in model.parameters()
            if p.requires_grad
        ]
    finally:
        model.zero_grad(set_to_none=True)
    return found, told


def median_norm(model, sequences):
    """A bound that clips half of the samples and leaves the others."""
    return float(clipped_oracle(model, sequences, 1.0)[1].median()) * 1.0001


def chosen(sequences, places):
    """The sequences at `places`, in that order."""
    index = torch.tensor(places)
    names = tuple(sequences.names[i] for i in places)
    return Sequences(sequences.ids[index], sequences.lengths[index], names)


def contributions(model, name, sequences, max_norm, options=PLAIN):
    """Norms of what each sample adds to the sum: to none, and to all of the others'. [S, 2]."""

    def total(places):
        found, _ = run(model, name, chosen(sequences, places), max_norm, options)
        return torch.cat([f.flatten() for f in found])

    places = list(range(len(sequences)))
    whole = total(places)
    rows = []
    for s in places:
        rest = total([other for other in places if other != s])
        rows.append([float(total([s]).norm()), float((whole - rest).norm())])
    return torch.tensor(rows)


def assert_bounded(norms, max_norm):
    """No sample adds more than C."""
    assert float(norms.max()) <= max_norm * (1 + 1e-6)  # differences of sums of six samples


def unclipped(monkeypatch):
    """A plain backward of the summed losses in book-keeping's place, with nothing clipped."""

    def forward(self, batch):
        self.losses = sample_losses(self.model, batch, NoAccounts())

    def backward(self):
        self.losses.sum().backward()
        losses = self.losses.detach()
        return Clipped(losses, torch.ones_like(losses), torch.ones_like(losses))

    monkeypatch.setattr(BookKeeping, "forward", forward)
    monkeypatch.setattr(BookKeeping, "backward", backward)
