"""Owners and modes: under "own" an owner gets no trunk of another, and no words of another are in a recipe."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunk_caches import KEY, cosine, directions, put

from cotrunk.errors import CotrunkError
from cotrunk.planning.trunk_recipe import TrunkRecipe
from cotrunk.trunks.access import Trunks

NEAR = cosine(10)
OWNERS = ("ann", "bob", "eve")
ACTS = ("store", "remember", "ask")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(OWNERS), st.sampled_from(("store", "remember", "ask")), st.integers(0, 17)),
        max_size=25,
    )
)
def test_no_owner_gets_the_words_of_another(acts: list[tuple[str, str, int]]) -> None:
    """Owners whose prompts lie at the same few places store, remember and ask, in any order."""
    shared_folder = Trunks()
    for owner, act, place in acts:
        trunks = shared_folder.for_owner(owner)
        words = f"{owner}'s prompt {place}"
        if act == "store":
            put(trunks, words, f"{words}, too", at=(10 * place, 10 * place + 3))
        if act == "remember":
            trunks.remember(KEY, words, directions(10 * place)[0])
        asked = directions(10 * place + 1)
        found, ghost = trunks.find(KEY, asked, NEAR), trunks.ghosts(KEY, asked, NEAR)
        told = [*(found.recipe.members if found else ()), *([ghost.text] if ghost else [])]
        assert all(word.startswith(f"{owner}'s") for word in told)
        assert found is None or trunks.load(KEY, found.recipe) is not None
        assert act != "store" or found is not None  # each has its own


def test_a_recipe_of_another_owner_does_not_open_the_trunk() -> None:
    ann = Trunks(owner="ann")
    recipe = put(ann, "a", "b", at=(0, 5))
    assert ann.load(KEY, recipe) is not None
    assert ann.for_owner("bob").load(KEY, recipe) is None
    assert not ann.for_owner("bob").has(KEY, recipe)
    assert ann.for_owner("ann").has(KEY, recipe)


def test_names_of_owners_cannot_reach_another_space() -> None:
    trunks = Trunks(owner="operator")
    recipe = put(trunks, "a", "b", at=(0, 5))
    for owner in ("stems", "shared", "own:operator"):
        assert not trunks.for_owner(owner).has(KEY, recipe)
    assert not trunks.for_owner("ann", "stems").has(KEY, recipe)


def test_off_finds_and_stores_nothing() -> None:
    on = Trunks()
    put(on, "a", "b", at=(0, 5))
    on.remember(KEY, "c", directions(30)[0])
    off = on.for_owner("local", "off")
    assert off.find(KEY, directions(2), NEAR) is None
    assert off.ghosts(KEY, directions(31), NEAR) is None
    off.remember(KEY, "d", directions(60)[0])
    other = put(off, "e", "f", at=(90, 95))
    assert not on.has(KEY, other)
    assert on.ghosts(KEY, directions(61), NEAR) is None


@pytest.mark.parametrize("mode", ["own", "stems", "shared"])
def test_stems_serve_all(mode: str) -> None:
    trunks = Trunks(mode=mode)
    stem = put(trunks.for_stems(), "a", "b", at=(0, 5))
    for owner in OWNERS:
        assert trunks.for_owner(owner).find(KEY, directions(2), NEAR).recipe == stem
        assert trunks.for_owner(owner).load(KEY, stem) is not None


def test_prompts_of_users_never_enter_the_stems() -> None:
    trunks = Trunks(mode="stems")
    for name in ("ann", "operator", "stems", " "):
        user = trunks.for_owner(name)
        recipe = put(user, "a", "b", at=(0, 5))
        user.remember(KEY, "c", directions(30)[0])
    for other in (trunks, user, trunks.for_owner("bob"), trunks.for_stems()):
        assert not other.has(KEY, recipe)
        assert other.find(KEY, directions(2), NEAR) is None
        assert other.ghosts(KEY, directions(31), NEAR) is None
    assert not trunks.backing.index.entries()
    with pytest.raises(CotrunkError, match="owner '' is not a name"):
        trunks.for_owner("")


def test_shared_serves_all_with_that_mode() -> None:
    ann = Trunks(owner="ann", mode="shared")
    bob = ann.for_owner("bob")
    ann.remember(KEY, "ann's prompt", directions(0)[0])
    assert bob.ghosts(KEY, directions(5), NEAR).text == "ann's prompt"
    recipe = put(bob, "ann's prompt", "bob's prompt", at=(0, 5))
    assert ann.find(KEY, directions(2), NEAR).recipe == recipe
    assert ann.for_owner("ann", "own").find(KEY, directions(2), NEAR) is None
    assert not ann.for_owner("eve", "own").has(KEY, recipe)


def test_what_was_stored_as_own_stays_private_when_the_mode_changes(tmp_path: Path) -> None:
    recipe = put(Trunks(tmp_path, owner="ann"), "a", "b", at=(0, 5))
    assert not Trunks(tmp_path, owner="bob", mode="shared").has(KEY, recipe)


def test_the_nearest_of_own_trunks_and_stems_is_chosen() -> None:
    trunks = Trunks()
    own, stem = put(trunks, "a", "b", at=(0, 4)), put(trunks.for_stems(), "c", "d", at=(6, 8), seed=1)
    assert trunks.find(KEY, directions(1), NEAR).recipe == own
    assert trunks.find(KEY, directions(7), NEAR).recipe == stem
    assert trunks.find(KEY, directions(7), NEAR, without=[stem]).recipe == own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "open"}, "mode 'open' is unknown"),
        ({"owner": ""}, "owner '' is not a name"),
        ({"precision": "int8"}, "precision 'int8' is unknown"),
        ({"memory_gib": -1}, "memory_gib -1 is out of range"),
        ({"disk_gib": float("nan")}, "disk_gib nan is out of range"),
        ({"days": 0}, "days 0 is out of range"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        Trunks(**options)


def test_members_and_vectors_must_match() -> None:
    with pytest.raises(CotrunkError, match="1 vectors for 2 members"):
        Trunks().store(KEY, TrunkRecipe(("a", "b"), 0, 4), {}, directions(0), 1.0)
