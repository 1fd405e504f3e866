"""What is decided about archives that came, changed or went, over made-up stores."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pathlens.model_version import ModelVersion
from pathlens.torchserve.changes import Content, arrivals, departures

VERSIONS = st.builds(ModelVersion, st.sampled_from("ab"), st.sampled_from(["1.0", "1.9", "1.10", "2"]))
PATHS = st.sampled_from([Path(f"/store/{name}.mar") for name in "pqrs"])
HASHES = st.sampled_from(["aa", "bb"])
READ = st.dictionaries(PATHS, st.builds(Content, VERSIONS, HASHES))
CLAIMS = st.dictionaries(PATHS, VERSIONS)
SERVED = st.dictionaries(VERSIONS, HASHES)
P, Q = Path("/store/p.mar"), Path("/store/q.mar")
OLD, NEW = ModelVersion("a", "1.9"), ModelVersion("a", "1.10")


@given(read=READ, claims=CLAIMS, served=SERVED)
def test_every_archive_is_loaded_known_or_refused(
    read: dict[Path, Content], claims: dict[Path, ModelVersion], served: dict[ModelVersion, str]
) -> None:
    decided = arrivals(read, claims, served)
    assert sorted([*decided.load, *decided.known, *decided.refused]) == sorted(read)


@given(read=READ, claims=CLAIMS, served=SERVED)
def test_what_is_loaded_is_new_and_loaded_once(
    read: dict[Path, Content], claims: dict[Path, ModelVersion], served: dict[ModelVersion, str]
) -> None:
    loaded = [read[path].version for path in arrivals(read, claims, served).load]
    assert loaded == sorted(set(loaded))
    assert not set(loaded) & set(served)


@given(read=READ, claims=CLAIMS, served=SERVED)
def test_a_version_that_an_untouched_archive_stands_for_is_never_taken_from_it(
    read: dict[Path, Content], claims: dict[Path, ModelVersion], served: dict[ModelVersion, str]
) -> None:
    decided = arrivals(read, claims, served)
    untouched = {version for path, version in claims.items() if path not in read}
    assert not untouched & {read[path].version for path in (*decided.load, *decided.known)}


@given(read=READ, claims=CLAIMS, served=SERVED)
def test_another_content_never_passes_for_a_served_version(
    read: dict[Path, Content], claims: dict[Path, ModelVersion], served: dict[ModelVersion, str]
) -> None:
    for path in arrivals(read, claims, served).known:
        assert served[read[path].version] == read[path].sha256


@given(claimed=st.sets(VERSIONS), served=st.sets(VERSIONS))
def test_served_versions_stay_or_go_and_no_model_loses_its_last_one(
    claimed: set[ModelVersion], served: set[ModelVersion]
) -> None:
    decided = departures(claimed, served)
    left = served - set(decided.unload)
    assert set(decided.unload) <= served - claimed
    assert set(decided.kept) == left - claimed
    assert {version.name for version in left} == {version.name for version in served}
    for kept in decided.kept:
        # Only where nothing else is left, and the newest there was.
        assert [version for version in left if version.name == kept.name] == [kept]
        assert kept == max(version for version in served if version.name == kept.name)


def test_another_content_of_a_served_version_is_refused_with_the_remedy() -> None:
    error = arrivals({P: Content(OLD, "bb")}, {P: OLD}, {OLD: "aa"}).refused[P]
    assert error.reason == "VERSION_TAKEN"
    assert "pathlens pack --version" in error.message
    assert str(P) in error.message


def test_a_version_that_another_archive_stands_for_is_refused() -> None:
    error = arrivals({Q: Content(OLD, "aa")}, {P: OLD}, {OLD: "aa"}).refused[Q]
    assert "2 archives hold a model named 'a' in version '1.9'" in error.message


def test_a_renamed_archive_stands_for_what_is_served() -> None:
    assert arrivals({Q: Content(OLD, "aa")}, {}, {OLD: "aa"}).known == [Q]


def test_two_archives_may_change_places() -> None:
    served = {OLD: "aa", NEW: "bb"}
    decided = arrivals({P: Content(NEW, "bb"), Q: Content(OLD, "aa")}, {P: OLD, Q: NEW}, served)
    assert set(decided.known) == {P, Q}


def test_several_new_versions_are_loaded_from_the_oldest_to_the_newest() -> None:
    assert arrivals({P: Content(NEW, "bb"), Q: Content(OLD, "aa")}, {}, {}).load == [Q, P]
