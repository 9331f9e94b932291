"""Settings: checked when created, unchanged by a round trip through JSON, refused in one sentence if wrong."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotrunk import Batching, CotrunkError, Settings, Sharing, Skipping
from cotrunk.settings import settings_of

fractions = st.floats(0, 1)
windows = st.tuples(fractions, fractions).map(lambda ends: (min(ends), max(ends)))
counts = st.integers(1, 1000)
sharings = st.builds(
    Sharing,
    share=st.floats(0, 1, exclude_max=True),
    similarity=st.just("auto") | st.floats(-1, 1),
    max_similarity=st.none() | st.floats(1.5, 2),
    max_group=st.none() | counts,
    mode=st.sampled_from(["flat", "adaptive", "tree"]),
    encoder=st.sampled_from(["pipeline", "minilm", "some/model"]),
    noise=st.sampled_from(["auto", "common", "own"]),
    trunk_guidance=st.just("auto") | fractions,
)
predictions = st.sampled_from(["reuse", "linear", "quadratic"])
skippings = (
    st.builds(
        Skipping,
        tolerance=st.floats(0, 1e6),
        correct=st.booleans(),
        tokens=st.none() | st.floats(0.01, 1),
    )
    | st.builds(Skipping, rule=st.just("fixed"), every=counts, prediction=predictions)
    | st.builds(Skipping, rule=st.sampled_from(["paper", "released"]))
)
batchings = st.builds(
    Batching,
    batch_size=counts,
    max_rows=st.none() | counts,
    row_sizes=st.none() | st.lists(counts, min_size=1, max_size=5),
)
all_settings = st.builds(
    Settings,
    sharing=st.none() | sharings,
    skipping=st.just("auto") | st.none() | skippings,
    guidance_interval=st.none() | windows,
    steps=st.none() | counts,
    batching=batchings,
)


@given(all_settings)
def test_settings_survive_a_round_trip_through_json(settings: Settings) -> None:
    text = json.dumps(settings.to_json(), allow_nan=False)
    again = Settings.from_json(json.loads(text))
    assert again == settings
    assert hash(again) == hash(settings)
    assert json.dumps(again.to_json()) == text


def test_absent_keys_take_their_defaults() -> None:
    assert Settings.from_json({}) == Settings()
    assert Settings.from_json({"sharing": {"share": 0.2}}) == Settings(sharing=Sharing(share=0.2))
    assert Settings.from_json({"sharing": None}) == Settings(sharing=None)


def test_numpy_numbers_become_json_numbers() -> None:
    settings = Settings(
        Sharing(share=np.float32(0.25), similarity=np.float64(0.5), max_group=np.int64(3)),  # type: ignore[arg-type]
        Skipping(tolerance=np.float32(0.5), every=np.int8(3)),  # type: ignore[arg-type]
        batching=Batching(np.int32(1), np.int16(2), np.array([2, 4])),  # type: ignore[arg-type]
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "settings is a list: give an object with sharing, skipping"),
        ({"share": 0.3}, "settings has the unknown key 'share': use sharing, skipping"),
        ({"sharing": 0.3}, "sharing is a float: give an object with share"),
        ({"sharing": {"shares": 0.3}}, "sharing has the unknown key 'shares'"),
        ({"sharing": {"share": "0.3"}}, "share '0.3' is out of range: use 0 or more, less than 1"),
        ({"sharing": {"share": True}}, "share True is out of range"),
        ({"sharing": {"share": 1.0}}, "share 1.0 is out of range"),
        ({"sharing": {"share": -0.1}}, "share -0.1 is out of range"),
        ({"sharing": {"share": math.nan}}, "share nan is out of range"),
        ({"sharing": {"similarity": math.nan}}, "similarity nan is out of range"),
        ({"sharing": {"similarity": 1.5}}, "similarity 1.5 is out of range: use -1 or more, at most 1, or 'auto'"),
        ({"sharing": {"similarity": "high"}}, "similarity 'high' is neither 'auto' nor a number"),
        ({"sharing": {"trunk_guidance": "low"}}, "trunk_guidance 'low' is neither 'auto' nor a number"),
        ({"sharing": {"trunk_guidance": -1}}, "trunk_guidance -1 is out of range: use 0 or more, at most 1, or 'auto'"),
        ({"skipping": "all"}, r"skipping 'all' is unknown: give Skipping\(tolerance=0.03\), 'auto', or None"),
        ({"skipping": 0.3}, "skipping is a float: give an object"),
        ({"sharing": {"similarity": 0.8, "max_similarity": 0.7}}, "max_similarity 0.7 is not above similarity 0.8"),
        ({"sharing": {"max_group": 2.5}}, "max_group 2.5 is out of range"),
        ({"sharing": {"max_group": "5"}}, "max_group '5' is out of range"),
        ({"sharing": {"mode": "star"}}, "mode 'star' is unknown: use flat, adaptive or tree"),
        ({"sharing": {"max_group": 0}}, "max_group 0 is out of range: use a whole number of 1 or more"),
        ({"sharing": {"encoder": 3}}, "encoder 3 is not a name"),
        ({"skipping": {"correct": 1}}, "skipping correct 1 is not a truth value"),
        (
            {"skipping": {"rule": "paper", "tolerance": 1.0}},
            "skipping tolerance 1.0 has no effect under the rule 'paper'",
        ),
        ({"skipping": {"rule": ["error"]}}, "skipping rule .* is unknown: use error, fixed, paper or released"),
        ({"skipping": {"tolerance": math.inf}}, "skipping tolerance inf is out of range: use 0 or more"),
        ({"guidance_interval": "ab"}, "guidance_interval 'ab' is not a pair of numbers"),
        ({"guidance_interval": [0.2, 1.5]}, r"guidance_interval \[0.2, 1.5\] is out of range"),
        ({"steps": 2.5}, "steps 2.5 is out of range"),
        ({"batching": None}, r"batching is a NoneType: give Batching\("),
        ({"batching": {"batch_size": 0}}, "batch_size 0 is out of range"),
        ({"batching": {"max_rows": 0}}, "max_rows 0 is out of range"),
        ({"batching": {"row_sizes": 8}}, "row_sizes 8 is not a list"),
        ({"batching": {"row_sizes": []}}, "is not a list of whole numbers"),
        ({"batching": {"row_sizes": [0, 4]}}, "row_sizes 0 is out of range"),
    ],
)
def test_wrong_json_is_reported(data: Any, message: str) -> None:
    with pytest.raises(CotrunkError, match=message):
        Settings.from_json(data)


def test_settings_come_in_one_object_or_one_by_one() -> None:
    sharing, skipping = Sharing(share=0.1), Skipping()
    together = Settings(sharing, skipping, (0.1, 0.8), batching=Batching(2))
    assert settings_of(None, sharing, skipping, (0.1, 0.8), Batching(2)) == together
    assert settings_of(together) is together
    with pytest.raises(CotrunkError, match="settings is given, and sharing and skipping as well"):
        settings_of(together, Sharing(), skipping)
    with pytest.raises(CotrunkError, match="settings is given, and skipping as well"):
        settings_of(together, skipping=None)
    assert settings_of(None) == Settings()
    assert Settings().skipping == "auto"


def test_the_published_sharing_by_name() -> None:
    assert Sharing.published() == Sharing(share=0.3, noise="common", trunk_guidance=1.0)
    published = Sharing.published(share=0.4, mode="tree")
    assert (published.noise, published.trunk_guidance) == ("common", 1.0)
    assert published == Sharing(share=0.4, mode="tree", noise="common", trunk_guidance=1.0)
    for options, says in (({"noise": "mine"}, "noise"), ({"trunk_guidance": 1.1}, "trunk_guidance 1.1")):
        with pytest.raises(CotrunkError, match=says):
            Sharing(**options)
