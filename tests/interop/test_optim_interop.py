"""From the same start, on the same batches, training here and in PyTorch is the same training."""

from pathlib import Path

import numpy as np
import pytest

import loradora as ld
import minigrad as mg

NEEDED = "needs the extra `interop`: pip install -e '.[interop]'"
torch = pytest.importorskip("torch", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)
pytest.importorskip("safetensors", reason=NEEDED)
twins = pytest.importorskip("twins", reason=NEEDED)

OPTIMIZERS = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD with momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "AdamW": ("AdamW", {}),
    "AdamW of other options": (
        "AdamW",
        {"lr": 0.003, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3},
    ),
    "AdamW without decay": ("AdamW", {"weight_decay": 0.0}),
}

VARIANTS = [name for name in OPTIMIZERS if name not in ("SGD", "AdamW")]

#: Kinds that differ in what they train or in its gradient.
KINDS = [
    "LoRA",
    "DoRA",
    "rsLoRA",
    "both patterns, rsDoRA",
    "bias all, DoRA",
    "bias lora_only",
    "modules_to_save",
    "modules_to_save, bias all",
    "lora_bias",
    "random B, DoRA",
]


def both(kind: str, dtype: str, folder: Path):
    """Return an adapted model here and in PEFT that start from the same numbers."""
    net = twins.net(dtype)
    theirs = twins.adapt(net, **twins.KINDS[kind])
    theirs.save_pretrained(str(folder))
    return twins.load(twins.twin(net), folder, is_trainable=True), theirs


@pytest.mark.parametrize("dtype", twins.TOLERANCE)
@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [(kind, optimizer) for kind in KINDS for optimizer in ("SGD", "AdamW")]
    + [(kind, optimizer) for kind in ("LoRA", "DoRA") for optimizer in VARIANTS],
)
def test_every_step_is_the_same(kind: str, optimizer: str, dtype: str, tmp_path: Path) -> None:
    ours, theirs = both(kind, dtype, tmp_path)
    start = {key: p.copy() for key, p in twins.trained(theirs).items()}
    twins.agree(twins.trained(ours), start, tolerance=0)

    name, options = OPTIMIZERS[optimizer]
    pair = [twins.training(model, name, dtype, **options) for model in (ours, theirs)]
    for _ in range(10):
        assert next(pair[0]) == next(pair[1])
        twins.agree(twins.trained(ours), twins.trained(theirs))
    assert all((p != start[key]).any() for key, p in twins.trained(ours).items())


@pytest.mark.parametrize("dtype", twins.TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_training_begun_in_peft_goes_on_here(kind: str, dtype: str, tmp_path: Path) -> None:
    """After twenty steps there, outputs, gradients and further steps are the same here."""
    net, batch = twins.net(dtype), twins.data(dtype, seed=99)
    theirs = twins.train(twins.adapt(net, **twins.KINDS[kind]), 20, dtype=dtype)
    theirs.save_pretrained(str(tmp_path))
    ours = twins.load(twins.twin(net), tmp_path, is_trainable=True)
    twins.agree(twins.run(ours, batch[0]), twins.run(theirs, batch[0]))

    theirs.zero_grad()
    for model in (ours.train(), theirs.train()):
        twins.backward(model, *batch)
    twins.agree(twins.trained(ours, "grad"), twins.trained(theirs, "grad"))

    for model in (ours, theirs):
        twins.train(model, 3, dtype, lr=0.1)
    twins.agree(twins.trained(ours), twins.trained(theirs))


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "bias all, DoRA"])
def test_training_begun_here_goes_on_in_peft(kind: str, tmp_path: Path) -> None:
    net = twins.net()
    ours = twins.train(twins.adapt(twins.twin(net), **twins.KINDS[kind]), 5)
    ours.save_pretrained(tmp_path)
    theirs = twins.load(net, tmp_path, is_trainable=True)
    for model in (ours, theirs):
        twins.train(model, 5, lr=0.1)
    twins.agree(twins.trained(ours), twins.trained(theirs))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD with momentum"])
def test_a_state_of_pytorch_goes_on_here(optimizer: str) -> None:
    """Its nested state, written as paths, is ours."""
    name, options = OPTIMIZERS[optimizer]
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(8, 3, 2))
    theirs = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    there = getattr(torch.optim, name)([theirs], **options)
    for g in gradients[:4]:
        theirs.grad = torch.from_numpy(g)
        there.step()
    ours = mg.Tensor(theirs.detach().numpy(), requires_grad=True)
    here = getattr(ld, name)([ours], **options)
    state = here.state_dict() | {
        f"state.0.{key}": np.asarray(value, np.int64 if key == "step" else np.float64)
        for key, value in there.state_dict()["state"][0].items()
    }
    here.load_state_dict(state)
    for g in gradients[4:]:
        theirs.grad, ours.grad = torch.from_numpy(g), g
        there.step()
        here.step()
    np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-13)


@pytest.mark.parametrize("g", [2e19, 1e20, 5.8e20])
def test_adamw_does_not_overflow_before_pytorchs(g: float) -> None:
    theirs = torch.nn.Parameter(torch.ones(1))
    ours = mg.Tensor(np.ones(1, np.float32), requires_grad=True)
    there, here = torch.optim.AdamW([theirs]), ld.AdamW([ours])
    for gradient in (g, 1.0, 1.0):
        theirs.grad, ours.grad = torch.tensor([gradient]), np.float32([gradient])
        before = ours.data
        there.step()
        here.step()
        assert ours.data < before
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "bias all, DoRA", "modules_to_save", "lora_bias"])
def test_the_groups_of_lora_plus_are_pefts(kind: str, tmp_path: Path) -> None:
    """Rates and decay of every parameter; only the decay of DoRA's m is ours alone."""
    from peft.optimizers import create_loraplus_optimizer

    ours, theirs = both(kind, "float64", tmp_path)
    options = {"lr": 0.01, "loraplus_lr_ratio": 4.0, "loraplus_weight_decay": 0.3}
    there = create_loraplus_optimizer(theirs, torch.optim.AdamW, **options)
    here = ld.AdamW(ld.lora_plus(ours, 0.01, 4.0, weight_decay=0.3))

    def sizes(optimizer, exempt):
        return sorted(
            (tuple(p.shape), group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) not in exempt
        )

    magnitudes = {id(p) for n, p in theirs.named_parameters() if "magnitude_vector" in n}
    magnitudes |= {id(p) for n, p in ours.named_parameters() if n.endswith(".m")}
    assert sizes(here, magnitudes) == sizes(there, magnitudes)
    assert {
        (g["lr"], g["weight_decay"])
        for g in here.param_groups
        for p in g["params"]
        if id(p) in magnitudes
    } <= {(0.04, 0.0)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 3.0, 1e6, float("inf")])
def test_gradients_are_clipped_as_in_pytorch(max_norm: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape).astype(dtype) for shape in ((3, 2), (4,), ())]
    theirs = [
        torch.nn.Parameter(torch.zeros(np.shape(g), dtype=getattr(torch, dtype))) for g in gradients
    ]
    ours = [mg.Tensor(np.zeros_like(g), requires_grad=True) for g in gradients]
    for g, p, q in zip(gradients, theirs, ours, strict=True):
        p.grad, q.grad = torch.from_numpy(np.array(g)), g
    expected = torch.nn.utils.clip_grad_norm_(
        [*theirs, torch.nn.Parameter(torch.ones(2))], max_norm
    )
    found = ld.clip_grad_norm_([*ours, mg.Tensor([1.0], requires_grad=True)], max_norm)
    assert found == pytest.approx(expected.item(), rel=twins.TOLERANCE[dtype])
    for p, q in zip(theirs, ours, strict=True):
        twins.agree(np.asarray(q.grad), p.grad.numpy())


def test_a_warm_up_is_that_of_pytorchs_schedulers() -> None:
    """LinearLR up to the full rate, then LinearLR down to 0, from a first step that is not 0 there."""
    n, w = 20, 5
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    up = schedulers.LinearLR(optimizer, start_factor=1e-9, total_iters=w)
    down = schedulers.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n - w)
    both = schedulers.SequentialLR(optimizer, [up, down], milestones=[w])
    for step in range(n):
        assert ld.warmup(w / n)(step / n) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-8
        )
        optimizer.step()
        both.step()


def test_a_training_on_the_windows_of_a_text_is_that_of_pytorch() -> None:
    """Clipped and warmed up, on labels some of which do not count; in float64, to 1e-10."""
    steps, warm, bound = 20, 5, 0.3
    rng = np.random.default_rng(0)
    x, y = (np.array(part) for part in ld.windows(rng.integers(0, 7, 40), 6))
    y[rng.random(y.shape) < 0.2] = -100
    table = ld.Embedding(7, 4, rng=1, dtype=np.float64)
    ours = ld.Sequential(table, ld.Linear(4, 7, rng=2, dtype=np.float64))
    theirs = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7)).double()
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in ours.state_dict().items()})

    options = {"steps": steps, "batch_size": len(x), "clip_grad_norm": bound, "rng": 0}
    optimizer = ld.AdamW(ours.parameters(), lr=0.1)
    records = ld.fit(ours, x, y, optimizer=optimizer, schedule=ld.warmup(warm / steps), **options)

    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    for step, record in enumerate(records):
        logits = theirs(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits.mT, torch.from_numpy(y))
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), bound)
        rate = step / warm if step < warm else (steps - step) / (steps - warm)
        adamw.param_groups[0]["lr"] = 0.1 * rate
        adamw.step()
        assert [record.loss, record.grad_norm] == pytest.approx(
            [loss.item(), norm.item()], rel=1e-10
        )
