import math

import pytest
import torch
import torch.nn.functional as F

from multibox.core.boxes import complete_iou, generalised_iou, xyxy_to_cxcywh
from multibox.core.codec import decode, encode
from multibox.core.loss import Focal, MultiboxLosses, at_least_one, hard_negatives, multibox_loss
from multibox.core.matching import Matches, MatchOptions, match
from multibox.core.structures import Stage, Target
from multibox.errors import ContractError, OptionError

CLASSES = 4


def make_target(unit_xyxy, labels, ignore=None):
    truth_unit_xyxy = torch.tensor(unit_xyxy, dtype=torch.float32).reshape(-1, 4)
    flags = torch.zeros(len(labels), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    return Target(truth_unit_xyxy, torch.tensor(labels, dtype=torch.int64), flags)


EMPTY = make_target([], [])
ONE = make_target([[0.1, 0.1, 0.4, 0.5]], [3])
ONE_OF_TWO = make_target([[0.1, 0.1, 0.4, 0.5]], [1])
THREE = make_target([[0.0, 0.2, 0.5, 0.9], [0.5, 0.5, 1.0, 1.0], [0.3, 0.0, 0.6, 0.2]], [0, 2, 2], [False, True, False])
BATCHES = {"mixed": [EMPTY, ONE, THREE], "one": [ONE], "empty": [EMPTY], "all empty": [EMPTY, EMPTY]}


def anchors(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.rand(count, 2, generator=generator), torch.rand(count, 2, generator=generator) * 0.5 + 0.05], 1
    )


def random_stage(batch, count, scores, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(batch, count, 4, generator=generator)
    logits = torch.randn(batch, count, scores, generator=generator) * 2
    return Stage(offsets.requires_grad_(), logits.requires_grad_())


def anchor_loss(logits, label, activation):
    """Classification loss of one anchor; `label` -1 is background."""
    if activation == "softmax":
        return math.log(sum(math.exp(v) for v in logits)) - logits[label + 1]
    return sum(math.log1p(math.exp(-v if k == label else v)) for k, v in enumerate(logits))


def smooth_l1(difference, beta):
    size = abs(difference)
    return size - beta / 2 if size >= beta else size * size / (2 * beta)


def loss_loop(stage, own_anchors, targets, *, activation="softmax", ratio=3, least=3, beta=1.0, options=None):
    """Sums of one stage with plain loops, `own_anchors` per picture."""
    matches = match(own_anchors, targets, options=options or MatchOptions())
    classification = localization = 0.0
    positives = 0
    for b, target in enumerate(targets):
        background, matched = [], 0
        for a, logits in enumerate(stage.logits[b].tolist()):
            truth = int(matches.truth_index[b, a])
            if truth >= 0:
                matched += 1
                classification += anchor_loss(logits, int(target.labels[truth]), activation)
                box = xyxy_to_cxcywh(target.truth_unit_xyxy[truth])
                wanted = encode(box, own_anchors[b, a]).tolist()
                predicted = stage.offsets[b, a].tolist()
                localization += sum(smooth_l1(p - w, beta) for p, w in zip(predicted, wanted, strict=True))
            elif matches.negative[b, a]:
                background.append(anchor_loss(logits, -1, activation))
        classification += sum(sorted(background, reverse=True)[: max(int(ratio * matched), least)])
        positives += matched
    return classification / max(1, positives), localization / max(1, positives), positives


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_loss_is_that_of_plain_loops(batch, activation):
    targets = BATCHES[batch]
    stage = random_stage(len(targets), 60, CLASSES + (activation == "softmax"))
    anchors_cxcywh = anchors(60)
    losses = multibox_loss((stage,), anchors_cxcywh, targets, activation=activation)
    expected = loss_loop(stage, anchors_cxcywh.expand(len(targets), 60, 4), targets, activation=activation)
    assert [v.item() for v in losses] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "loop_options"),
    [
        ({"negative_ratio": 1.5, "min_negatives": 0}, {"ratio": 1.5, "least": 0}),
        ({"negative_ratio": 0.0, "min_negatives": 5}, {"ratio": 0, "least": 5}),
        ({"negative_ratio": 1000.0}, {"ratio": 1000}),
        ({"beta": 0.1}, {"beta": 0.1}),
        (
            {"matching": MatchOptions("per_object", 0.3, 0.2)},
            {"options": MatchOptions("per_object", 0.3, 0.2)},
        ),
    ],
)
def test_every_option_reaches_the_loss(options, loop_options):
    targets, anchors_cxcywh = BATCHES["mixed"], anchors(60)
    stage = random_stage(3, 60, CLASSES + 1)
    losses = multibox_loss((stage,), anchors_cxcywh, targets, **options)
    expected = loss_loop(stage, anchors_cxcywh.expand(3, 60, 4), targets, **loop_options)
    assert [v.item() for v in losses] == pytest.approx(expected, rel=1e-5)


def test_localization_weight_scales_its_part_alone():
    stage, anchors_cxcywh = random_stage(1, 60, CLASSES + 1), anchors(60)
    once = multibox_loss((stage,), anchors_cxcywh, [ONE])
    twice = multibox_loss((stage,), anchors_cxcywh, [ONE], localization_weight=2.0)
    torch.testing.assert_close(twice.localization, 2 * once.localization)
    torch.testing.assert_close(twice.classification, once.classification)
    torch.testing.assert_close(twice.total, twice.classification + twice.localization)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_cascade_is_one_loss_for_each_stage_added_up(activation, gate):
    """Each stage has its own rule and anchors; the first may tell objects of any class from background."""
    targets, anchors_cxcywh, background = BATCHES["mixed"], anchors(60), activation == "softmax"
    options = [
        MatchOptions(positive_threshold=0.4, negative_threshold=0.3),
        MatchOptions("per_object", 0.5, 0.5),
        MatchOptions(positive_threshold=0.6),
    ]
    raw = tuple(
        random_stage(3, 60, (1 if gate and number == 0 else CLASSES) + background, seed=number) for number in range(3)
    )
    losses = multibox_loss(raw, anchors_cxcywh, targets, activation=activation, matching=options)
    expected, own_anchors = [0.0, 0.0, 0], anchors_cxcywh.expand(3, 60, 4)
    for number, (stage, rule) in enumerate(zip(raw, options, strict=True)):
        objects = [Target(t.truth_unit_xyxy, t.labels * (0 if gate and number == 0 else 1), t.ignore) for t in targets]
        part = loss_loop(stage, own_anchors, objects, activation=activation, options=rule)
        expected = [a + b for a, b in zip(expected, part, strict=True)]
        own_anchors = decode(stage.offsets.detach(), own_anchors)
    assert [v.item() for v in losses] == pytest.approx(expected, rel=1e-5)
    losses.total.backward()
    assert all(stage.logits.grad.abs().sum() > 0 and stage.offsets.grad.abs().sum() > 0 for stage in raw)


def test_a_later_stage_does_not_move_its_anchors():
    first, second = random_stage(1, 60, CLASSES + 1, seed=1), random_stage(1, 60, CLASSES + 1, seed=2)
    alone = multibox_loss((first,), anchors(60), [ONE]).total
    both = multibox_loss((first, second), anchors(60), [ONE]).total
    expected, result = (torch.autograd.grad(loss, first.offsets)[0] for loss in (alone, both))
    assert expected.abs().sum() > 0
    torch.testing.assert_close(result, expected)


def test_ingredients_are_cross_entropy_and_smooth_l1():
    stage, anchors_cxcywh = random_stage(1, 60, CLASSES + 1), anchors(60)
    losses = multibox_loss((stage,), anchors_cxcywh, [ONE], negative_ratio=1000.0)
    matches = match(anchors_cxcywh, [ONE])
    classes = torch.where(matches.positive, 3 + 1, 0)[0]
    used = (matches.positive | matches.negative)[0]
    count = int(matches.positive.sum())
    cross_entropy = F.cross_entropy(stage.logits[0, used], classes[used], reduction="sum") / count
    torch.testing.assert_close(losses.classification, cross_entropy)
    matched = matches.positive[0]
    wanted = encode(xyxy_to_cxcywh(ONE.truth_unit_xyxy), anchors_cxcywh[matched])
    localization = F.smooth_l1_loss(stage.offsets[0, matched], wanted, reduction="sum") / count
    torch.testing.assert_close(losses.localization, localization)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("targets", [[EMPTY], [EMPTY, EMPTY], [make_target([[0.1, 0.1, 0.9, 0.9]], [0], [True])]])
def test_pictures_without_objects_train_the_background(activation, targets):
    stage = random_stage(len(targets), 60, CLASSES + (activation == "softmax"))
    losses = multibox_loss((stage,), anchors(60), targets, activation=activation)
    losses.total.backward()
    assert losses.classification > 0
    assert losses.localization == 0
    assert losses.positives == 0
    assert (stage.logits.grad.abs().sum(-1) > 0).sum(1).tolist() == [3] * len(targets)
    assert stage.offsets.grad.eq(0).all()


def test_without_any_anchor_to_learn_from_the_loss_is_zero_and_has_a_gradient():
    stage = random_stage(1, 10, CLASSES + 1)
    losses = multibox_loss((stage,), anchors(10), [EMPTY], min_negatives=0)
    losses.total.backward()
    assert losses.total == 0
    assert stage.logits.grad.eq(0).all()
    assert stage.offsets.grad.eq(0).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [0.0, 100.0, 1e5, 1e20])
def test_hostile_predictions_give_finite_losses_and_gradients(activation, size):
    raw = tuple(
        Stage(*((size * t.detach()).requires_grad_() for t in random_stage(3, 60, 5, seed=s))) for s in range(2)
    )
    losses = multibox_loss(raw, anchors(60), BATCHES["mixed"], activation=activation)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(t.grad.isfinite().all() for stage in raw for t in stage)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    stage, anchors_cxcywh = random_stage(3, 60, CLASSES + 1), anchors(60)
    half = Stage(*(t.detach().to(dtype).requires_grad_() for t in stage))
    full = Stage(*(t.detach().float() for t in half))
    losses = multibox_loss((half,), anchors_cxcywh, BATCHES["mixed"])
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses, multibox_loss((full,), anchors_cxcywh, BATCHES["mixed"]))
    losses.total.backward()
    assert half.logits.grad.dtype == dtype


def test_autocast_changes_nothing():
    stage, anchors_cxcywh = random_stage(3, 60, CLASSES + 1), anchors(60)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = multibox_loss((stage, stage), anchors_cxcywh, BATCHES["mixed"])
    torch.testing.assert_close(losses, multibox_loss((stage, stage), anchors_cxcywh, BATCHES["mixed"]))


def test_arguments_are_left_alone():
    stage, anchors_cxcywh = random_stage(3, 60, CLASSES + 1), anchors(60)
    tensors = [*stage, anchors_cxcywh, THREE.truth_unit_xyxy, THREE.labels, THREE.ignore]
    before = [t.detach().clone() for t in tensors]
    multibox_loss((stage, stage), anchors_cxcywh, BATCHES["mixed"]).total.backward()
    assert all(t.equal(b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.slow
def test_descent_finds_the_object():
    anchors_cxcywh = anchors(60)
    stage = random_stage(1, 60, CLASSES + 1)
    optimizer = torch.optim.Adam(stage, lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        losses = multibox_loss((stage,), anchors_cxcywh, [ONE])
        losses.total.backward()
        optimizer.step()
    assert losses.total < 0.1
    best = stage.logits[0].softmax(-1)[:, 4].argmax()
    box = decode(stage.offsets[0, best], anchors_cxcywh[best])
    torch.testing.assert_close(box, xyxy_to_cxcywh(ONE.truth_unit_xyxy)[0], atol=0.02, rtol=0)


def test_the_hardest_negatives_of_each_picture():
    loss = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1]])
    positive = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    negative = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0]]).bool()
    matches = Matches(positive.long() - 1, positive, negative)
    chosen = hard_negatives(loss, matches, negative_ratio=2.5, min_negatives=1)
    assert chosen.tolist() == [
        [False, False, True, True, False, False],
        [False, False, False, False, True, False],
        [False, False, False, True, True, False],
    ]


def test_a_label_without_an_output_is_named():
    targets = [ONE, make_target([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.5, 0.5]], [0, 4])]
    with pytest.raises(ContractError, match=r"picture 1: box 1 \[0\.3.* has label 4, but the network has 4 classes"):
        multibox_loss((random_stage(2, 60, CLASSES + 1),), anchors(60), targets)
    with pytest.raises(ContractError, match="4 classes"):
        multibox_loss((random_stage(2, 60, CLASSES),), anchors(60), targets, activation="sigmoid")


@pytest.mark.parametrize(
    ("raw", "targets", "message"),
    [
        ((), [ONE], "at least one stage"),
        ((random_stage(1, 60, 5),), [], "one target for each picture"),
        ((random_stage(2, 60, 5),), [ONE], r"offsets of stage 0: expected \[1, 60, 4\].*got \[2, 60, 4\]"),
        ((random_stage(1, 59, 5),), [ONE], r"offsets of stage 0: expected \[1, 60, 4\].*got \[1, 59, 4\]"),
        (
            (random_stage(1, 60, 3), random_stage(1, 60, 5)),
            [ONE],
            "logits of stage 0: expected 5 scores as the last stage has, or 2 for objects of any class, got 3",
        ),
        ((random_stage(1, 60, 5),), [ONE.to("meta")], "picture 0 is on meta"),
    ],
)
def test_shapes_must_agree(raw, targets, message):
    with pytest.raises(ContractError, match=message):
        multibox_loss(raw, anchors(60), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_ratio": -1.0}, "negative_ratio"),
        ({"negative_ratio": float("nan")}, "negative_ratio"),
        ({"min_negatives": -1}, "min_negatives"),
        ({"matching": (MatchOptions(),) * 2}, "each of the 1 stages, got 2"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        multibox_loss((random_stage(1, 60, 5),), anchors(60), [ONE], **options)


def test_the_result_has_names():
    losses = MultiboxLosses(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3))
    assert losses.total == 3.0


def focal_of(logit, wanted, gamma, alpha):
    """Lin et al., 2017, equation 5, of one score."""
    p = 1 / (1 + math.exp(-logit))
    right, weight = (p, alpha) if wanted else (1 - p, 1 - alpha)
    return -weight * (1 - right) ** gamma * math.log(right)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (0.5, 0.9), (5.0, 0.0)])
def test_focal_loss_is_that_of_plain_loops(batch, gamma, alpha):
    targets, anchors_cxcywh = BATCHES[batch], anchors(60)
    stage = random_stage(len(targets), 60, CLASSES)
    losses = multibox_loss((stage,), anchors_cxcywh, targets, activation="sigmoid", focal=Focal(gamma, alpha))
    matches, expected = match(anchors_cxcywh, targets), 0.0
    for b, target in enumerate(targets):
        for a, logits in enumerate(stage.logits[b].tolist()):
            if matches.positive[b, a] or matches.negative[b, a]:
                label = int(target.labels[matches.truth_index[b, a]]) if matches.positive[b, a] else -1
                expected += sum(focal_of(v, k == label, gamma, alpha) for k, v in enumerate(logits))
    positives = int(matches.positive.sum())
    assert losses.classification.item() == pytest.approx(expected / max(1, positives), rel=1e-5)
    plain = multibox_loss((stage,), anchors_cxcywh, targets, activation="sigmoid")
    torch.testing.assert_close(losses.localization, plain.localization)
    assert losses.positives == plain.positives == positives


def test_focal_loss_without_focus_is_half_of_all_cross_entropy():
    stage, anchors_cxcywh = random_stage(3, 60, CLASSES), anchors(60)
    focal = multibox_loss(
        (stage,), anchors_cxcywh, BATCHES["mixed"], activation="sigmoid", focal=Focal(gamma=0.0, alpha=0.5)
    )
    mined = multibox_loss((stage,), anchors_cxcywh, BATCHES["mixed"], activation="sigmoid", min_negatives=60)
    torch.testing.assert_close(2 * focal.classification, mined.classification)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 7.5])
@pytest.mark.parametrize("size", [0.0, 100.0, 1e5, 1e20])
def test_focal_loss_of_hostile_predictions_is_finite(gamma, size):
    stage = Stage(*((size * t.detach()).requires_grad_() for t in random_stage(3, 60, CLASSES)))
    losses = multibox_loss((stage,), anchors(60), BATCHES["mixed"], activation="sigmoid", focal=Focal(gamma))
    losses.classification.backward()
    assert losses.classification.isfinite()
    assert stage.logits.grad.isfinite().all()


@pytest.mark.parametrize(("box_loss", "measure"), [("giou", generalised_iou), ("ciou", complete_iou)])
@pytest.mark.parametrize("batch", BATCHES)
def test_box_losses_on_overlaps_are_those_of_plain_loops(batch, box_loss, measure):
    targets, anchors_cxcywh, variances = BATCHES[batch], anchors(60), (0.2, 0.1, 0.3, 0.2)
    stage = random_stage(len(targets), 60, CLASSES + 1)
    losses = multibox_loss(
        (stage,), anchors_cxcywh, targets, box_loss=box_loss, variances=variances, localization_weight=3.0
    )
    matches, expected = match(anchors_cxcywh, targets), 0.0
    for b, target in enumerate(targets):
        for a in matches.positive[b].nonzero()[:, 0].tolist():
            box = decode(stage.offsets[b, a], anchors_cxcywh[a], variances)
            truth = xyxy_to_cxcywh(target.truth_unit_xyxy[matches.truth_index[b, a]])
            expected += 1 - measure(box[None], truth[None]).item()
    positives = int(matches.positive.sum())
    assert losses.localization.item() == pytest.approx(3 * expected / max(1, positives), rel=1e-5)
    plain = multibox_loss((stage,), anchors_cxcywh, targets)
    torch.testing.assert_close(losses.classification, plain.classification)
    losses.total.backward()
    assert stage.offsets.grad.isfinite().all()


@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
@pytest.mark.parametrize("size", [0.0, 100.0, 1e5])
def test_box_losses_of_hostile_predictions_are_finite(box_loss, size):
    stage = Stage(*((size * t.detach()).requires_grad_() for t in random_stage(3, 60, CLASSES + 1)))
    losses = multibox_loss((stage, stage), anchors(60), BATCHES["mixed"], box_loss=box_loss)
    losses.total.backward()
    assert losses.total.isfinite()
    assert stage.offsets.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "ciou"])
def test_descent_on_any_box_loss_finds_the_object(box_loss):
    anchors_cxcywh = anchors(60)
    stage = random_stage(1, 60, CLASSES)
    optimizer = torch.optim.Adam(stage, lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        options = {"activation": "sigmoid", "focal": Focal(), "box_loss": box_loss}
        losses = multibox_loss((stage,), anchors_cxcywh, [ONE], **options)
        losses.total.backward()
        optimizer.step()
    best = stage.logits[0].amax(-1).argmax()
    assert stage.logits[0, best].argmax() == 3
    box = decode(stage.offsets[0, best], anchors_cxcywh[best])
    torch.testing.assert_close(box, xyxy_to_cxcywh(ONE.truth_unit_xyxy)[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("options", [{}, {"activation": "sigmoid", "focal": Focal(), "box_loss": "giou"}])
@pytest.mark.parametrize("batch", BATCHES)
def test_parts_of_a_batch_add_up_under_one_divisor(batch, options):
    targets, anchors_cxcywh = BATCHES[batch], anchors(60)
    stage = random_stage(len(targets), 60, CLASSES + (not options))
    whole = multibox_loss((stage,), anchors_cxcywh, targets, **options)
    divisor = at_least_one(whole.positives)
    asked = []

    def shared(count):
        asked.append(int(count))
        return divisor

    parts = [
        multibox_loss((Stage(*(t[i : i + 1] for t in stage)),), anchors_cxcywh, [target], normaliser=shared, **options)
        for i, target in enumerate(targets)
    ]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(asked) == whole.positives


def test_focal_loss_with_softmax_is_refused():
    with pytest.raises(OptionError, match="focal loss is for sigmoid scores"):
        multibox_loss((random_stage(1, 60, 5),), anchors(60), [ONE], focal=Focal())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_huge_score_leaves_the_loss_of_other_anchors_exact(activation):
    anchors_cxcywh = torch.tensor([[0.25, 0.3, 0.3, 0.4], [0.7, 0.7, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    logits = torch.zeros(1, 3, 2 + (activation == "softmax"))
    logits[0, 1] = torch.tensor([1e4, 0.0, 0.0]) if activation == "softmax" else -1e4  # background beyond doubt
    stage = Stage(torch.zeros(1, 3, 4), logits)
    losses = multibox_loss((stage,), anchors_cxcywh, [ONE_OF_TWO], activation=activation)
    each = math.log(3) if activation == "softmax" else 2 * math.log(2)
    assert losses.positives == 1
    assert losses.classification.item() == pytest.approx(2 * each, rel=1e-6)
