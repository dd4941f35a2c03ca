import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from multibox.core.boxes import cxcywh_to_xyxy, ioa_matrix, iou_matrix, xyxy_to_cxcywh
from multibox.core.matching import MatchOptions, match
from multibox.core.structures import Target
from multibox.errors import OptionError


def make_target(unit_xyxy, ignore=None):
    truth_unit_xyxy = torch.as_tensor(unit_xyxy, dtype=torch.float32).reshape(-1, 4)
    count = len(truth_unit_xyxy)
    flags = torch.zeros(count, dtype=torch.bool) if ignore is None else torch.as_tensor(ignore, dtype=torch.bool)
    return Target(truth_unit_xyxy, torch.arange(count), flags)


def random_target(generator, count, *, ignored=0.0):
    corner = torch.rand(count, 2, generator=generator) * 0.7
    wh = torch.rand(count, 2, generator=generator) * 0.5 + 0.02
    return make_target(torch.cat([corner, corner + wh], 1), torch.rand(count, generator=generator) < ignored)


def grid_anchors(cells, sides=(0.15, 0.3, 0.5)):
    places = [(i + 0.5) / cells for i in range(cells)]
    return torch.tensor([[x, y, s, s] for y, x, s in itertools.product(places, places, sides)])


def forced_pairs(iou, real, strategy):
    """(object, anchor) pairs, one decision after the other."""
    anchors = iou.shape[1]
    if strategy == "per_object":
        best = {g: max(range(anchors), key=lambda a: (iou[g, a].item(), -a)) for g in real}
        return {a: g for g, a in best.items() if iou[g, a] > 1e-6}
    given_to, free_objects, free_anchors = {}, set(real), set(range(anchors))
    while free_objects and free_anchors:
        pairs = [(-iou[g, a].item(), g, a) for g in free_objects for a in free_anchors]
        negated, g, a = min(pairs)
        if -negated <= 1e-6:
            break
        given_to[a] = g
        free_objects.remove(g)
        free_anchors.remove(a)
    return given_to


def match_loop(anchors_cxcywh, target, options):
    anchors_xyxy = cxcywh_to_xyxy(anchors_cxcywh)
    iou = iou_matrix(target.truth_unit_xyxy, anchors_xyxy)
    share = ioa_matrix(target.truth_unit_xyxy, anchors_xyxy)
    real = [g for g in range(len(target.labels)) if not target.ignore[g]]
    ignored = [g for g in range(len(target.labels)) if target.ignore[g]]
    forced = forced_pairs(iou, real, options.strategy)
    truth_index, negative = [], []
    for a in range(len(anchors_cxcywh)):
        best = max(real, key=lambda g: (iou[g, a].item(), -g), default=None)
        best_iou = iou[best, a] if best is not None else torch.tensor(0.0)
        if a in forced:
            truth_index.append(forced[a])
        else:
            truth_index.append(best if best_iou > options.positive_threshold else -1)
        in_ignored = any(
            iou[g, a] > options.positive_threshold or share[g, a] > options.positive_threshold for g in ignored
        )
        negative.append(truth_index[-1] < 0 and best_iou < options.negative_threshold and not in_ignored)
    return truth_index, negative


def assert_same_as_loop(anchors_cxcywh, targets, options):
    matches = match(anchors_cxcywh, targets, options=options)
    own_anchors = anchors_cxcywh.expand(len(targets), *anchors_cxcywh.shape[-2:])
    for b, target in enumerate(targets):
        truth_index, negative = match_loop(own_anchors[b], target, options)
        assert matches.truth_index[b].tolist() == truth_index
        assert matches.negative[b].tolist() == negative
    assert matches.positive.equal(matches.truth_index >= 0)
    assert matches.truth_index.dtype == torch.int64


OPTIONS = [
    MatchOptions(),
    MatchOptions("per_object"),
    MatchOptions(positive_threshold=0.4, negative_threshold=0.2),
    MatchOptions("per_object", positive_threshold=0.6, negative_threshold=0.3),
    MatchOptions(positive_threshold=0.0, negative_threshold=0.0),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_batch_is_matched_as_by_loops(options, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = [random_target(generator, count, ignored=0.2) for count in (0, 1, 5, 12)]
    assert_same_as_loop(grid_anchors(5), targets, options)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_each_picture_of_a_cascade_has_its_own_anchors(options):
    generator = torch.Generator().manual_seed(7)
    anchors_cxcywh = grid_anchors(4).expand(3, -1, 4) + torch.rand(3, 48, 4, generator=generator) * 0.1
    targets = [random_target(generator, count, ignored=0.2) for count in (8, 0, 3)]
    assert_same_as_loop(anchors_cxcywh, targets, options)


coarse = st.integers(0, 4)
coarse_box = st.tuples(coarse, coarse, st.integers(1, 3), st.integers(1, 3)).map(
    lambda b: (b[0] / 8, b[1] / 8, (b[0] + b[2]) / 8, (b[1] + b[3]) / 8)
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    st.lists(coarse_box, min_size=1, max_size=7),
    st.lists(st.lists(coarse_box, max_size=6), min_size=1, max_size=3),
    st.sampled_from(OPTIONS),
)
def test_ties_are_broken_as_by_loops(anchors, truths, options):
    anchors_cxcywh = xyxy_to_cxcywh(torch.tensor(anchors))
    assert_same_as_loop(anchors_cxcywh, [make_target(t) for t in truths], options)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_a_batch_without_objects_is_all_background(options):
    matches = match(grid_anchors(3), [make_target([])] * 2, options=options)
    assert not matches.positive.any()
    assert matches.negative.all()
    assert matches.truth_index.eq(-1).all()


def test_two_objects_with_the_same_best_anchor():
    anchors_cxcywh = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.1, 0.5, 0.4, 0.4]])
    targets = [make_target([[0.3, 0.3, 0.68, 0.7], [0.28, 0.3, 0.66, 0.7]])]
    one_to_one = match(anchors_cxcywh, targets, options=MatchOptions("bipartite"))
    overwritten = match(anchors_cxcywh, targets, options=MatchOptions("per_object"))
    assert one_to_one.truth_index.tolist() == [[0, 1]]
    assert overwritten.truth_index.tolist() == [[1, -1]]


def test_equal_objects_take_equal_anchors_in_turn():
    anchors_cxcywh = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(5, 1)
    targets = [make_target([[0.3, 0.3, 0.68, 0.7]] * 4), make_target([[0.3, 0.3, 0.68, 0.7]] * 3)]
    assert match(anchors_cxcywh, targets).truth_index.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert_same_as_loop(anchors_cxcywh, targets, MatchOptions())


def test_more_objects_than_anchors():
    matches = match(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), [make_target([[0.3, 0.3, 0.6, 0.7], [0.3, 0.3, 0.7, 0.7]])])
    assert matches.truth_index.tolist() == [[1]]


@pytest.mark.parametrize("strategy", ["bipartite", "per_object"])
def test_an_object_that_touches_no_anchor_stays_alone(strategy):
    matches = match(
        torch.tensor([[0.1, 0.1, 0.1, 0.1]]),
        [make_target([[0.5, 0.5, 0.6, 0.6]])],
        options=MatchOptions(strategy),
    )
    assert matches.truth_index.tolist() == [[-1]]
    assert matches.negative.tolist() == [[True]]


def test_an_overlap_of_exactly_the_threshold_is_neither():
    # The object's own anchor, one of IoU 1/2 and one of IoU 1/4: all exact in binary.
    anchors_cxcywh = xyxy_to_cxcywh(torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.25, 0.25]]))
    targets = [make_target([[0.0, 0.0, 0.5, 0.5]])]
    at_half = match(anchors_cxcywh, targets)
    assert at_half.positive.tolist() == [[True, False, False]]
    assert at_half.negative.tolist() == [[False, False, True]]
    between = match(anchors_cxcywh, targets, options=MatchOptions(negative_threshold=0.25))
    assert between.negative.tolist() == [[False, False, False]]


def test_an_ignored_object_is_neither_object_nor_background():
    inside, over, beside = [0.25, 0.25, 0.1, 0.1], [0.3, 0.3, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]
    anchors_cxcywh = torch.tensor([inside, over, beside])
    crowd = [0.0, 0.0, 0.6, 0.6]
    alone = match(anchors_cxcywh, [make_target([crowd], [True])])
    assert not alone.positive.any()
    assert alone.negative.tolist() == [[False, False, True]]
    with_object = match(anchors_cxcywh, [make_target([crowd, [0.2, 0.2, 0.3, 0.3]], [True, False])])
    assert with_object.truth_index.tolist() == [[1, -1, -1]]


def test_half_precision_anchors_are_matched_in_float32():
    anchors_cxcywh, targets = grid_anchors(4).half(), [random_target(torch.Generator().manual_seed(1), 5)]
    half, full = match(anchors_cxcywh, targets), match(anchors_cxcywh.float(), targets)
    assert half.positive.any()
    assert all(h.equal(f) for h, f in zip(half, full, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        {"strategy": "hungarian"},
        {"positive_threshold": 0.4},
        {"negative_threshold": -0.1},
        {"positive_threshold": 1.5},
        {"positive_threshold": float("nan")},
    ],
)
def test_impossible_options_are_refused(values):
    # Where annotations are checked too, they may speak first.
    with pytest.raises((OptionError, TypeCheckError), match=r"expected 0 <=|known: bipartite|Type-check error"):
        MatchOptions(**values)
