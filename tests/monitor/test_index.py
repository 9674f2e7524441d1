"""Samples that stand out are named by their index in the data set, and shown, where the loop passes ``index=``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pullback as pb
from pullback.advisor.rules.samples import listed_samples
from pullback.report.run.page import page_html
from pullback.report.run.series import name_runs
from pullback.report.run.tables import png, suspects_of
from pullback.runs import Record, Run, load_run

ODD = 17  # of the data set


def trained(folder: Any, index: Any, steps: int = 4, shape: tuple[int, ...] = (1, 6, 6)) -> Run:
    """A model of pictures whose batch holds one, sample ``ODD`` of 64, whose gradient outweighs all others."""
    torch.manual_seed(0)
    x, y = torch.randn(64, *shape), torch.arange(64) % 4
    x[ODD] *= 60
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    nn.init.zeros_(model[1].weight)  # so that a gradient is as long as its inputs
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loss_fn = nn.CrossEntropyLoss()
    order = torch.arange(63, -1, -1)
    with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, every=2, budget=None) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(model(x[order]), y[order])
            loss.backward()
            optimizer.step()
            monitor.step(x[order], y[order], loss=loss, index=index(order))
    return load_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("index") / "run", lambda order: order)


def test_each_sample_that_is_named_has_its_index(run: Run) -> None:
    records = list(run.of("samples"))
    assert len(records) > 1
    for record in records:
        named = {s[0] for s in record.values["suspects"]} | {c[0] for c in record.values.get("contradicted", [])}
        assert [at for at, _ in record.values["index"]] == sorted(named)
        assert all(index == 63 - at for at, index in record.values["index"])
    assert [63 - ODD, ODD] in records[-1].values["index"]


def test_inputs_of_suspects_are_stored_as_they_were(run: Run) -> None:
    (step, *_) = run.array_steps("samples", "suspects")
    record = next(r for r in run.of("samples") if r.step == step)
    stored = run.array("samples", step, "suspects")
    torch.manual_seed(0)
    x = torch.randn(64, 1, 6, 6)
    x[ODD] *= 60
    for row, (place, _, _) in enumerate(record.values["suspects"]):
        np.testing.assert_array_equal(stored[row], x[63 - place].numpy())
        assert record.values["suspect_targets"][row] == (63 - place) % 4


def test_the_page_and_the_finding_name_them(run: Run) -> None:
    found = suspects_of(name_runs([run])[0])
    odd = next(row for row in found["rows"] if row["index"] == ODD)
    assert odd["place"] == 63 - ODD
    assert odd["target"] == ODD % 4
    assert odd["picture"].startswith("iVBOR")  # a PNG
    page = page_html(name_runs([run]))
    assert f'alt="inputs of sample {63 - ODD}"></td>' in page
    assert "Places are counted within the measured batch" not in page


@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.int])
def test_lists_arrays_and_tensors_will_do(kind: Any, tmp_path: Any) -> None:
    run = trained(tmp_path / "run", lambda order: kind(order), steps=1)
    assert next(run.of("samples")).values["index"]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (lambda order: order[:5], "5 of them for 64 samples"),
        (lambda order: order / 2, "no whole number for each sample"),
        (lambda order: 3, "'int' object is not iterable"),
    ],
)
def test_what_is_no_index_is_said_once_and_the_rest_is_measured(index: Any, said: str, tmp_path: Any) -> None:
    with pytest.warns(UserWarning, match=said) as warned:
        run = trained(tmp_path / "run", index)
    assert sum(said in str(each.message) for each in warned) == 1
    assert all("index" not in record.values for record in run.of("samples"))
    assert len(list(run.of("samples"))) > 1


def test_without_an_index_places_are_told(tmp_path: Any) -> None:
    run = trained(tmp_path / "run", lambda order: None, shape=(36,))
    found = suspects_of(name_runs([run])[0])
    assert not found["indexed"]
    assert found["rows"][0]["picture"] == ""
    assert found["rows"][0]["numbers"].endswith("… (36 numbers)")
    page = page_html(name_runs([run]))
    assert "the index in the data set is told where the loop" in page
    assert f'<td class="text">{found["rows"][0]["numbers"]}</td>' in page


def test_a_remedy_names_samples_by_what_is_known_of_them() -> None:
    suspects = {"label": [[3, 9.0, "label"]], "outlier": [[5, 8.0, "outlier"]]}
    known = Record(7, 0.0, "samples", {"index": [[3, 1003], [5, 1005]]})
    bare = Record(7, 0.0, "samples", {})
    assert listed_samples(suspects, dict.fromkeys(suspects, known)) == (
        "Check the labels of samples 1003 of step 7; look at samples 1005 of step 7, by their index in the data set"
    )
    assert listed_samples(suspects, dict.fromkeys(suspects, bare)).endswith(
        "samples 5 of step 7, counted within the measured batch"
    )
    damaged = Record(7, 0.0, "samples", {"index": [3, "x", [5], [5, "a"]]})
    assert "samples 5 of step 7" in listed_samples(suspects, dict.fromkeys(suspects, damaged))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_png_files(channels: int, tmp_path: Any) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png(pixels))
    read = np.asarray(image.open(tmp_path / "a.png")).reshape(pixels.shape)
    np.testing.assert_array_equal(read, pixels)
