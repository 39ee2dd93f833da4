"""Mount mapping: by components, both ways, longest match first."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.mounts import Mount, MountTable, normalise_path, parse_mount, parse_mounts

# A small alphabet, so that prefixes, nesting and name clashes are frequent
PARTS = st.sampled_from(["a", "b", "data", "data2", "we ird'\"$dir", "ü"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
MOUNTS = st.builds(Mount, PATHS, PATHS, st.booleans())


@st.composite
def tables(draw: st.DrawFn) -> MountTable:
    mounts = draw(st.lists(MOUNTS, max_size=5, unique_by=lambda mount: mount.target))
    return MountTable(mounts)


@given(tables(), PATHS)
def test_host_to_container_and_back(table: MountTable, path: str) -> None:
    with contextlib.suppress(UserError):
        assert table.to_host(table.to_container(path)) == path


@given(tables(), PATHS)
def test_every_mounted_container_path_round_trips_to_the_same_file(table: MountTable, path: str) -> None:
    if not table.is_mounted(path):
        with pytest.raises(UserError):
            table.to_host(path)
        return
    host = table.to_host(path)
    assert table.to_host(table.to_container(host)) == host


@given(tables(), PATHS)
def test_matches_a_component_list_model(table: MountTable, path: str) -> None:
    parts = path.split("/")
    covering = [m for m in table.mounts if parts[: len(m.target.split("/"))] == m.target.split("/")]
    assert table.is_mounted(path) == bool(covering)
    assert table.unmounted([path, path + "/"]) == (() if covering else (path,))
    if covering:
        best = max(covering, key=lambda m: len(m.target.split("/")))
        assert table.to_host(path) == best.source + path[len(best.target) :]


@given(MOUNTS)
def test_text_round_trip(mount: Mount) -> None:
    assert parse_mount(str(mount)) == mount


def test_a_name_is_not_a_prefix() -> None:
    table = MountTable([parse_mount("/host/data:/data")])
    assert table.to_host("/data/x") == "/host/data/x"
    assert table.unmounted(["/data2/x", "/data", "/data2/x", "/data-old"]) == ("/data2/x", "/data-old")
    for lookup, path in [(table.to_host, "/data2"), (table.to_container, "/host/data2/x")]:
        with pytest.raises(UserError, match="data2"):
            lookup(path)


def test_nested_mounts_and_shadowing() -> None:
    table = MountTable(parse_mounts("/home/me:/workspace,/lustre/sets:/workspace/sets"))
    assert table.to_host("/workspace/sets/a") == "/lustre/sets/a"
    assert table.to_host("/workspace/setsuna") == "/home/me/setsuna"
    assert table.to_container("/lustre/sets/a") == "/workspace/sets/a"
    # hidden behind the inner mount: the container would see another file under that name
    with pytest.raises(UserError, match="not visible"):
        table.to_container("/home/me/sets/a")


def test_the_shadowed_name_is_found_through_another_mount() -> None:
    table = MountTable(parse_mounts("/h:/w,/other:/w/sub,/h:/again"))
    assert table.to_container("/h/x") == "/w/x"
    assert table.to_container("/h/sub/x") == "/again/sub/x"


@pytest.mark.parametrize(
    ("given_path", "expected"),
    [("/a/", "/a"), ("//a//b/.//c//", "/a/b/c"), ("///", "/"), ("/.", "/"), ("/a/...", "/a/...")],
)
def test_paths_are_normalised(given_path: str, expected: str) -> None:
    assert normalise_path(given_path) == expected


def test_trailing_slashes_and_modes() -> None:
    assert parse_mount(" /a//:/b/ ") == Mount("/a", "/b") == parse_mount("/a:/b:rw")
    assert parse_mount("/a:/b:ro") == Mount("/a", "/b", read_only=True)
    assert parse_mount("/:/host").source == "/"
    assert MountTable([parse_mount("/:/host")]).to_container("/etc/x") == "/host/etc/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/a", "Did you mean '/a:/a'"),
        ("", "form"),
        ("/a:", "form"),
        (":/a", "form"),
        ("/a:/b:ro:z", "form"),
        ("/a:/b:readonly", "unknown mode 'readonly'"),
        ("a:/b", "source 'a' must be absolute"),
        ("/a:b", "target 'b' must be absolute"),
        ("~/a:/b", "'~' is not expanded"),
        ("/a/../b:/c", "'..'"),
        ("/a:/", "root folder"),
        ("/a\n:/b", "line break"),
    ],
)
def test_bad_mounts_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_mount(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


def test_dotdot_never_escapes_a_mount() -> None:
    table = MountTable([Mount("/home/me", "/workspace")])
    for lookup in (table.to_host, table.to_container, table.is_mounted):
        with pytest.raises(UserError, match=r"'\.\.'"):
            lookup("/workspace/../etc/passwd")


def test_conflicts() -> None:
    table = MountTable([Mount("/a", "/x"), Mount("/a", "/x")])
    assert table.mounts == (Mount("/a", "/x"),)
    assert table.with_extra(parse_mounts("/a/:/x/,/b:/y")).mounts == (Mount("/a", "/x"), Mount("/b", "/y"))
    for other in (Mount("/b", "/x"), Mount("/a", "/x", read_only=True)):
        with pytest.raises(UserError, match="'/x' would be mounted twice: '/a:/x' and"):
            table.with_extra([other])
