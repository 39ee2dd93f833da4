"""`ns run_cmd` gives a command to every place as it is."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import places
from tests.integration.places import Place

NASTY = (
    *("it's", 'say "hi"', "`id`", "$HOME ${x} $(id) $1", "back\\slash \\n", "two\nlines\n", "\ttab"),
    *("", " ", "a  b", "*", "?", "[a-z]", "{a,b}", "~", "!!", "#no", ";", "&&", "|", ">x", "<x", "%s", "é😀"),
    *("--cluster=x", "-n", "--", "++a=[b]", "a=b", "\\'\"$'"),
)
PROGRAM = "import sys; [print(repr(word)) for word in sys.argv[1:]]"
LINE = r"""cd "$(mktemp -d)" && name='a file'\''s  "name" $HOME' || exit
printf '%s\n' "line 1 \$HOME \"x\" \`id\`" 'line 2
line 3 '"'"' \n' $'line\t4' > "$name" && ls -1 && cat "$name" | tr a-z A-Z
(exit 3) || echo "code $? ${#name}"
for i in 1 2; do echo "$i  $((i * 2))" {a,b} ~+/x | sed "s|$PWD|.|"; done # a comment
awk '{print $1, "%s"}' <<< 'first second'; test -e '=1' || echo 'foo>=1' !! """


@pytest.fixture(params=places.NAMES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with places.place(request.param, request, tmp_path, monkeypatch) as found:
        yield found


def output(place: Place, capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> bytes:
    """Run a command, and return what its log holds."""
    assert place.run_cmd(*words) == 0
    capfdbinary.readouterr()
    assert place.ns("logs", "run_cmd") == 0
    return capfdbinary.readouterr().out


def test_words_arrive_as_they_are(place: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    argv = ["python3", "-c", PROGRAM, *NASTY]
    expected = subprocess.run(argv, capture_output=True, check=True).stdout
    assert expected.count(b"\n") == len(NASTY)
    assert output(place, capfdbinary, *argv) == expected


def test_a_line_of_shell_means_what_bash_says(
    place: Place, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = subprocess.run(["bash", "-c", LINE], capture_output=True, check=True).stdout
    assert expected.count(b"\n") > 8
    assert output(place, capfdbinary, LINE) == expected
