"""What is known of the model, and the remedies that depend on it: no advice to use what is already there."""

from __future__ import annotations

from pullback.advisor.change import Change
from pullback.advisor.reading import layers, once_a_run, rows
from pullback.advisor.severity import learns
from pullback.advisor.thresholds import DEEP
from pullback.runs import Run

RELU_FAMILY = (
    "relu",
    "relu6",
    "leakyrelu",
    "prelu",
    "rrelu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
)
RECURRENT = ("rnn", "lstm", "gru", "rnncell", "lstmcell", "grucell")
SATURATING = ("sigmoid", "logsigmoid", "hardsigmoid")
BOUNDED = (
    "tanh",
    "sigmoid",
    "erf",
    "hardtanh",
    "hardsigmoid",
    "softsign",
)  # flat at both ends; a ReLU is off, not full


@once_a_run
def kinds(run: Run) -> set[str]:
    """Activations and modules of the model, in lower case, as far as its description and its activations say."""
    kinds_of: set[str] = set()
    model = run.meta.get("model")
    modules = model.get("modules") if isinstance(model, dict) else None
    kinds_of |= {str(name) for name in modules} if isinstance(modules, dict) else set()
    kinds_of |= rows(run, "activations").texts("kind")
    return {name.lower().replace("_", "") for name in kinds_of}


def is_normalised(run: Run) -> bool:
    """Whether the model has layers that normalise."""
    return any("norm" in kind for kind in kinds(run))


def is_batch_normed(run: Run) -> bool:
    """Whether one of them is batch norm."""
    return any("batchnorm" in kind for kind in kinds(run))


def is_recurrent(run: Run) -> bool:
    """Whether it has recurrent layers."""
    return bool(kinds(run) & set(RECURRENT))


def has_attention(run: Run) -> bool:
    """Whether it has, by the kinds of its modules or what its layers are called: attention may be no module itself."""
    model = run.meta.get("model")
    layers = model.get("layers") if isinstance(model, dict) else None
    names = {*kinds(run), *(str(each).lower() for each in (layers if isinstance(layers, list) else []))}
    return any("attention" in name or "attn" in name for name in names)


def for_depth(run: Run, verdict: str) -> tuple[str, Change]:
    """A remedy for gradients that vanish or explode over the depth, in words and to be carried out."""
    known = kinds(run)
    if verdict == "exploding":
        if is_recurrent(run):
            return "Clip gradients by norm, and start recurrent weights orthogonal", Change("clip_norm", 1.0)
        if is_normalised(run):
            return "Lower the weight scale of the initialisation, or clip gradients by norm", _start(known)
        words = "Lower the weight scale of the initialisation, add normalisation (layer or batch norm), or clip by norm"
        return words, _start(known)
    if known & set(SATURATING):
        return (
            "Replace the sigmoid, whose slope is at most a quarter, by another activation (tanh, the ReLU family), or "
            "add normalisation (layer or batch norm) or skip connections",
            Change("activation", "tanh"),
        )
    if has_attention(run):  # whose blocks have skip connections
        return (
            "Warm the learning rate up over the first tenth of the steps, and normalise before each branch (pre-norm), "
            "not after it",
            Change("warmup_steps", max(1, int(max(run.steps[-1:], default=10)) // 10)),
        )
    if is_normalised(run):
        return "Add skip connections around every few layers, or make the network less deep", Change("residual")
    if is_recurrent(run):
        return "Use a GRU or an LSTM, start recurrent weights orthogonal, or the others by Xavier", _start(known)
    if _num_layers(run) >= DEEP and not learns(run):  # of one that learns a better start is enough, and safer
        norm = "batch" if any("conv" in kind for kind in known) else "layer"
        return (
            f"Add {norm} norm before each activation, or skip connections around every few layers: over so many layers "
            "no starting weights alone carry the signal",
            Change("normalisation", norm),
        )
    others = "add normalisation (layer or batch norm) or skip connections"
    if known & set(RELU_FAMILY):
        return f"Start from He initialisation, or {others}", _start(known)
    return f"Start from critical initialisation, use an activation of the ReLU family, or {others}", _start(known)


def _num_layers(run: Run) -> int:
    """Layers whose gradients were measured."""
    return len(layers(rows(run, "flow"), "gradient_norm")[0])


def for_units(run: Run, state: str, at_start: bool) -> tuple[str, Change]:
    """A remedy for units that are dead or saturated from the start, or since a step that was too long."""
    known = kinds(run)
    if at_start:
        words = (
            "He initialisation with biases of 0"
            if known & set(RELU_FAMILY)
            else "smaller weights (Xavier initialisation)"
        )
        return f"Start from {words}, or add normalisation before the activation", _start(known, xavier=True)
    if state == "dead":
        return "Lower the learning rate tenfold, or use a leaky activation", Change("learning_rate", 0.1)
    return "Lower the learning rate tenfold, or add normalisation before the activation", Change("learning_rate", 0.1)


def _start(known: set[str], *, xavier: bool = False) -> Change:
    if known & set(RECURRENT):  # of which no critical point is known
        return Change("initialisation", "xavier")
    if known & set(RELU_FAMILY):
        return Change("initialisation", "he")
    return Change("initialisation", "xavier" if xavier else "critical")
