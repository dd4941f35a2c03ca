from __future__ import annotations

import pytest
from evaluation_worlds import found

from multibox.errors import ClassMapError
from multibox.evaluation import ALIASES, map_classes
from multibox.spec.classes import COCO_CLASSES, VOC_CLASSES, ClassMap

BOX = (10, 20, 60, 90)


def test_coco_reaches_all_of_voc_and_back() -> None:
    there = map_classes(COCO_CLASSES, VOC_CLASSES)
    assert set(there.targets) == {None, *range(20)}
    assert len(there.unmapped_source) == 60
    renamed = {(a, b) for a, b in there.mapped if a != b}
    assert renamed == {
        ("motorcycle", "motorbike"),
        ("airplane", "aeroplane"),
        ("couch", "sofa"),
        ("potted plant", "pottedplant"),
        ("dining table", "diningtable"),
        ("tv", "tvmonitor"),
    }
    back = map_classes(VOC_CLASSES, COCO_CLASSES)
    assert {(b, a) for a, b in back.mapped} == set(there.mapped)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("traffic light", "trafficlight"),
        ("traffic light", "Traffic_Light"),
        ("cell phone", "mobile phone"),
        ("hair drier", "Hair dryer"),
        ("donut", "doughnut"),
        ("tv", "Television"),
        ("hot dog", "hotdog"),
        ("T-shirt", "t shirt"),
    ],
)
def test_other_spellings_are_the_same_class(mine, theirs) -> None:
    for a, b in ((mine, theirs), (theirs, mine)):
        assert map_classes(ClassMap((a,)), ClassMap(("other", b))).targets == (1,)


def test_every_alias_means_one_class() -> None:
    names = [name for group in ALIASES for name in group]
    assert len(names) == len(set(names))
    assert all(len(group) > 1 for group in ALIASES)


def test_similar_but_different_names_are_not_mapped() -> None:
    assert map_classes(ClassMap(("cat", "pedestrian")), ClassMap(("cats", "person"))).targets == (None, None)


def test_two_model_classes_of_one_meaning_are_refused_until_settled() -> None:
    model, data = ClassMap(("tv", "tvmonitor", "cat")), ClassMap(("cat", "tv"))
    with pytest.raises(ClassMapError, match="'tv', 'tvmonitor' all mean the data class 'tv'"):
        map_classes(model, data)
    merged = map_classes(model, data, aliases={"tv": "tv", "tvmonitor": "tv"})
    assert merged.targets == (1, 1, 0)
    dropped = map_classes(model, data, aliases={"tvmonitor": None})
    assert dropped.targets == (1, None, 0)


def test_two_data_classes_of_one_meaning_are_refused_unless_a_name_is_exact() -> None:
    data = ClassMap(("sofa", "couch"))
    assert map_classes(ClassMap(("couch", "sofa")), data).targets == (1, 0)
    with pytest.raises(ClassMapError, match="'Sofa' fits the data classes 'sofa', 'couch'"):
        map_classes(ClassMap(("Sofa",)), data)
    assert map_classes(ClassMap(("Sofa",)), data, aliases={"Sofa": "couch"}).targets == (1,)


def test_explicit_aliases_win_and_must_exist() -> None:
    model, data = ClassMap(("car", "truck")), ClassMap(("vehicle", "car"))
    assert map_classes(model, data, aliases={"car": "vehicle", "truck": "vehicle"}).targets == (0, 0)
    with pytest.raises(ClassMapError, match="unknown class 'lorry'"):
        map_classes(model, data, aliases={"lorry": "vehicle"})
    with pytest.raises(ClassMapError, match="unknown class 'vehicles'"):
        map_classes(model, data, aliases={"car": "vehicles"})


def test_detections_change_their_classes_and_lose_what_has_no_place() -> None:
    mapping = map_classes(COCO_CLASSES, VOC_CLASSES)
    labels = [COCO_CLASSES.index(name) for name in ("motorcycle", "zebra", "cat", "zebra")]
    before = found([BOX] * 4, labels, [0.9, 0.8, 0.7, 0.6], classes=COCO_CLASSES)
    after, dropped = mapping.apply(before)
    assert after.names == ["motorbike", "cat"]
    assert after.scores.tolist() == pytest.approx([0.9, 0.7])
    assert after.class_map is VOC_CLASSES
    assert dropped == {"zebra": 2}
    with pytest.raises(ClassMapError, match="of the mapping"):
        mapping.apply(after)


def test_without_strictness_only_the_ambiguous_names_need_to_be_the_same() -> None:
    source = ClassMap(("sofa", "dog", "tv", "television"))
    target = ClassMap(("Sofa", "SOFA", "Dog", "television"))
    found = map_classes(source, target, strict=False)
    assert found.mapped == (("dog", "Dog"), ("television", "television"))
    with pytest.raises(ClassMapError, match="fits the data classes"):
        map_classes(source, target)
