"""Transformers on the critical line: branches scaled by 1 / sqrt(L), by the calls of the model (S1-68)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import modules, theory

D, TOKENS = 16, torch.arange(10).reshape(2, 5)


def encoder(depth: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(D), enable_nested_tensor=False)


class Block(nn.Module):
    """A layer as a user may write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.attend = kind, nn.MultiheadAttention(D, 2, batch_first=True)
        self.first, self.second, self.gain = nn.LayerNorm(D), nn.LayerNorm(D), nn.Parameter(torch.ones(D))
        self.mlp = nn.Sequential(nn.Linear(D, 32), nn.GELU(), nn.Linear(32, D), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        def attended(h: Tensor) -> Tensor:
            return self.attend(h, h, h)[0]

        if self.kind == "post":
            x = self.first(x + attended(x))
            return self.second(self.mlp(x) + x)
        if self.kind == "parallel":
            h = self.first(x)
            return x + attended(h) + self.mlp(h)
        if self.kind == "in place":
            x += self.gain * attended(self.first(x))
            x += self.mlp(self.second(x))
            return x
        if self.kind == "halved":
            return torch.add(x := x + 0.5 * attended(self.first(x)), self.mlp(self.second(x)))
        if self.kind == "norm last":
            return x + self.second(self.mlp(x + attended(x)))
        if self.kind != "matrix last":
            x = x + self.mlp(self.second(x))
        if self.kind == "size last":
            h = attended(x)
            return x + h * torch.pow(h.pow(2).mean(-1, keepdim=True) + 1e-6, -0.5)
        if self.kind == "activation last":
            return x + torch.relu(attended(x))
        assert self.kind == "matrix last"
        return x + self.mlp(attended(x)) @ torch.diag(self.gain)


class Written(nn.Module):
    """A language model of such layers; the outputs share their weights with the table if asked to."""

    def __init__(self, kind: str, depth: int, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(20, D), nn.Parameter(torch.zeros(1, 5, D))
        self.blocks, self.head = nn.ModuleList(Block(kind) for _ in range(depth)), nn.Linear(D, 20)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def weights_of(model: nn.Module, **options: Any) -> tuple[dict[str, Tensor], pb.modules.Initialisation]:
    made = pb.initialise(model, report=True, **options)
    assert made.model is model
    return {name: value.clone() for name, value in model.state_dict().items()}, made


@pytest.mark.parametrize("x", [None, torch.zeros(2, 3, D)], ids=["code", "example"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_encoder_exactly(norm_first: bool, x: Tensor | None) -> None:
    """Layers that end a branch are the draw without scaling, times 1 / sqrt(L); all else is that draw."""
    model = encoder(3, norm_first=norm_first, activation="gelu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unscaled, _ = weights_of(model, phase="ordered", sigma_b=0.6, x=x)
    scaled, made = weights_of(model, sigma_b=0.6, x=x)
    ends = {f"layers.{k}.{end}" for k in range(3) for end in ("self_attn.out_proj", "linear2")}
    assert made.branches == dict.fromkeys(ends, 1 / math.sqrt(3))
    for name, value in scaled.items():
        owner, _, _ = name.rpartition(".")
        if owner in ends:
            assert torch.equal(value, unscaled[name] * (1 / math.sqrt(3)))
            assert value.abs().max() > 0
        elif "norm" in name or "in_proj" in name:
            assert torch.equal(value, before[name])
        else:
            assert not torch.equal(value, before[name])
    assert {f"layers.{k}.{norm}" for k in range(3) for norm in ("norm1", "norm2", "self_attn")} <= set(made.untouched)


def test_encoder_and_decoder_have_depths_of_their_own() -> None:
    model = nn.Transformer(D, 2, 2, 5, 32, batch_first=True)
    for x in (None, (torch.zeros(2, 3, D), torch.zeros(2, 4, D))):
        depths = {each.name: each.depth for each in pb.initialise(model, x=x, report=True).layers}
        for name, depth in depths.items():
            inner = name.endswith("linear1")
            assert depth == (None if inner else 2 if name.startswith("encoder") else 5), name
        assert len(depths) == 2 * 3 + 5 * 4


class Within(nn.Module):
    """Torch's transformers among other layers, with a mask."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.table, self.both, self.head = nn.Embedding(20, D), both, nn.Linear(D, 20)
        self.inner = nn.Transformer(D, 2, 2, 3, 32, batch_first=True) if both else encoder(3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        return self.head(self.inner(h, h, tgt_mask=self.mask) if self.both else self.inner(h, mask=self.mask))


@pytest.mark.parametrize("both", [False, True])
def test_torchs_transformers_among_other_layers(both: bool) -> None:
    """The code alone, which decides by shapes there, shows what an example shows; nothing of the model changes."""
    answers = []
    for x in (None, TOKENS):
        model = Within(both)
        made = pb.initialise(model, x=x, report=True)
        assert model.training
        answers.append((made.branches, {each.name: (each.activation, each.sigma_w) for each in made.layers}))
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == (2 * 2 + 3 * 3 if both else 6)
    assert answers[0][1]["head"] == (None, 1.0)


@pytest.mark.parametrize("x", [None, TOKENS], ids=["code", "example"])
@pytest.mark.parametrize("kind", ["post", "parallel", "in place", "halved"])
def test_layers_that_users_write(kind: str, x: Tensor | None) -> None:
    model = Written(kind, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after, made = weights_of(model, x=x)
    ends = {f"blocks.{k}.{end}" for k in range(4) for end in ("attend.out_proj", "mlp.2")}
    assert made.branches == dict.fromkeys(ends, 0.5)
    assert {"table", "", "blocks.0", "blocks.0.first", "blocks.0.attend"} <= set(made.untouched)
    assert torch.equal(after["table.weight"], before["table.weight"])
    assert "head" not in made.branches


class Hand(nn.Module):
    """A layer of attention by torch's function, with what is put around it told apart by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(D)
        self.query, self.key, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down = nn.Linear(D, D), nn.Linear(D, D)
        self.mixed = modules.LinformerAttention(D, 2, length=5, k=3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if self.kind == "linformer":
            x = x + self.mixed(h, h, h)[0]
        else:
            q, k, v = (layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            y = y if self.kind == "no outputs" else self.out(y)
            x = x - y if self.kind == "minus" else x + y
        if self.kind == "attention alone":
            return x
        x = x + nn.functional.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))), 0.1, self.training)
        return x + self.down(nn.functional.gelu(self.up(x))) if self.kind == "two of one" else x


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("plain", {"out", "down"}), ("minus", {"out", "down"}), ("attention alone", {"out"}),
        ("no outputs", {"value", "down"}), ("linformer", {"mixed.out_proj", "down"}), ("two of one", {"out", "down"}),
    ],
)  # fmt: skip
def test_what_is_put_around_attention(kind: str, ends: set[str]) -> None:
    """Depth is counted in runs of attention, whatever else is in a layer; a layer that ends two branches has one."""
    model = nn.Sequential(nn.Linear(D, D), *(Hand(kind) for _ in range(4)))
    for block in list(model)[1:]:  # what is not called is not there
        unused = {"linformer": ("query", "key", "value", "out"), "attention alone": ("mixed", "up", "down")}
        for name in unused.get(kind, ("mixed", "out") if kind == "no outputs" else ("mixed",)):
            setattr(block, name, None)
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    activation = "gelu" if kind == "attention alone" else None
    made = pb.initialise(model, x=x, activation=activation, report=True)
    assert made.branches == dict.fromkeys({f"{k}.{end}" for k in range(1, 5) for end in ends}, 0.5)


@pytest.mark.parametrize("x", [None, torch.zeros(2, 5, D)], ids=["code", "example"])
def test_one_tensor_for_queries_keys_and_values(x: Tensor | None) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.up, self.down = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            h = self.mix(x)
            x = x + nn.functional.scaled_dot_product_attention(h, h, h)
            return x + self.down(torch.relu(self.up(x)))

    made = pb.initialise(nn.Sequential(One(), One()), x=x, report=True)
    assert made.branches == dict.fromkeys(("0.mix", "0.down", "1.mix", "1.down"), 1 / math.sqrt(2))


def test_outputs_that_share_a_table_are_left_alone() -> None:
    model = Written("post", 2, tied=True)
    before = model.table.weight.detach().clone()
    made = pb.initialise(model, report=True)
    assert torch.equal(model.table.weight, before)
    assert {"table", "head"} <= set(made.untouched)


@pytest.mark.parametrize("kind", ["norm last", "size last", "activation last", "matrix last"])
def test_a_branch_that_no_layer_ends(kind: str) -> None:
    model = Written(kind, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(pb.InputError, match=r"branches that end in a layer, got one whose \d\. ends in an activation"):
        pb.initialise(model, x=TOKENS, activation="gelu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pb.initialise(model, phase="chaotic", x=TOKENS, activation="gelu")


def test_layers_that_several_branches_share() -> None:
    """Called L times, as in ALBERT, a layer has the depth of its calls; in two streams, or elsewhere, none."""
    model = Written("post", 4)
    for k in range(1, 4):
        model.blocks[k] = model.blocks[0]
    assert pb.initialise(model, report=True).branches == {"blocks.0.attend.out_proj": 0.5, "blocks.0.mlp.2": 0.5}
    model = Written("post", 2)
    model.head = model.blocks[0].mlp[2]
    with pytest.raises(pb.InputError, match=r"got `blocks.0.mlp.2`, which ends 1 and is called 2 times. Untie"):
        pb.initialise(model)
    two = nn.Transformer(D, 2, 1, 2, 32, batch_first=True)
    two.decoder.layers[0].linear2 = two.encoder.layers[0].linear2
    with pytest.raises(pb.InputError, match=r"linear2` in streams of 1 and 2 layers. Untie the layers first"):
        pb.initialise(two)


def test_streams_without_attention_are_not_scaled() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
                x = x + second(torch.relu(first(x)))
            return x

    assert pb.initialise(Residual(), report=True).branches == {}


def test_the_report_is_a_table() -> None:
    text = str(pb.initialise(encoder(4, activation="gelu"), report=True))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "activation", "sigma_w", "sigma_b", "factor"]
    assert lines[1].split() == ["layers.0.self_attn.out_proj", "-", "1.0000", "0.0000", "0.5000,", "1/sqrt(4)"]
    assert lines[2].split() == ["layers.0.linear1", "gelu", "1.3985", "0.5722"]
    assert lines[-1].startswith("left alone: layers.0.self_attn, layers.0.norm1")


class Uniform(nn.Module):
    """Uniform attention and one linear map, each in a branch: where ``theory.token_profile`` is exact."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.attend, self.map = nn.MultiheadAttention(width, 2, bias=False, batch_first=True), nn.Linear(width, width)
        make = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.attend.in_proj_weight.zero_()
            self.attend.in_proj_weight[2 * width :] = torch.randn(width, width, generator=make) / math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return x + self.map(x)


def test_tokens_at_depth_24() -> None:
    """Sums of inner products within four standard errors of theory with scaling; without it all tokens are one."""
    depth, n, width, draws = 24, 8, 32, 12
    x = torch.eye(width, dtype=torch.float64)[None, :n]
    known = theory.token_profile(n, depth, scaled=True)
    sums = {phase: [] for phase in ("critical", "ordered")}
    for phase, found in sums.items():
        for seed in range(draws if phase == "critical" else 2):
            model = nn.Sequential(*(Uniform(width, 100 * seed + k) for k in range(depth)))
            pb.initialise(model, phase=phase, activation="linear", seed=seed).double()
            with torch.no_grad():
                y = model(x)[0]
            total, norms = float(y.sum(0).square().sum()), float(y.square().sum())
            found.append((total, norms, (total - norms) / ((n - 1) * norms)))
    values = torch.tensor(sums["critical"], dtype=torch.float64)
    errors = values.std(0) / math.sqrt(draws)
    assert abs(float(values[:, 0].mean()) - known.total[-1]) < 4 * errors[0] < 0.5 * known.total[-1]
    assert abs(float(values[:, 1].mean()) - known.norms[-1]) < 4 * errors[1] < 0.5 * known.norms[-1]
    assert abs(float(values[:, 2].mean()) - known.cosine[-1]) < 0.1
    assert min(cosine for _, _, cosine in sums["ordered"]) > 0.999


def config(**more: Any) -> dict[str, Any]:
    return {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32} | more


HUGGING_FACE: dict[str, tuple[Callable[[Any], Any], set[str], dict[str, float]]] = {
    # model, the layers that end branches, activation -> its sigma_w
    "bert": (
        lambda t: t.BertModel(t.BertConfig(vocab_size=50, **config())),
        {"attention.output.dense", "output.dense"}, {"GELUActivation": 1.3985, "tanh": 1.0},
    ),
    "gpt2": (
        lambda t: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=50, n_embd=D, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)
        ),
        {"attn.c_proj", "mlp.c_proj"}, {"NewGELUActivation": 1.3985},
    ),
    "vit": (
        lambda t: t.ViTModel(t.ViTConfig(image_size=16, patch_size=4, **config()), add_pooling_layer=False),
        {"attention.o_proj", "mlp.fc2"}, {"GELUActivation": 1.3985},
    ),
    "llama": (
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=50, **config(num_key_value_heads=1))),
        {"self_attn.o_proj", "mlp.down_proj"}, {"SiLUActivation": 1.4025},
    ),
    "t5": (
        lambda t: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=50, d_model=D, num_layers=3, num_heads=2, d_ff=32, d_kv=8, decoder_start_token_id=0,
                pad_token_id=0,
            )
        ),
        {"SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"}, {"relu": math.sqrt(2)},
    ),
}  # fmt: skip


SLOW = {"vit", "llama", "t5"}


@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in
                                  HUGGING_FACE])  # fmt: skip
def test_models_of_hugging_face(name: str) -> None:
    """By configuration, without an example: ends of branches in every layer, activations, all else left alone."""
    make, ends, sigmas = HUGGING_FACE[name]
    torch.manual_seed(0)
    model = make(pytest.importorskip("transformers"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    unscaled, _ = weights_of(model, phase="ordered")
    scaled, made = weights_of(model)
    assert set(made.branches.values()) == {1 / math.sqrt(3)}
    assert {max((end for end in ends if each.endswith(end)), key=len) for each in made.branches} == ends
    assert len(made.branches) == (15 if name == "t5" else 6)
    found = {each.activation: each.sigma_w for each in made.layers if each.activation is not None}
    assert found == pytest.approx(sigmas, abs=2e-4)
    drawn = {each.name for each in made.layers}
    for key, value in scaled.items():
        owner, _, _ = key.rpartition(".")
        if owner in made.branches:
            assert torch.equal(value, unscaled[key] * (1 / math.sqrt(3)))
        elif owner not in drawn:  # tables, normalisation, outputs tied to a table
            assert torch.equal(value, before[key]), key


def test_a_model_whose_configuration_gives_no_input() -> None:
    """Of another kind than text and pictures: the error asks for an example."""
    t = pytest.importorskip("transformers")

    class Other(t.BertModel):
        main_input_name = "input_features"
        dummy_inputs = property(lambda self: {"input_features": torch.zeros(2, 3)})

    model = Other(t.BertConfig(vocab_size=50, **config()))
    with pytest.raises(
        pb.InputError, match=r"code alone shows, got (Type|Value)Error \(.*Pass an example of its inputs as x="
    ):
        pb.initialise(model)
    assert len(pb.initialise(model, x={"input_ids": TOKENS}, report=True).branches) == 6


@pytest.mark.slow
def test_a_norm_at_the_end_of_a_branch_of_hugging_face() -> None:
    t = pytest.importorskip("transformers")
    model = t.Gemma2ForCausalLM(t.Gemma2Config(vocab_size=50, **config(num_key_value_heads=1, head_dim=8)))
    with pytest.raises(pb.InputError, match="expected residual branches that end in a layer"):
        pb.initialise(model)


def test_linear_layers_of_gpt2() -> None:
    """Weights (inputs, outputs): variance 1 / inputs, and orthonormal rows or columns."""
    kind = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(kind(800, 200), nn.ReLU(), kind(300, 800))
    pb.initialise(model)
    assert float(model[0].weight.detach().square().mean()) * 200 == pytest.approx(2, rel=0.02)
    assert float(model[2].weight.detach().square().mean()) * 800 == pytest.approx(1, rel=0.02)
    pb.initialise(model, weights="orthogonal")
    w = model[2].weight.detach()
    assert torch.allclose(w.T @ w, torch.eye(300), atol=1e-4)
    pb.modules.initialise_weights(model, "xavier")
    assert float(model[0].weight.detach().square().mean()) == pytest.approx(2 / 1000, rel=0.02)
