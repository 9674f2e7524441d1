"""Results as text and as cards: short, small, and nothing but text of what a model, a run or a user put into them."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import pullback as pb
from pullback import (
    advisor,
    diagnostics,
    dynamics,
    functional,
    influence,
    kernels,
    measure,
    modules,
    runs,
    spectral,
    theory,
)
from pullback._results import Drawn, Shown, brief
from pullback.views.findings import by_unit
from pullback.views.view import drawing
from tests.views.made import CE, DRAWN, NASTY, RESULTS, Made

PUBLIC = (pb, dynamics, functional, influence, kernels, measure, modules, spectral, theory, diagnostics, runs)
VOID = {"br", "img", "meta", "input"}
DRAWN_BY_US = {
    "div",
    "style",
    "p",
    "span",
    "i",
    "strong",
    "figure",
    "figcaption",
    "svg",
    "path",
    "text",
    "image",
    "img",
}
DRAWN_BY_US |= {"table", "caption", "thead", "tbody", "tr", "th", "td", "iframe"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("views"))


class Parsed(HTMLParser):
    """Tags of a card, which must close in turn; its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def results_of_calls() -> set[type]:
    """Dataclasses that a public call returns, by its annotation, or that are public themselves."""
    found: set[type] = set()
    for module in PUBLIC:
        for name in getattr(module, "__all__", dir(module)):
            each = getattr(module, name)
            if inspect.isclass(each):
                found.add(each)
            elif callable(each):
                said = str(inspect.signature(each).return_annotation)
                home = vars(sys.modules[each.__module__])
                found |= {home[word] for word in re.findall(r"\w+", said) if inspect.isclass(home.get(word))}
    return {kind for kind in found if is_dataclass(kind) and kind.__module__.startswith("pullback")}


def shown_kinds(kind: type = Shown) -> set[type]:
    return {kind}.union(*(shown_kinds(each) for each in kind.__subclasses__()))


def test_every_result_of_a_public_call_is_shown() -> None:
    kinds = results_of_calls()
    assert len(kinds) > 60
    plain = {kind.__name__ for kind in kinds if not issubclass(kind, Shown)}
    assert plain <= {"Readout", "RegisteredRule"}  # what users hand in


@pytest.mark.parametrize("kind", sorted(shown_kinds(), key=lambda kind: (kind.__module__, kind.__name__)), ids=str)
def test_a_result_of_anything_is_a_short_line(kind: type) -> None:
    """Whatever its fields hold: large tensors, long and nasty texts, deep lists, objects with a long repr."""
    big = torch.zeros(200, 200)
    values = [big, NASTY * 100, [big] * 500, {NASTY: big}, big.numpy(), float("nan"), CE, {1, 2}, (1, 2.5, "a"), None]
    if not is_dataclass(kind):
        return
    for turn in range(len(values)):
        one = object.__new__(kind)
        for place, field in enumerate(fields(kind)):
            object.__setattr__(one, field.name, values[(place + turn) % len(values)])
        line = brief(one)
        assert len(line) <= 400, line
        assert "\n" not in line
        if kind.__str__ is object.__str__ and "__repr__" not in vars(kind):
            card = drawing.dispatch(object)(one).html()
            assert len(card) < 20_000
            assert "<b onload" not in card
            assert Parsed(card).tags <= DRAWN_BY_US


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_short_and_its_card_small_and_text(name: str, made: Made) -> None:
    result = made[name]
    line = repr(result)
    assert len(line) <= 400
    assert len(line.splitlines()) <= 3
    if not isinstance(result, Shown):
        return
    card = result._repr_html_()
    assert len(card.encode()) < 2_000_000
    whole = re.sub(r"srcdoc='[^']*'", "", card)
    page = Parsed(whole)
    assert page.tags <= DRAWN_BY_US
    assert not [each for each in page.names if each.startswith("on")]
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*|arXiv:\S*", "", whole)
    assert "<script" not in whole


@pytest.mark.parametrize("name", DRAWN)
def test_every_drawing_is_a_figure(name: str, made: Made) -> None:
    result = made[name]
    assert isinstance(result, Drawn)
    figure = result.plot()
    assert isinstance(figure, go.Figure)
    assert len(figure.data) >= 1
    figure.to_json()
    texts = [*(figure.layout.xaxis.ticktext or ()), *(figure.layout.yaxis.ticktext or ())]
    texts += [trace.name or "" for trace in figure.data] + [each.text for each in figure.layout.annotations]
    assert not [text for text in texts if "<" in str(text)]


def test_a_kernel_is_drawn_sorted_by_class_with_its_eigenvalues(made: Made) -> None:
    kernel = made["kernel"]
    order = torch.argsort(made.y, stable=True)
    figure = kernel.plot()
    drawn, line = figure.data
    assert np.allclose(np.array(drawn.z, dtype=float), kernel.total[order][:, order].numpy(), rtol=1e-6)
    assert list(figure.layout.yaxis.ticktext) == ["0", "1", "2"]
    assert list(figure.layout.yaxis.tickvals) == [1.5, 5.5, 9.5]
    values = torch.linalg.eigvalsh(kernel.total).flip(0)
    seen = np.array([np.nan if each is None else each for each in line.y], dtype=float)
    kept = values.numpy() > 0
    assert np.allclose(seen[kept], values.numpy()[kept], rtol=1e-6)
    assert np.isnan(seen[~kept]).all()
    other = kernel.plot(labels=[1] * 6 + [0] * 6).data[0]
    swapped = [*range(6, 12), *range(6)]
    assert np.allclose(np.array(other.z, dtype=float), kernel.total[swapped][:, swapped].numpy(), rtol=1e-6)
    with pytest.raises(pb.InputError, match=r"plot: expected `labels` of shape \(12,\), got \(3,\)"):
        kernel.plot(labels=[1, 2, 3])


def test_blocks_are_told_by_their_names(made: Made) -> None:
    assert repr(made["tangent, trace"].layers) == f"blocks of {NASTY}, out"
    assert len(repr(made["kernel"].parameters)) <= 400
    deep = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(9)])
    layers = pb.tangent_kernel(deep, torch.randn(3, 2)).layers
    assert repr(layers) == "blocks of 0, 1, 2, 3, 4, 5 and 3 more"


def test_labels_are_class_numbers_of_rows(made: Made) -> None:
    assert torch.equal(made["kernel"].labels, made.y)
    assert made["tangent, trace"].labels is None
    half = lambda z, t: (z - t).square().sum(1)
    assert pb.backward_kernel(made.model, half, made.x, torch.ones(12, 3).double()).labels is None


@pytest.mark.parametrize("contract", ["trace", "diagonal", "full"])
def test_outputs_are_contracted_in_the_picture(contract: str, made: Made) -> None:
    drawn = made[f"tangent, {contract}"].plot().data[0]
    assert np.allclose(np.array(drawn.z, dtype=float), made["tangent, trace"].total.numpy(), rtol=1e-6)


def test_a_large_kernel_is_thinned_and_says_so() -> None:
    model = torch.nn.Linear(3, 2)
    kernel = pb.backward_kernel(model, CE, torch.randn(1200, 3), torch.arange(1200) % 2)
    card = kernel._repr_html_()
    assert len(card) < 200_000
    assert "200 of 1,200 samples are drawn" in card
    assert "no eigenvalues are drawn" in card
    assert np.shape(kernel.plot().data[0].z) == (200, 200)


def test_what_is_not_finite_or_zero_is_drawn_as_nothing(made: Made) -> None:
    kernel = pb.backward_kernel(made.model, CE, *made.data)
    kernel._matrix.zero_()
    assert "<svg" in kernel._repr_html_()
    kernel._matrix.fill_(float("nan"))
    assert "<svg" in kernel._repr_html_()
    assert kernel.plot().data[0].z[0][0] is None
    assert "<svg" in pb.Estimate(float("nan"), float("inf"), 3)._repr_html_()


def test_influences_are_ranked_with_their_samples(made: Made) -> None:
    found = made["self-influence"]
    order = found.values.argsort(descending=True).tolist()
    assert found.ranking == order
    assert list(found.samples) == order
    assert all(torch.equal(x, made.x[place]) and int(y) == place % 3 for place, (x, y) in found.samples.items())
    table = found.to_pandas()
    assert table["sample"].tolist() == order
    assert table["influence"].tolist() == found.values[order].tolist()
    query = made["query influence"]
    effects = query.values.square().sum(0).sqrt()
    assert torch.allclose(query.effects, effects)
    assert "Below 0 the query&#39;s loss falls: it helps; above 0 it rises: it harms" in query._repr_html_()
    assert "rare ones or wrong labels" in found._repr_html_()
    assert query.values[0, 0] < 0  # the query is this sample: more of it helps
    assert query.ranking == effects.argsort(descending=True).tolist()
    assert query._repr_html_().count("data:image/png") == 12
    decay = made["influence of decay"]
    assert list(decay.plot().data[0].y) == pytest.approx(decay.values.tolist())
    assert not decay.samples
    with pytest.raises(pb.InputError, match="expected a perturbation of training samples, got one of the weight decay"):
        decay.to_pandas()
    inputs = made["influence of inputs"]
    assert inputs.values.shape == (2, 3, 12, 16)
    assert torch.allclose(inputs.effects, inputs.values.square().sum((0, 1, 3)).sqrt())


def test_tables_of_pandas(made: Made) -> None:
    run, kernel = made["run"], made["kernel"]
    table = run.table()
    frame = run.to_pandas()
    assert frame.index.tolist() == table.pop("step")
    assert list(frame.columns) == list(table)
    layers = kernel.to_pandas()
    assert layers["layer"].tolist() == list(kernel.layers)
    assert layers["parameters"].sum() == kernel.num_params
    assert layers["trace"].sum() == pytest.approx(float(kernel.total.trace()))
    assert layers["share"].sum() == pytest.approx(1)
    full = made["tangent, full"]
    assert full.to_pandas()["trace"].sum() == pytest.approx(float(made["tangent, trace"].total.trace()))
    assert made["findings"].to_pandas()["name"].tolist() == [finding.name for finding in made["findings"]]
    assert advisor.Findings().to_pandas().empty
    assert made["flow"].to_pandas()["layer"].tolist() == list(made["flow"].layers)
    assert isinstance(frame, pd.DataFrame)


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("run", "Run"),
        ("kernel", "Kernel"),
        ("findings", "Findings"),
        ("self-influence", "Influence"),
        ("flow", "LayerFlow"),
    ],
)
def test_without_pandas_one_sentence_says_what_to_do(
    name: str, caller: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made[name]
    monkeypatch.setitem(sys.modules, "pandas", None)
    sentence = (
        rf"^{caller}\.to_pandas: expected pandas, got no such package\. Run `pip install 'pullback\[pandas\]'`\.$"
    )
    with pytest.raises(pb.InputError, match=sentence):
        result.to_pandas()


def test_findings_are_a_list_that_shows_cards(made: Made) -> None:
    found = made["findings"]
    assert isinstance(found, list)
    assert found == list(found)
    card = found._repr_html_()
    assert card.count("pb-card pb-") == len(found)
    assert NASTY not in card
    assert repr(advisor.Findings()) == "[]"
    assert "No findings" in advisor.Findings()._repr_html_()
    assert repr(advisor.Findings([found[0]] * 9)).endswith("and 3 more]")


def test_a_run_shows_its_loss_and_where_it_went_wrong(made: Made) -> None:
    run = made["run"]
    loss = run.plot().data[0]
    assert list(loss.x) == [1, 2, 3, 4, 5]
    assert list(loss.y) == [2.0, 4.0, 8.0, 16.0, 32.0]
    marks = run.plot().data[1:]
    assert "divergence" in [mark.name for mark in marks]
    assert all(mark.x[0] in loss.x for mark in marks)
    assert advisor.verdict(run) in Parsed(re.sub(r"srcdoc='[^']*'", "", run._repr_html_())).text


def test_a_finding_has_a_panel_for_each_unit() -> None:
    """What can be compared stands beside each other, also on the card; what stands alone is in the figure alone."""
    evidence = {
        "sharpness": 7.5,
        "limit": 0.67,
        "learning rate": 3.0,
        "first loss": 2.3,
        "last loss": 9.0,
        "layers": 2.0,
    }
    evidence["size"] = float("nan")
    finding = pb.Finding(
        "learning-rate-too-high", "critical", None, (3, 9), evidence, "2 / sharpness", "here", "Lower it"
    )
    assert by_unit({"highest loss, in first ones": 2.0, "share of the steps": 0.5, "test accuracy": 0.1}) == {
        "highest loss, in first ones": {"highest loss, in first ones": 2.0},
        "share": {"share of the steps": 0.5},
        "accuracy": {"test accuracy": 0.1},
    }
    figure = finding.plot()
    panels = {each.xaxis: tuple(each.y) for each in figure.data}
    assert panels == {"x": (7.5, 0.67), "x2": (2.3, 9.0), "x3": (3.0,), "x4": (2.0,)}
    titles = [figure.layout[f"yaxis{place}"].title.text for place in ("", 2, 3, 4)]
    assert titles == ["sharpness", "loss", "learning rate", "layers"]
    areas = [(*figure.layout[f"xaxis{k}"].domain, *figure.layout[f"yaxis{k}"].domain) for k in ("", 2, 3, 4)]
    for at, (a, b, c, d) in enumerate(areas):
        assert all(b < e or f < a or d < g or h < c for e, f, g, h in areas[at + 1 :])
    card = finding._repr_html_()
    assert card.count("<svg viewBox") == 2
