"""What kind of training it is: one that slows itself down, one that learns no features, one that learns by heart."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from pullback.advisor.change import Change
from pullback.advisor.course import rose_again
from pullback.advisor.findings import Finding
from pullback.advisor.reading import (
    CONVENTION,
    by_layer,
    has,
    least_loss,
    number,
    records_with,
    rows,
    span,
    with_layers,
)
from pullback.advisor.severity import learns, severity
from pullback.advisor.thresholds import (
    ACCURACY_FALL,
    BY_HEART_LOSS,
    BY_HEART_RISE,
    ENOUGH_LOOKS,
    FEW_STEPS,
    GENERALISATION_GAP,
    HALF_WAY,
    KNOWN_BY_HEART,
    LAZY_DRIFT,
    LOSES,
    LOST_ACCURACY,
    MANY_LOOKS,
    RATE_DECAY,
    TEST_LOSS_RISE,
    TEST_LOSS_SHARE,
    WORSE_THAN_ONE_ANSWER,
)
from pullback.advisor.training_losses import training_losses
from pullback.runs import Record, Run

OF_NUMBERS = {"squared", "absolute", "huber"}  # forms of losses without an accuracy
HELD_OUT = {"test": "", "epoch": "test_"}  # probes that loops log it as, and what their names begin with


def effective_rate_decay(run: Run) -> Iterator[Finding]:
    """Weights whose scale does not matter grow, and their effective rate lr / |w|^2 falls without anyone asking."""
    records = with_layers(run, "effective_lr", "norm")
    if not records:
        return
    first, last = by_layer(records[0], "norm"), by_layer(records[-1], "norm")
    invariant = records[-1].values.get("invariant")
    decay = {
        layer: (last[layer] / norm) ** 2
        for layer, norm in first.items()
        if isinstance(invariant, dict)
        and invariant.get(layer) is True
        and norm > 0
        and layer in last
        and not _weight_decay(records[-1], layer) > 0
    }
    layer = max(decay, key=lambda name: decay[name]) if decay else None
    if layer is not None and decay[layer] > RATE_DECAY:
        yield Finding(
            "effective-rate-decay",
            severity(run),
            layer,
            span(records),
            {"factor": decay[layer], "first norm": first[layer], "last norm": last[layer]},
            f"|w|^2 of a scale-invariant layer grew more than {RATE_DECAY:g} times, without weight decay",
            "van Laarhoven (2017), arXiv:1706.05350; " + CONVENTION,
            "Add weight decay to the layers before normalisation, which holds |w| at an equilibrium",
            summary="Weights before a normalisation grow, and with them their steps lose size: the rate falls unasked.",
        )


def _weight_decay(record: Record, layer: str) -> float:
    """Of a layer, where the optimiser's groups differ."""
    decay = record.values.get("weight_decay", 0.0)
    return number(decay.get(layer, 0.0) if isinstance(decay, dict) else decay)


def lazy_regime(run: Run) -> Iterator[Finding]:
    """The loss fell while the tangent kernel stayed: the network is a linear model of fixed features."""
    records = records_with(run, "tangent", "drift")
    if len(records) < 2 or not learns(run) or records[-1].values["drift"] >= LAZY_DRIFT:
        return
    values = records[-1].values
    more = {"cka": "CKA with the first kernel", "label_alignment": "alignment with the labels"}
    yield Finding(
        "lazy-regime",
        "info",
        None,
        span(records),
        {"relative drift of the tangent kernel": values["drift"]}
        | {label: values[name] for name, label in more.items() if has(records[-1], name)},
        f"relative change of the tangent kernel below {LAZY_DRIFT:g} while the loss fell",
        "Chizat, Oyallon and Bach (2019), arXiv:1812.07956; " + CONVENTION,
        "For learnt features use a larger learning rate, a smaller scale of the output, or a narrower network",
        summary="The loss falls, but the features stay those of the random start: a linear model is being fitted.",
    )


def memorisation(run: Run) -> Iterator[Finding]:
    """Training samples known by heart that do not carry over to held-out ones.

    A gap is no harm by itself: hard tasks and small data leave one in the best of runs. A warning is a held-out measure
    that was better before, or a held-out loss by which no network would be better; where that was looked at too seldom
    to tell, the gap.
    """
    held_out = sorted((r for probe in HELD_OUT for r in rows(run, probe) if _test(r)), key=lambda r: (r.step, r.time))
    train = records_with(run, "loss", "loss")
    if not held_out or not train:
        return
    tests = [_test(record) for record in held_out]
    losses, accuracies = ([each[name] for each in tests if name in each] for name in ("loss", "accuracy"))
    least = _least_of(run, losses)
    evidence = _gap(run, train[-1], tests[-1])
    rose = rose_again(losses, train.numbers("loss"), least) or _numbers_by_heart(run, losses, least)
    if "loss" in tests[-1] and rose:
        evidence |= {"lowest test loss": min(losses), "last test loss": losses[-1]}
    many = len(accuracies) >= MANY_LOOKS
    fall = _fall(accuracies) if many else 0.0
    if not evidence and not (_is_lost(accuracies, fall) and _falls(run)):
        return
    if fall > ACCURACY_FALL:
        evidence |= {"fall of the test accuracy": fall}
    of_numbers = "last test loss" in evidence and bool(OF_NUMBERS & {*train.cells("form")})
    worse = rose and _is_worse_than_one_answer(run, losses, least)
    if worse:
        evidence |= {"loss of one answer for all": training_losses(run).constant or math.nan}
    harms = of_numbers or worse or (fall > ACCURACY_FALL if many else "training accuracy" in evidence)
    yield Finding(
        "memorisation",
        "warning" if harms else "info",
        None,
        (train[0].step, held_out[-1].step),
        evidence,
        f"training accuracy of {KNOWN_BY_HEART:.0%} and {GENERALISATION_GAP:.0%} less on the test set, a test "
        f"loss {_above(least)} while the training loss fell, or a test accuracy that fell by more than "
        f"{LOST_ACCURACY:g} and {LOSES:g} times its changes in {ENOUGH_LOOKS} looks or more; a warning if the test "
        f"accuracy fell by more than {ACCURACY_FALL:g} from its best quarter, if the test loss ends above "
        f"{WORSE_THAN_ONE_ANSWER:g} times that of one answer for all, or, looked at less than {MANY_LOOKS} times, of "
        "the gap, and of an error of numbers",
        "Zhang et al. (2017), arXiv:1611.03530; " + CONVENTION,
        "Stop earlier, regularise (weight decay, dropout, augmentation), use more data, and check the labels",
        summary="The training samples are learnt by heart; what is learnt no longer helps on others.",
        change=Change("early_stopping") if harms or "last test loss" in evidence else None,
    )


def _gap(run: Run, train: Record, test: dict[str, float]) -> dict[str, float]:
    """The accuracies of the last looks, where training samples are known by heart and the others far less well."""
    if not has(train, "accuracy") or "accuracy" not in test:
        return {}
    accuracy = train.values["accuracy"]
    if accuracy < KNOWN_BY_HEART or accuracy - test["accuracy"] <= GENERALISATION_GAP or not _fits(run):
        return {}
    return {"training accuracy": accuracy, "test accuracy": test["accuracy"]}


def _least_of(run: Run, losses: Sequence[float]) -> float | None:
    """The smallest value of the loss, None also where held-out losses are below."""
    least = least_loss(run)
    return None if least is not None and losses and min(losses) < least else least


def _is_lost(accuracies: Sequence[float], fall: float) -> bool:
    """Whether the held-out accuracy fell by more than its changes from look to look, whatever else is known."""
    return fall > LOST_ACCURACY and len(accuracies) >= ENOUGH_LOOKS and fall > LOSES * _noise(accuracies)


def _numbers_by_heart(run: Run, held_out: Sequence[float], least: float | None) -> bool:
    """Whether next to nothing is left of the training's error, most of a held-out one, and that was less before.

    Where training samples are not known by heart, a smaller rise may be of a loss that swings.
    """
    training = training_losses(run)
    if training.share is None or training.constant is None or least is None or len(held_out) < MANY_LOOKS:
        return False
    height, best, last = training.constant - least, min(held_out) - least, median(held_out[-3:]) - least
    of_numbers = OF_NUMBERS & {*records_with(run, "loss", "loss").cells("form")}
    known = bool(of_numbers) and training.share <= BY_HEART_LOSS
    return known and last > HALF_WAY * height and last > BY_HEART_RISE * best


def _noise(accuracies: Sequence[float]) -> float:
    """What an accuracy changes from look to look."""
    return median(abs(b - a) for a, b in pairwise(accuracies))


def _falls(run: Run) -> bool:
    """Whether the loop's own loss went on falling, so that it is no wreck that lost the accuracy."""
    losses = training_losses(run)
    half = len(losses) // 2
    return half >= FEW_STEPS and median(losses.finite[half:].tolist()) < median(losses.finite[:half].tolist())


def _is_worse_than_one_answer(run: Run, held_out: Sequence[float], least: float | None) -> bool:
    """Whether a network that learns has made of a held-out loss below that of one answer for all one that is above."""
    constant = training_losses(run).constant
    if constant is None or least is None or len(held_out) < MANY_LOOKS or not learns(run):
        return False
    height, best, last = constant - least, min(held_out) - least, median(held_out[-3:]) - least
    return best < height and last > WORSE_THAN_ONE_ANSWER * height


def _fits(run: Run) -> bool:
    """Whether the loop's own losses say so too, where they can: few measured samples may all be right by chance."""
    losses = training_losses(run)
    return losses.share is None or len(losses) < FEW_STEPS or losses.share <= BY_HEART_LOSS


def _fall(accuracies: Sequence[float]) -> float:
    """From the best quarter's median to that of the last."""
    quarter = len(accuracies) // 4
    held = sorted(accuracies[:quarter])
    best = level = median(held)
    for before, after in zip(accuracies, accuracies[quarter:], strict=False):
        del held[bisect_left(held, before)]
        insort(held, after)
        level = median(held[(quarter - 1) // 2 : quarter // 2 + 1])  # of what is sorted, by its middle
        best = max(best, level)
    return best - level


def _above(least: float | None) -> str:
    if least is not None:
        return f"{TEST_LOSS_RISE:g} times its minimum"
    return f"above its minimum by {TEST_LOSS_SHARE:.0%} of the training loss's fall"


def _test(record: Record) -> dict[str, float]:
    """Held-out loss and accuracy out of records of "test" or, as the demo writes them, of "epoch"."""
    prefix = HELD_OUT[record.probe]
    return {name: record.values[prefix + name] for name in ("loss", "accuracy") if has(record, prefix + name)}
