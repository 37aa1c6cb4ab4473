from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reid.config import LossConfig
from reid.core.errors import ReidError
from reid.losses import CollapseWatch, Objective, TripletLoss
from reid.losses.circle import CircleLoss
from reid.losses.contrastive import ContrastiveLoss
from tests.losses.batches import repeated
from tests.oracles import smoothed_cross_entropy_loop, triplet_loss_loop

PIDS = repeated([4, 3, 1, 2])
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 3, 3])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="default"),
        pytest.param({"triplet_weight": 0.5, "softmax_weight": 2.0, "label_smoothing": 0.0}, id="weights, hard labels"),
        pytest.param({"margin": None, "distance": "cosine", "label_smoothing": 1.0}, id="soft margin, all smoothed"),
    ],
)
def test_equals_the_loops(settings):
    features, logits = draw(10, 16), draw(10, 5, seed=1)
    loss, seen = Objective(LossConfig(**settings))(features, logits, LABELS)
    triplet = triplet_loss_loop(
        features.numpy(), LABELS.tolist(), settings.get("margin", 0.3), settings.get("distance", "euclidean")
    )
    softmax = smoothed_cross_entropy_loop(logits.numpy(), LABELS.tolist(), settings.get("label_smoothing", 0.1))
    total = settings.get("triplet_weight", 1.0) * triplet + settings.get("softmax_weight", 1.0) * softmax
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert seen["loss"].item() == loss.item()
    assert seen["triplet"].item() == pytest.approx(triplet, rel=1e-5)
    assert seen["softmax"].item() == pytest.approx(softmax, rel=1e-5)
    right = [row.index(max(row)) == label for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True)]
    assert seen["accuracy"].item() == pytest.approx(sum(right) / 10)


def test_what_is_logged():
    features, logits = draw(10, 16).requires_grad_(), draw(10, 5, seed=1).requires_grad_()
    loss, seen = Objective()(features, logits, LABELS)
    assert seen.keys() == {"loss", "triplet", "active", "positive", "negative", "norm", "softmax", "accuracy"}
    assert all(value.shape == () and not value.requires_grad for value in seen.values())
    assert loss.requires_grad
    _, alone = TripletLoss().measure(features, LABELS)
    assert all(seen[name] == alone[name] for name in ("active", "positive", "negative", "norm"))


def test_the_triplet_gradient_reaches_features_alone_and_the_softmax_gradient_logits_alone():
    features, logits = draw(10, 16).requires_grad_(), draw(10, 5, seed=1).requires_grad_()
    Objective(LossConfig(triplet_weight=2.0, softmax_weight=3.0))(features, logits, LABELS)[0].backward()
    lone_features, lone_logits = features.detach().requires_grad_(), logits.detach().requires_grad_()
    (2 * TripletLoss()(lone_features, LABELS)).backward()
    (3 * nn.functional.cross_entropy(lone_logits, LABELS, label_smoothing=0.1)).backward()
    torch.testing.assert_close(features.grad, lone_features.grad)
    torch.testing.assert_close(logits.grad, lone_logits.grad)


def test_softmax_alone_never_looks_at_the_features():
    features = torch.full((3, 4), torch.nan, requires_grad=True)
    logits = draw(3, 5).requires_grad_()
    loss, seen = Objective(LossConfig(triplet_weight=0))(features, logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert seen.keys() == {"loss", "softmax", "accuracy"}
    assert math.isfinite(loss.item())
    assert features.grad is None


def test_triplet_alone_needs_no_logits():
    loss, seen = Objective(LossConfig(softmax_weight=0))(draw(10, 4), None, PIDS)
    assert loss.item() == pytest.approx(TripletLoss()(draw(10, 4), PIDS).item())
    assert seen.keys() == {"loss", "triplet", "active", "positive", "negative", "norm"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    features, logits = draw(10, 16).to(dtype).requires_grad_(), draw(10, 5, seed=1).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = Objective()(features, logits, LABELS)
    loss.backward()
    expected, _ = Objective()(features.detach().float(), logits.detach().float(), LABELS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.isfinite(features.grad).all()


def test_it_holds_no_weights():
    """Nothing of it belongs in a checkpoint, and `.to(device)` has nothing to move."""
    assert list(Objective().parameters()) == list(Objective().buffers()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"triplet_weight": -1}, "triplet_weight=-1.*greater than or equal to 0"),
        ({"softmax_weight": math.nan}, "softmax_weight=nan.*finite"),
        ({"triplet_weight": 0, "softmax_weight": 0}, "both 0"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5.*less than or equal to 1"),
        ({"margin": -0.3}, "margin"),
        ({"mining": "semi"}, "Unknown mining 'semi'"),
        ({"distance": "manhatan"}, "Unknown distance 'manhatan'"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ReidError, match=words):
        Objective(LossConfig(**settings))


def test_missing_or_misshapen_logits_are_named():
    with pytest.raises(ReidError, match="num_classes, or set softmax_weight to 0"):
        Objective()(draw(10, 4), None, PIDS)
    with pytest.raises(ReidError, match=r"got \[9, 5\] and \[10\]"):
        Objective()(draw(10, 4), draw(9, 5), LABELS)


CAMIDS = torch.tensor([0, 1, 0, 1, 0, 0, 1, 2, 0, 1])


def test_extra_losses_are_added_with_their_weights_and_logged_without():
    features, logits = draw(10, 16), draw(10, 5, seed=1)
    options = {"circle": {"weight": 0.5, "gamma": 8}, "contrastive": {"weight": 2.0, "camera_aware": True}}
    loss, seen = Objective(LossConfig(extra=options))(features, logits, LABELS, CAMIDS)
    circle = CircleLoss(gamma=8)(features, LABELS)
    contrastive = ContrastiveLoss(camera_aware=True)(features, LABELS, CAMIDS)
    assert contrastive.item() != ContrastiveLoss()(features, LABELS).item(), "cameras matter here"
    torch.testing.assert_close(seen["extra.circle"], circle)
    torch.testing.assert_close(seen["extra.contrastive"], contrastive)
    core, _ = Objective()(features, logits, LABELS)
    torch.testing.assert_close(loss, core + 0.5 * circle + 2 * contrastive)
    assert options["circle"] == {"weight": 0.5, "gamma": 8}, "the caller's settings are left alone"


def test_an_extra_loss_alone_is_enough():
    objective = Objective(LossConfig(triplet_weight=0, softmax_weight=0, extra={"circle": {"weight": 1.0}}))
    loss, seen = objective(draw(10, 16), None, LABELS)
    assert seen.keys() == {"loss", "extra.circle"}
    assert loss.item() == seen["extra.circle"].item()


@pytest.mark.parametrize(
    ("options", "given"),
    [({}, "embeddings"), ({"input": "features"}, "features"), ({"input": "embeddings"}, "embeddings")],
    ids=["a head gets the feature after the neck", "unless told", "or told so"],
)
def test_what_a_head_is_given(options, given):
    objective = Objective(
        LossConfig(triplet_weight=0, softmax_weight=0, extra={"arcface": {"weight": 1.0} | options}),
        dim=16,
        num_classes=4,
    )
    two = {"features": draw(10, 16).requires_grad_(), "embeddings": draw(10, 16, seed=1).requires_grad_()}
    objective(two["features"], None, LABELS, embeddings=two["embeddings"])[0].backward()
    assert [name for name, tensor in two.items() if tensor.grad is not None] == [given]
    assert objective.uses_embeddings == (given == "embeddings")
    if given == "embeddings":
        with pytest.raises(ReidError, match="arcface needs embeddings"):
            objective(two["features"], None, LABELS)


def test_weights_of_losses_are_trained_with_the_network_or_with_a_separate_learning_rate():
    extra = {"arcface": {"weight": 0.1}, "center": {"weight": 5e-4, "rate": None, "lr": 0.5}, "circle": {"weight": 1}}
    objective = Objective(LossConfig(extra=extra), dim=16, num_classes=4)
    assert [p.shape for p in objective.common_parameters()] == [(4, 16)]
    assert objective.common_parameters()[0] is objective.extra["arcface"].weight
    ((rate, weight, moving),) = objective.separate_parameters()
    assert (rate, weight) == (0.5, 5e-4)
    assert moving[0] is objective.extra["center"].centers
    learned = Objective(LossConfig(distance="mahalanobis"), dim=16)
    assert len(learned.common_parameters()) == len(list(learned.parameters())) > 0


def test_a_saved_objective_goes_on_where_it_stood():
    """Memory, centres, proxies and the count from which draws come."""
    settings = {
        "mining": "random",
        "extra": {
            "contrastive": {"weight": 1.0, "memory": 15},
            "center": {"weight": 0.1},
            "arcface": {"weight": 1.0},
        },
    }

    def make():
        return Objective(LossConfig(**settings), dim=16, num_classes=4)

    def losses(objective, turns):
        inputs = [(draw(10, 16, seed=turn), draw(10, 4, seed=turn)) for turn in turns]
        return [objective(x, y, LABELS, CAMIDS, x)[0].item() for x, y in inputs]

    whole = losses(make(), range(6))
    first = make()
    assert losses(first, range(3)) == whole[:3]
    again = make()
    assert losses(again, [5]) != whole[3:4]
    again.load_state_dict(first.state_dict())
    assert losses(again, range(3, 6)) == whole[3:]


@pytest.mark.parametrize(
    ("share", "value"),
    [(0.0, 0.2), (0.1, 0.2), (0.25, 0.2), (0.375, 0.3), (0.5, 0.4), (0.75, 0.25), (1.0, 0.1)],
    ids=["before the first point", "still", "at it", "half way up", "at the second", "half way down", "at the end"],
)
def test_schedules_are_piecewise_linear(share, value):
    keys = ["triplet_weight", "softmax_weight", "label_smoothing", "margin", "hardness", "circle.weight"]
    points = [[0.25, 0.2], [0.5, 0.4], [1, 0.1]]
    objective = Objective(LossConfig(schedules=dict.fromkeys(keys, points), extra={"circle": {"weight": 1.0}}))
    objective.set_progress(share)
    now = [
        objective.triplet_weight, objective.softmax_weight, objective.label_smoothing, objective.triplet.margin,
        objective.triplet.hardness, objective.extra_weights["circle"],
    ]  # fmt: skip
    assert now == pytest.approx([value] * 6)
    features, logits = draw(10, 16), draw(10, 5, seed=1)
    loss, seen = objective(features, logits, LABELS)
    same = Objective(
        LossConfig(
            triplet_weight=value, softmax_weight=value, label_smoothing=value, margin=value, hardness=value,
            extra={"circle": {"weight": value}},
        )
    )  # fmt: skip
    torch.testing.assert_close(loss, same(features, logits, LABELS)[0])
    assert (seen["margin"].item(), seen["hardness"].item()) == pytest.approx((value, value))


def test_a_term_that_starts_at_0_is_there_from_the_start():
    objective = Objective(
        LossConfig(triplet_weight=0, schedules={"triplet_weight": [[0, 0], [1, 1]], "softmax_weight": [[0, 1], [1, 0]]})
    )
    names = []
    for share in (0, 0.5, 1):
        objective.set_progress(share)
        features, logits = draw(10, 16).requires_grad_(), draw(10, 5, seed=1).requires_grad_()
        loss, seen = objective(features, logits, LABELS)
        loss.backward()
        names.append(seen.keys())
        assert features.grad.any() == (share > 0)
        assert logits.grad.any() == (share < 1)
    assert names[0] == names[1] == names[2] >= {"triplet", "softmax"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extra": {"circel": {"weight": 1}}}, "Unknown loss 'circel'.*'circle'"),
        ({"extra": {"circle": {}}}, "extra.circle.weight is missing"),
        ({"extra": {"circle": {"weight": -1}}}, "extra.circle.weight=-1"),
        ({"extra": {"circle": {"weight": "much"}}}, "extra.circle.weight='much'"),
        ({"extra": {"circle": {"weight": 1, "gama": 2}}}, "Unknown circle option 'gama'.*'gamma'"),
        ({"extra": {"circle": {"weight": 1, "gamma": "2 pi"}}}, "'circle' does not accept .*2 pi"),
        ({"extra": {"circle": {"weight": 1, "input": "images"}}}, "circle.input='images' is not a valid choice"),
        ({"extra": {"circle": {"weight": 1, "lr": -1}}}, "circle.lr=-1"),
        ({"schedules": {"margn": [[0, 1]]}}, "Unknown key of schedules 'margn'.*'margin'"),
        ({"schedules": {"circle.weight": [[0, 1]]}}, "Unknown key of schedules 'circle.weight'"),
        ({"schedules": {"margin": [[0, 1]]}, "margin": None}, "schedules.margin needs a margin"),
        ({"schedules": {"margin": []}}, "rising fractions"),
        ({"schedules": {"margin": 0.3}}, "schedules.margin=0.3"),
        ({"schedules": {"margin": [0, 1]}}, "schedules.margin.0=0"),
        ({"schedules": {"margin": [[0, "a"]]}}, "schedules.margin.0.1='a'"),
        ({"schedules": {"margin": [[0.5, 1], [0.5, 2]]}}, "rising fractions"),
        ({"schedules": {"margin": [[0, 1], [2, 2]]}}, "schedules.margin.1.0=2"),
        ({"schedules": {"margin": [[0, math.nan]]}}, "schedules.margin.0.1=nan"),
        ({"schedules": {"hardness": [[0, 1.5]]}}, "hardness has a value above 1"),
    ],
)
def test_wrong_extras_and_schedules_are_named(settings, words):
    with pytest.raises(ReidError, match=words):
        Objective(LossConfig(**settings))


def test_the_watch_follows_a_margin_that_moves():
    watch, spoken = CollapseWatch(0.3), []
    for step in range(60):
        watch.margin = 0.05 + 0.005 * step
        words = watch.observe(watch.margin, 1e-4, 1e-4)
        spoken += [words] if words else []
    assert len(spoken) == 1
    assert "its margin, 0.095" in spoken[0]


def test_the_watch_is_not_misled_by_a_margin_that_passes_the_loss():
    watch = CollapseWatch(0.3)
    for step in range(60):
        watch.margin = 0.005 * step
        assert watch.observe(0.15, 0.2, 0.21) is None


@pytest.mark.parametrize("at", [3, 9, 15])
def test_a_watch_that_is_taken_up_again_speaks_when_it_would_have(at):
    series = [(0.32, 1e-3, 1e-3)] + [(0.3, 1e-3, 1e-3)] * 40
    whole = feed(CollapseWatch(0.3), series)
    first, again = CollapseWatch(0.3), CollapseWatch(0.3)
    spoken = feed(first, series[:at])
    again.load(first.state())
    spoken += [(number + at, words) for number, words in feed(again, series[at:])]
    assert spoken == whole
    assert len(whole) == 1


def feed(watch, series):
    """The numbers of the observations at which the watch spoke, and its words."""
    spoken = [(number, watch.observe(*row)) for number, row in enumerate(series)]
    return [(number, words) for number, words in spoken if words]


COLLAPSED = [
    pytest.param(0.3, [(0.3, 1e-4, 1.2e-4)] * 30, id="hard margin, every distance near 0"),
    pytest.param(0.3, [(0.3, 0.0, 0.0)] * 30, id="hard margin, every distance exactly 0"),
    pytest.param(0.3, [(0.302, 0.50, 0.51)] * 30, id="hard margin, distances alike but not small"),
    pytest.param(None, [(math.log(2), 1e-5, 1e-5)] * 30, id="soft margin"),
    pytest.param(0.3, [(0.3 + 0.004 * (-1) ** i, 1e-3, 1e-3) for i in range(30)], id="a noisy loss around the margin"),
    pytest.param(0.3, [(2.0 * 0.5**i + 0.3, 3 * 0.5**i, 3 * 0.5**i) for i in range(40)], id="falling into it"),
]
HEALTHY = [
    pytest.param(0.3, [(0.3, 0.6, 1.1)] * 50, id="the hardest pairs meet at the margin, the mean ones are apart"),
    pytest.param(0.3, [(0.8 * 0.95**i, 1.0, 1.0 + 0.05 * i) for i in range(100)], id="passes the margin on its way"),
    pytest.param(0.3, [(1.5, 4.0, 4.1)] * 50, id="untrained: alike, but the loss far above the margin"),
    pytest.param(0.3, [(0.0, 0.2, 3.0)] * 50, id="solved"),
    pytest.param(None, [(0.69, 5.0, 9.0)] * 50, id="soft margin at log 2 with the means apart"),
    pytest.param(0.3, [(0.3, 1e-3, 1e-3)] * 9 + [(0.2, 0.3, 0.9)] * 30, id="leaves it before patience ends"),
    pytest.param(0.3, [(math.nan, math.nan, math.nan)] * 50, id="not numbers: another's business"),
]


@pytest.mark.parametrize(("margin", "series"), COLLAPSED)
def test_the_watch_speaks_once_when_features_collapse(margin, series):
    spoken = feed(CollapseWatch(margin), series)
    assert len(spoken) == 1
    number, words = spoken[0]
    assert number >= 9
    for needed in ("collapsed", "lower learning rate", "warm-up", "softmax", "log 2" if margin is None else "0.3"):
        assert needed in words
    assert ("soft margin" in words) == (margin is not None)


@pytest.mark.parametrize(("margin", "series"), HEALTHY)
def test_the_watch_is_silent_when_training_is_healthy(margin, series):
    assert feed(CollapseWatch(margin), series) == []


@pytest.fixture
def one_thread():
    """The networks below are too small for two threads to do anything but wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(margin, lr, noise, steps):
    """A small network on 8 noisy clusters, batch-hard alone: its last loss, and what the watch said."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 32, generator=generator)
    layer = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    loss, watch, labels, spoken = TripletLoss(margin), CollapseWatch(margin), repeated([4] * 8), []
    for step in range(steps):
        x = centres.repeat_interleave(4, dim=0) + noise * torch.randn(32, 32, generator=generator)
        value, seen = loss.measure(layer(x), labels)
        layer.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= lr * parameter.grad
        if step % 3 == 0:
            words = watch.observe(value.item(), seen["positive"].item(), seen["negative"].item())
            spoken += [words] if words else []
    return value.item(), spoken


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("margin", "lr", "noise", "level"),
    [pytest.param(0.3, 0.3, 2.5, 0.3, id="hard margin"), pytest.param(None, 0.1, 10.0, math.log(2), id="soft margin")],
)
def test_a_real_run_that_collapses_is_seen(margin, lr, noise, level):
    value, spoken = train(margin, lr, noise, steps=300)
    assert value == pytest.approx(level, rel=0.01)
    assert len(spoken) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("margin", [0.3, None], ids=["hard margin", "soft margin"])
def test_a_real_run_that_learns_is_left_alone(margin):
    value, spoken = train(margin, lr=0.1, noise=0.3, steps=120)
    assert value < 0.1
    assert spoken == []


def test_slices_of_logits_are_averaged():
    features, logits = draw(10, 16), draw(10, 3, 5, seed=1)
    objective = Objective()
    loss, seen = objective(features, logits, LABELS)
    each = [objective(features, logits[:, part], LABELS) for part in range(3)]
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in each) / 3, rel=1e-6)
    for key in ("softmax", "accuracy"):
        assert seen[key].item() == pytest.approx(sum(terms[key].item() for _, terms in each) / 3, rel=1e-6)
