"""Continuations against a forward of the whole text each time; scores against their formulas."""

import math
import re
import sys
from collections import Counter
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from paramscope.errors import RequestError
from paramscope.evaluation.generation import continuations, generate_scores, greedy
from paramscope.models.load import logits
from paramscope.models.sequences import concatenate, documents, padded
from paramscope.models.tokenizer import train_tokenizer
from tests.unit.conftest import make_tiny

TEXT = ["alpha beta gamma delta epsilon zeta " * 3, "one two three four five six " * 4]


class Letters:
    """A tokenizer of 24 one-letter words, whose scores can be told by hand."""

    def decode(self, ids):
        return " ".join("abcdefghijklmnopqrstuvwx"[i] for i in ids)


def tokens(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def f1(common, first, second):
    if not common:
        return 0.0
    precision, recall = common / first, common / second
    return 2 * precision * recall / (precision + recall)


def rouge_n(own, target, n):
    a, b = ngrams(tokens(own), n), ngrams(tokens(target), n)
    return f1((a & b).total(), a.total(), b.total())


def rouge_l(own, target):
    """F1 of the longest common subsequence (Lin 2004)."""
    a, b = tokens(own), tokens(target)
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return f1(table[-1][-1], len(a), len(b))


def corpus_bleu(own, target):
    """Papineni et al. 2002 over the corpus, zero counts as 1/2, 1/4, … (Chen and Cherry 2014)."""
    own, target = [t.split() for t in own], [t.split() for t in target]
    logs, halves = [], 1.0
    for n in range(1, 5):
        pairs = [(ngrams(a, n), ngrams(b, n)) for a, b in zip(own, target, strict=True)]
        hits, total = (sum(f(*p).total() for p in pairs) for f in (lambda a, b: a & b,
                                                                   lambda a, b: a))  # fmt: skip
        if not hits:
            halves *= 2
        logs.append(math.log((hits or 1 / halves) / total))
    lengths = [sum(map(len, texts)) for texts in (own, target)]
    brevity = min(0.0, 1 - lengths[1] / lengths[0])
    return 100 * math.exp(sum(logs) / 4 + brevity)


@pytest.fixture
def scorers(monkeypatch):
    """sacrebleu and rouge-score, or where they aren't installed the formulas in their form."""
    if not all(map(find_spec, ("sacrebleu", "rouge_score"))):
        bleu = ModuleType("sacrebleu")
        bleu.corpus_bleu = lambda own, references: SimpleNamespace(
            score=corpus_bleu(own, references[0])
        )

        class RougeScorer:
            def __init__(self, names, use_stemmer):
                self.names = names

            def score(self, target, prediction):
                found = {
                    "rouge1": rouge_n(prediction, target, 1),
                    "rouge2": rouge_n(prediction, target, 2),
                    "rougeL": rouge_l(prediction, target),
                }
                return {name: SimpleNamespace(fmeasure=found[name]) for name in self.names}

        rouge = ModuleType("rouge_score.rouge_scorer")
        rouge.RougeScorer = RougeScorer
        monkeypatch.setitem(sys.modules, "sacrebleu", bleu)
        monkeypatch.setitem(sys.modules, "rouge_score", ModuleType("rouge_score"))
        monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", rouge)


@pytest.fixture
def talker():
    """A model that says much, each time another thing, and has no end of a text."""
    model = make_tiny("llama", tied=False)
    model.config.eos_token_id = None
    return model


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(4, 24, (5, 6), generator=generator)


def test_greedy_is_the_likeliest_token_of_the_whole_text_each_time(tiny, prompts):
    got = greedy(tiny, prompts, 8)
    ids = prompts
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, logits(tiny, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, ids[:, 6:])
    assert len(got.unique()) > 1


def test_greedy_is_transformers_own_and_heeds_no_sampling(tiny, prompts):
    expected = tiny.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=7,
        max_new_tokens=7,
        pad_token_id=0,
        eos_token_id=None,
    )
    before = tiny.generation_config.do_sample
    tiny.generation_config.do_sample = True
    try:
        assert torch.equal(greedy(tiny, prompts, 7), expected[:, 6:])
    finally:
        tiny.generation_config.do_sample = before


def test_continuations_are_of_long_documents_alone_and_in_order(talker, prompts):
    short = padded([[5, 6, 7]], ["short"])
    long = padded([[*row, *range(4, 14)] for row in prompts.tolist()], list("abcde"))
    text = concatenate(long[:2], short, long[2:])
    found = [
        continuations(talker, Letters(), text, prompt_tokens=6, new_tokens=4, batch_size=size)
        for size in (1, 2, 9)
    ]
    expected = [Letters().decode(row) for row in greedy(talker, prompts, 4).tolist()]
    assert [[own for own, _ in pairs] for pairs in found] == [expected] * 3
    assert {reference for pairs in found for _, reference in pairs} == {"e f g h"}
    assert len(set(expected)) == 5


@pytest.mark.parametrize("several", [False, True])
def test_a_continuation_ends_where_the_model_ends_it(talker, prompts, several):
    generated = greedy(talker, prompts, 6)
    end = int(generated[0, 3])
    talker.config.eos_token_id = [end, 99] if several else end
    text = padded([[*row, *[4] * 6] for row in prompts.tolist()], list("abcde"))
    pairs = continuations(talker, Letters(), text, prompt_tokens=6, new_tokens=6, batch_size=5)
    row = generated[0].tolist()
    assert row.index(end) == 3
    assert pairs[0][0] == Letters().decode(row[:3])
    assert all(len(reference.split()) == 6 for _, reference in pairs)


def test_scores_are_the_published_formulas(talker, prompts, scorers):
    """A reference begins with what the model says and goes on otherwise; one text ends early."""
    own = greedy(talker, prompts, 9)
    talker.config.eos_token_id = end = int(own[0, 3])
    meant = own.clone()
    for place, row in enumerate(meant):
        row[3 + place :] = (row[3 + place :] + place + 1) % 24
    text = padded(torch.cat([prompts, meant], 1).tolist(), list("abcde"))
    got = generate_scores(talker, Letters(), text, prompt_tokens=6, new_tokens=9, batch_size=2)
    said = [Letters().decode(row[: [*row, end].index(end)]) for row in own.tolist()]
    assert min(len(one.split()) for one in said) == 3
    target = [Letters().decode(row) for row in meant.tolist()]
    pairs = list(zip(said, target, strict=True))
    # sacrebleu rounds nothing; sums in another order
    assert got["bleu"] == pytest.approx(corpus_bleu(said, target), rel=1e-9)
    assert got["rouge1"] == pytest.approx(sum(rouge_n(*p, 1) for p in pairs) / 5)
    assert got["rouge2"] == pytest.approx(sum(rouge_n(*p, 2) for p in pairs) / 5)
    assert got["rougeL"] == pytest.approx(sum(rouge_l(*p) for p in pairs) / 5)
    assert got["n"] == 5
    assert 5 < got["bleu"] < 95
    assert 0.2 < got["rouge2"] < got["rougeL"] <= got["rouge1"] < 0.95


def test_a_model_that_says_what_the_document_says_has_full_scores(talker, prompts, scorers):
    whole = torch.cat([prompts, greedy(talker, prompts, 8)], 1)
    text = padded(whole.tolist(), list("abcde"))
    got = generate_scores(talker, Letters(), text, prompt_tokens=6, new_tokens=8, batch_size=3)
    assert got["bleu"] == pytest.approx(100)
    assert got["rouge1"] == got["rouge2"] == got["rougeL"] == 1


def test_a_tokenizers_special_tokens_are_in_no_text():
    tokenizer = train_tokenizer(TEXT, 280)
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=280, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1, ffn_dim=8,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OPTForCausalLM(config).eval()
    text = documents(tokenizer, TEXT, ["a", "b"], length=30)
    pairs = continuations(model, tokenizer, text, prompt_tokens=8, new_tokens=9, batch_size=2)
    assert len(pairs) == 2
    for (own, reference), source in zip(pairs, TEXT, strict=True):
        assert reference in source
        assert len(reference) > 5
        assert "<" not in own


def test_requests_that_cannot_be_met_are_refused(talker, prompts, scorers):
    text = padded(prompts.tolist(), list("abcde"))
    for lengths, reason in (
        ((6, 4), "no document has 10 tokens"),
        ((0, 4), "at least 1 of each"),
        ((4, 0), "at least 1 of each"),
        ((6, 11), "the model has 16 positions"),
    ):
        with pytest.raises(RequestError, match=reason):
            generate_scores(
                talker, Letters(), text,
                prompt_tokens=lengths[0], new_tokens=lengths[1], batch_size=2,
            )  # fmt: skip


@pytest.mark.parametrize("package", ["sacrebleu", "rouge_score.rouge_scorer"])
def test_a_missing_package_is_named_with_how_to_have_it(
    talker, prompts, scorers, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    text = padded(prompts.tolist(), list("abcde"))
    with pytest.raises(RequestError, match=rf"{package}.*pip install 'paramscope\[generation\]'"):
        generate_scores(talker, Letters(), text, prompt_tokens=3, new_tokens=2, batch_size=2)
