from __future__ import annotations

import json
import pickle
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.errors import ClassMapError, ContractError, MultiboxError
from multibox.spec.classes import COCO_CLASSES, VOC_CLASSES, ClassMap

# The ten ids between 1 and 90 that COCO's instance annotations never use.
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
PETS = ClassMap(("cat", "dog", "guinea pig"))
writable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(str.strip)


def test_coco_has_80_classes_and_the_ids_1_to_90_with_gaps() -> None:
    assert len(COCO_CLASSES) == 80
    assert COCO_CLASSES.ids == tuple(i for i in range(1, 91) if i not in COCO_GAPS)


@pytest.mark.parametrize(
    ("index", "class_id", "name"),
    [
        (0, 1, "person"),
        (10, 11, "fire hydrant"),
        (11, 13, "stop sign"),
        (15, 17, "cat"),
        (24, 27, "backpack"),
        (39, 44, "bottle"),
        (40, 46, "wine glass"),
        (60, 67, "dining table"),
        (61, 70, "toilet"),
        (62, 72, "tv"),
        (73, 84, "book"),
        (79, 90, "toothbrush"),
    ],
)
def test_coco_names_around_the_gaps(index: int, class_id: int, name: str) -> None:
    assert COCO_CLASSES.names[index] == name
    assert COCO_CLASSES.ids[index] == class_id
    assert COCO_CLASSES.index(name) == COCO_CLASSES.index_of_id(class_id) == index


@pytest.mark.parametrize("gap", sorted(COCO_GAPS | {0, 91, -1}))
def test_an_id_that_coco_never_used_is_refused(gap: int) -> None:
    with pytest.raises(ClassMapError, match=f"unknown class id {gap}; known ids: 1, 2, 3"):
        COCO_CLASSES.index_of_id(gap)


def test_voc_is_in_its_customary_order() -> None:
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES.names) == sorted(VOC_CLASSES.names)
    assert VOC_CLASSES.names[0] == "aeroplane"
    assert VOC_CLASSES.names[10:12] == ("diningtable", "dog")
    assert VOC_CLASSES.names[14] == "person"
    assert VOC_CLASSES.names[19] == "tvmonitor"
    assert VOC_CLASSES.ids == tuple(range(20))


def test_from_ids_orders_by_id() -> None:
    assert ClassMap.from_ids({7: "b", 2: "z", 5: "a"}) == ClassMap(("z", "a", "b"), (2, 5, 7))


def test_lists_and_numpy_ids_become_tuples_of_int() -> None:
    made = ClassMap(["a", "b"], np.array([3, 9]))  # type: ignore[arg-type]
    assert made == ClassMap(("a", "b"), (3, 9))
    assert [type(i) for i in made.ids] == [int, int]
    assert hash(made) == hash(ClassMap(("a", "b"), (3, 9)))


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        ((), (), "at least one class"),
        (("a", ""), (), r"class 1 has no name: ''"),
        (("a", " \t"), (), "class 1 has no name"),
        (("a", 3), (), "class 1 has no name: 3"),
        ((None,), (), "class 0 has no name: None"),
        (("a", "b", "a", "b", "c"), (), "class name used more than once: a, b"),
        (("a", "b"), (1, 1), "class id used more than once: 1"),
        (("a", "b"), (1,), "2 class names but 1 ids"),
        (("a", "b"), (1, 2, 3), "2 class names but 3 ids"),
        (("a", "b"), (1, 2.5), "class ids must be integers"),
        (("a", "b"), ("1", "2"), "class ids must be integers"),
        (("a", "b\nc"), (), "class 1: a line break or control character"),
        (("a\u2028b",), (), "class 0: a line break"),
        (("a\x00",), (), "control character"),
        (("\ud800",), (), "control character"),
        ("cat", (), "must be a list of strings, got 'cat'"),
        ({0: "cat"}, (), "must be a list of strings"),
    ],
)
def test_what_is_no_class_map(names: object, ids: object, message: str) -> None:
    with pytest.raises(ClassMapError, match=message):
        ClassMap(names, ids)  # type: ignore[arg-type]


def test_the_error_is_of_the_whole_family() -> None:
    with pytest.raises(ClassMapError) as caught:
        PETS.index("fish")
    assert isinstance(caught.value, ContractError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MultiboxError)


def test_names_differ_by_case_and_inner_spaces() -> None:
    made = ClassMap(("Cat", "cat", "guinea  pig", "guinea pig"))
    assert [made.index(name) for name in made.names] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], ()),
        (["dog", "cat"], (1, 0)),
        ([2, "guinea pig", 0, "0"], (2, 0)),
        (["2"], (2,)),
        ([" dog ", " 0 "], (1, 0)),
        (("cat",), (0,)),
        ("dog", (1,)),
        ("1", (1,)),
        ([np.int64(1), True], (1,)),
    ],
)
def test_select(wanted: object, expected: tuple[int, ...]) -> None:
    picked = PETS.select(wanted)  # type: ignore[arg-type]
    assert picked == expected
    assert all(type(i) is int for i in picked)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["dgo"], r"unknown class 'dgo'; did you mean 'dog'\?"),
        (["zebra"], "unknown class 'zebra'; known: cat, dog, guinea pig"),
        (["Cat"], r"unknown class 'Cat'; did you mean 'cat'\?"),
        ([""], "unknown class ''"),
        ([3], "class index 3 is outside 0…2"),
        (["3"], "class index 3 is outside 0…2"),
        ([-1], "class index -1 is outside"),
        (["-1"], "class index -1 is outside"),
        (["--1"], "unknown class '--1'"),
        (["²"], "unknown class '²'"),
        (["9" * 5000], "is outside 0…2"),
        ([1.0], "by its name or index, not by 1.0"),
        ([None], "by its name or index, not by None"),
    ],
)
def test_select_refuses(wanted: list[object], message: str) -> None:
    with pytest.raises(ClassMapError, match=message):
        PETS.select(wanted)  # type: ignore[arg-type]


def test_a_name_of_digits_wins_over_an_index() -> None:
    digits = ClassMap(("1", "0", "7"))
    assert digits.select(["0"]) == (1,)
    assert digits.select(["1", "7"]) == (0, 2)
    assert digits.select([0]) == (0,)
    assert digits.select(["2"]) == (2,)


def test_names_with_outer_spaces_are_found_exactly_first() -> None:
    spaced = ClassMap((" cat", "cat"))
    assert spaced.select([" cat"]) == (0,)
    assert spaced.select(["cat", "cat "]) == (1,)


def test_require_same_prints_the_difference() -> None:
    mine = ClassMap(("cat", "dog", "cow"), (1, 2, 3))
    theirs = ClassMap(("cat", "cow"), (1, 2))
    with pytest.raises(ClassMapError) as caught:
        mine.require_same(theirs, mine="the model", theirs="cows.json")
    assert str(caught.value).splitlines() == [
        "the classes of the model (3) and of cows.json (2) differ:",
        "  1: dog (id 2) | cow (id 2)",
        "  2: cow (id 3) | nothing",
    ]


@pytest.mark.parametrize(
    "other",
    [
        ClassMap(("dog", "cat", "guinea pig")),
        ClassMap(("cat", "dog", "guinea pig"), (1, 2, 3)),
        ClassMap(("cat", "dog")),
        ClassMap(("cat", "dog", "guinea pig", "fish")),
    ],
)
def test_order_ids_and_number_all_have_to_agree(other: ClassMap) -> None:
    for mine, theirs in ((PETS, other), (other, PETS)):
        with pytest.raises(ClassMapError, match="differ:\n  "):
            mine.require_same(theirs, mine="a", theirs="b")


def test_require_same_accepts_equal_maps() -> None:
    equal = ClassMap(["cat", "dog", "guinea pig"], (0, 1, 2))  # type: ignore[arg-type]
    assert PETS.require_same(equal, mine="a", theirs="b") is None
    assert equal == PETS


@given(st.lists(writable, min_size=1, max_size=8, unique=True), st.data())
def test_any_writable_names_survive_json_and_are_found(names: list[str], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(-(2**40), 2**40), min_size=len(names), max_size=len(names), unique=True))
    made = ClassMap(tuple(names), tuple(ids))
    again = ClassMap.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert [again.index(name) for name in names] == list(range(len(names)))
    assert [again.index_of_id(class_id) for class_id in ids] == list(range(len(names)))
    assert again.select(names) == tuple(range(len(names)))
    assert pickle.loads(pickle.dumps(again)) == made


@given(st.lists(st.one_of(st.text(), st.integers()), max_size=4))
def test_select_gives_indexes_or_the_package_s_own_error(wanted: list[str | int]) -> None:
    picked, refused = (), ""
    try:
        picked = COCO_CLASSES.select(wanted)
    except ClassMapError as error:
        refused = str(error)
    assert bool(refused) or all(0 <= index < 80 for index in picked)
    assert len(set(picked)) == len(picked) <= len(wanted)


@pytest.mark.parametrize(
    "data", [{"names": "cat", "ids": []}, {"names": ["a"], "ids": [1.5]}, {"names": [], "ids": []}]
)
def test_from_dict_refuses(data: dict[str, object]) -> None:
    with pytest.raises(ClassMapError):
        ClassMap.from_dict(data)


def test_twenty_thousand_classes_take_no_time() -> None:
    start = time.perf_counter()
    made = ClassMap(tuple(f"class {i}" for i in range(21_841)))
    assert made.index("class 21840") == 21_840
    assert time.perf_counter() - start < 2
