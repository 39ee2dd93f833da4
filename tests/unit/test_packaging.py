"""Code packages of real git repositories: what travels, what is refused, what names them."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import nemo_skills
from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.tunnel import CommandError, LocalTunnel
from nemo_skills.pipeline.launch.archive import Entry, write_archive
from nemo_skills.pipeline.launch.packaging import RECORD_NAME, CodePackage, build_package, extract_script

STRANGE = ['it\'s "quoted".py', "new\nline.txt", "ünïcode–😀.md", "-dash", "a b/$(id);&.py", "back\\slash"]


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    argv = ["git", *identity, "-C", str(folder), *args]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout.strip()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def commit(root: Path, files: dict[str, str]) -> str:
    write(root, files)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "change", "--allow-empty")
    return git(root, "rev-parse", "HEAD")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def repo(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NEMO_SKILLS_DISABLE_UNCOMMITTED_CHANGES_CHECK", raising=False)
    root = weird_tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    commit(root, {"main.py": "print(1)\n", "lib/util.py": "x = 1\n", ".gitignore": "ignored\n*.log\n"})
    return root


@pytest.fixture
def out(weird_tmp_path: Path) -> Path:
    return weird_tmp_path / "out"


def unpacked(package: CodePackage, target: Path) -> Path:
    LocalTunnel().run(extract_script(str(package.path), str(target)))
    return target


def own_names(package: CodePackage) -> set[str]:
    with tarfile.open(package.path) as tar:
        names = set(tar.getnames())
    return {name for name in names if not name.startswith("nemo_skills/")} - {RECORD_NAME}


def record(package: CodePackage) -> dict[str, object]:
    with tarfile.open(package.path) as tar:
        file = tar.extractfile(RECORD_NAME)
        assert file is not None
        return json.loads(file.read())


def test_a_clean_repository_from_a_subfolder(repo: Path, out: Path) -> None:
    write(repo, {"untracked.py": "", "ignored": "", "x.log": ""})
    package = build_package(repo / "lib", out, allow_uncommitted=False)
    assert own_names(package) == {"main.py", "lib/util.py", ".gitignore"}
    assert (package.commit, package.dirty) == (git(repo, "rev-parse", "HEAD"), False)
    assert record(package)["commit"] == package.commit
    assert package.path.name == f"code-{package.digest[:16]}.tar.gz"
    code = unpacked(package, out / "code")
    assert (code / "main.py").read_text() == "print(1)\n"
    # the job's view: nemo_skills comes from the unpacked folder
    argv = [sys.executable, "-c", "import nemo_skills.core.errors as e; print(e.__file__)"]
    seen = subprocess.run(argv, cwd=code, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(seen) == code / "nemo_skills/core/errors.py"


def test_outside_of_a_repository_only_nemo_skills(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    package = build_package(tmp_path, tmp_path / "out", allow_uncommitted=False)
    assert own_names(package) == set()
    assert (package.commit, package.dirty) == (None, False)
    source = Path(nemo_skills.__file__).parent
    with tarfile.open(package.path) as tar:
        names = set(tar.getnames())
    assert "nemo_skills/__init__.py" in names
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)
    code = unpacked(package, tmp_path / "code")
    assert (code / "nemo_skills/core/errors.py").read_bytes() == (source / "core/errors.py").read_bytes()


def test_uncommitted_changes_are_refused_and_listed(repo: Path, out: Path) -> None:
    commit(repo, {f"many/{i:02}.py": "" for i in range(30)})
    write(repo, {"main.py": "print(2)\n", "staged\nname.py": "", "untracked.py": ""})
    git(repo, "add", "staged\nname.py")
    git(repo, "mv", "lib/util.py", "lib/renamed.py")
    with pytest.raises(UserError) as caught:
        build_package(repo, out, allow_uncommitted=False)
    message = str(caught.value)
    assert message.count("\n  ") == 4
    for part in (
        "\n  main.py",
        "\n  lib/util.py",
        "\n  lib/renamed.py",
        "'staged\\nname.py'",
        "--allow_uncommitted",
    ):
        assert part in message
    assert "untracked.py" not in message
    assert not out.exists()
    shutil.rmtree(repo / "many")
    with pytest.raises(UserError, match="and 14 more"):
        build_package(repo, out, allow_uncommitted=False)


@pytest.mark.parametrize("by_variable", [False, True])
def test_the_working_tree_as_it_is(
    repo: Path, out: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    write(repo, {"main.py": "print(2)\n", "new/file.py": "n", "ignored": "secret"})
    (repo / "lib/util.py").unlink()
    if by_variable:
        monkeypatch.setenv("NEMO_SKILLS_DISABLE_UNCOMMITTED_CHANGES_CHECK", "1")
    package = build_package(repo, out, allow_uncommitted=not by_variable)
    assert own_names(package) == {"main.py", "new/file.py", ".gitignore"}
    assert package.dirty
    assert (unpacked(package, out / "code") / "main.py").read_text() == "print(2)\n"
    noted = record(package)
    assert noted["commit"] == git(repo, "rev-parse", "HEAD")
    assert noted["changed"] == ["lib/util.py", "main.py"]
    assert noted["untracked"] == ["new/file.py"]
    assert "+print(2)" in str(noted["diff"])


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    write(root, {"a.py": "a"})
    git(root, "add", "a.py")
    with pytest.raises(UserError, match=r"a\.py"):
        build_package(root, tmp_path / "out", allow_uncommitted=False)
    package = build_package(root, tmp_path / "out", allow_uncommitted=True)
    assert package.commit is None and package.dirty and own_names(package) == {"a.py"}


def test_content_alone_names_the_archive(
    repo: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_package(repo, out, allow_uncommitted=False)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repo), str(clone))
    for path in (clone / "main.py", clone / "lib"):
        os.utime(path, (1, 1))
    monkeypatch.setattr("time.time", lambda: 1e9)
    second = build_package(clone, tmp_path / "out", allow_uncommitted=True)
    assert (first.digest, first.path.name) == (second.digest, second.path.name)
    assert first.path.read_bytes() == second.path.read_bytes()
    commit(repo, {"main.py": "print(3)\n"})
    third = build_package(repo, out, allow_uncommitted=False)
    assert third.digest != first.digest
    assert listing(out) == sorted([first.path.name, third.path.name])


def test_name_mode_kind_and_content_count_and_order_does_not(tmp_path: Path) -> None:
    entries = [Entry("a", b"1", 0o644, 1), Entry("b", b"2", 0o644, 1)]
    digest, path = write_archive(entries, tmp_path)
    content = path.read_bytes()
    path.unlink()
    assert write_archive(entries[::-1], tmp_path) == (digest, path)
    assert path.read_bytes() == content
    others = [
        Entry("a2", b"1", 0o644, 1),
        Entry("a", b"1", 0o755, 1),
        Entry("a", b"3", 0o644, 1),
        Entry("a", b"1", 0o644, link="1"),
    ]
    assert len({digest} | {write_archive([other, entries[1]], tmp_path)[0] for other in others}) == 5


def test_an_existing_archive_is_not_written_again(repo: Path, out: Path) -> None:
    package = build_package(repo, out, allow_uncommitted=False)
    before = package.path.stat()
    assert build_package(repo, out, allow_uncommitted=False) == package
    after = package.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_strange_names_modes_and_links(repo: Path, out: Path) -> None:
    raw = os.fsdecode(b"not-utf8-\xff")
    commit(repo, {name: name for name in STRANGE} | {raw: "raw", "run.sh": "#!/bin/sh\n"})
    (repo / "run.sh").chmod(0o700)
    (repo / "lib/link").symlink_to("../main.py")
    (repo / "dirlink").symlink_to("lib")
    (repo / "dangling").symlink_to("lib/none")
    commit(repo, {})
    code = unpacked(build_package(repo, out, allow_uncommitted=False), out / "code")
    for name in STRANGE:
        assert (code / name).read_text() == name
    assert (code / raw).read_text() == "raw"
    assert (code / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (code / "main.py").stat().st_mode & 0o777 == 0o644
    assert (code / "lib/link").readlink() == Path("../main.py")
    assert (code / "dirlink/util.py").is_file() and (code / "dirlink").is_symlink()
    assert (code / "dangling").is_symlink()


def test_no_link_leads_out_of_the_package(repo: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = repo.parent / "outside"
    write(outside, {"util.py": "SECRET"})
    (repo / "absolute").symlink_to(repo / "main.py")
    (repo / "up").symlink_to("../outside/util.py")
    (repo / "x/y").mkdir(parents=True)
    (repo / "x/y/top").symlink_to("../..")
    (repo / "x/y/sly").symlink_to("top/../outside")
    (repo / "loop").symlink_to("loop")
    commit(repo, {})
    names = own_names(build_package(repo, out, allow_uncommitted=False))
    assert {"x/y/top", "loop"} <= names
    assert not names & {"absolute", "up", "x/y/sly"}
    assert "absolute" in caplog.text and "up" in caplog.text
    # a tracked folder swapped for a link to the outside
    shutil.rmtree(repo / "lib")
    (repo / "lib").symlink_to(outside)
    package = build_package(repo, out, allow_uncommitted=True)
    assert not {name for name in own_names(package) if name.startswith("lib")}


def test_worktrees_nested_repositories_and_submodules(
    repo: Path, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    commit(other, {"o.py": "o"})
    git(repo, "submodule", "add", "-q", str(other), "third party/sub")
    commit(repo, {})
    git(repo, "worktree", "add", "-q", "wt")
    git(repo, "clone", "-q", str(other), str(repo / "nested"))
    package = build_package(repo, out, allow_uncommitted=True)
    assert own_names(package) == {"main.py", "lib/util.py", ".gitignore", ".gitmodules"}
    assert record(package)["submodules"] == ["third party/sub"]
    assert "third party/sub" in caplog.text and "nested/" in caplog.text
    commit(repo / "wt", {"only_here.py": ""})
    package = build_package(repo / "wt", out, allow_uncommitted=False)
    assert "only_here.py" in own_names(package)


def test_archives_are_not_packaged_into_archives(repo: Path) -> None:
    out = repo / "experiments"
    first = build_package(repo, out, allow_uncommitted=True)
    write(repo, {"main.py": "print(9)"})
    second = build_package(repo, out, allow_uncommitted=True)
    assert own_names(first) == own_names(second) == {"main.py", "lib/util.py", ".gitignore"}


@pytest.mark.parametrize("inside", ["nemo_skills", "third party/src/nemo_skills"])
def test_a_repository_that_holds_nemo_skills(
    repo: Path, out: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    write(repo, {f"{inside}/__init__.py": "mine = 1\n", f"{inside}/core.py": ""})
    commit(repo, {})
    monkeypatch.setattr(nemo_skills, "__file__", str(repo / inside / "__init__.py"))
    package = build_package(repo, out, allow_uncommitted=False)
    with tarfile.open(package.path) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    assert sorted(name for name in names if name.endswith("core.py")) == [f"{inside}/core.py"]
    code = unpacked(package, out / "code")
    subprocess.run([sys.executable, "-c", "import nemo_skills as n; n.mine"], cwd=code, check=True)


def test_the_repositorys_own_nemo_skills_wins_with_a_warning(
    repo: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit(repo, {"nemo_skills/__init__.py": "fork = 1\n"})
    code = unpacked(build_package(repo, out, allow_uncommitted=False), out / "code")
    assert listing(code / "nemo_skills") == ["__init__.py"]
    assert "nemo_skills of this repository" in caplog.text


def test_something_else_of_that_name_is_refused(repo: Path, out: Path) -> None:
    commit(repo, {"nemo_skills/notes.txt": ""})
    with pytest.raises(UserError, match="hides the Python package"):
        build_package(repo, out, allow_uncommitted=False)


def test_a_large_package_names_its_largest_files(
    repo: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit(repo, {"model.bin": "x" * 3_000_000, "small.bin": "x" * 2_000_000})
    package = build_package(repo, out, allow_uncommitted=False, size_limit=4_000_000)
    assert package.size > 5_000_000
    [message] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert message.index("3.0 MB  model.bin") < message.index("2.0 MB  small.bin")
    caplog.clear()
    build_package(repo, out, allow_uncommitted=False)
    assert not caplog.records


def test_a_file_that_changes_while_packaged_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    real = Entry.content_hash

    def then_change(entry: Entry) -> str:
        digest = real(entry)
        file.write_text("two")
        return digest

    monkeypatch.setattr(Entry, "content_hash", then_change)
    with pytest.raises(UserError, match="f changed while"):
        write_archive([Entry("f", file, 0o644, 3)], tmp_path / "out")
    assert listing(tmp_path / "out") == []


def test_an_unreadable_repository_is_a_clear_error(
    repo: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / ".git/config").write_text("[broken")
    with pytest.raises(UserError, match="git cannot read the repository"):
        build_package(repo, out, allow_uncommitted=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not installed"):
        build_package(repo, out, allow_uncommitted=False)
    assert build_package(tmp_path, out, allow_uncommitted=False).commit is None


def test_unpacking_twice_and_onto_something_else(repo: Path, out: Path) -> None:
    package = build_package(repo, out, allow_uncommitted=False)
    code = unpacked(package, out / "deep er" / "code")
    (code / "marker").touch()
    assert (unpacked(package, code) / "marker").exists()
    assert listing(code.parent) == ["code"]
    other = out / "other"
    write(other, {"precious": ""})
    with pytest.raises(CommandError, match="holds something else"):
        unpacked(package, other)
    with pytest.raises(CommandError):
        LocalTunnel().run(extract_script(str(out / "none.tar.gz"), str(out / "failed")))
    assert listing(out) == sorted([package.path.name, "deep er", "other"])
