"""The file of tokens: what it may hold, whom it knows, and how its changes are taken up."""

import hashlib
import hmac
import logging
import os
import string
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens.errors import ServerStartError
from pathlens.gateway.tokens import TokenFile

SECRET = "correct-horse-battery-staple"  # noqa: S105 - of the tests alone
OTHER = "0123456789abcdef0123456789abcdef"
# What the gateway promises, and a margin for a busy machine.
TAKEN_UP_SECONDS = 1.0

names = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=8)
secrets = st.text(string.ascii_letters + string.digits + "-._~+/", min_size=16, max_size=40).filter(
    lambda text: not text.startswith("sha256=")
)


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], TokenFile]:
    def written(text: str) -> TokenFile:
        (tmp_path / "tokens").write_text(text, encoding="utf-8")
        return TokenFile(tmp_path / "tokens")

    return written


def test_a_token_belongs_to_its_name(write: Callable[[str], TokenFile]) -> None:
    tokens = write(f"shop:{SECRET}\nlab:{OTHER}\n")
    assert (tokens.holder(SECRET), tokens.holder(OTHER)) == ("shop", "lab")


@pytest.mark.parametrize("digest", [sha256(SECRET), sha256(SECRET).upper()])
def test_a_token_may_be_known_by_its_hash_alone(digest: str, write: Callable[[str], TokenFile]) -> None:
    assert write(f"shop:sha256={digest}").holder(SECRET) == "shop"


def test_a_hash_is_not_the_token(write: Callable[[str], TokenFile]) -> None:
    tokens = write(f"shop:sha256={sha256(SECRET)}")
    assert tokens.holder(sha256(SECRET)) is None
    assert tokens.holder(f"sha256={sha256(SECRET)}") is None


@pytest.mark.parametrize(
    "guess", ["", SECRET[:-1], f"{SECRET}x", SECRET.upper(), f"shop:{SECRET}", f" {SECRET}", "ä", "\udcff", "x" * 10**5]
)
def test_what_is_no_token_belongs_to_nobody(guess: str, write: Callable[[str], TokenFile]) -> None:
    assert write(f"shop:{SECRET}").holder(guess) is None


def test_a_name_may_have_several_tokens_at_once(write: Callable[[str], TokenFile]) -> None:
    tokens = write(f"shop:{SECRET}\nshop:{OTHER}\nlab:{SECRET}2")
    assert tokens.holder(SECRET) == tokens.holder(OTHER) == "shop"
    assert tokens.names == ("shop", "lab")


def test_comments_blank_lines_and_foreign_line_ends_are_left_out(write: Callable[[str], TokenFile]) -> None:
    assert write(f"\ufeff# the shop\r\n\r\n  shop:{SECRET}  \r\n  # the end").names == ("shop",)


@given(entries=st.dictionaries(secrets, st.tuples(names, st.booleans()), min_size=1, max_size=6), stranger=secrets)
@settings(max_examples=60)
def test_every_token_of_a_file_and_no_other_is_known(
    entries: dict[str, tuple[str, bool]], stranger: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-tokens"
    path.write_text(
        "\n".join(
            f"{name}:sha256={sha256(secret)}" if hashed else f"{name}:{secret}"
            for secret, (name, hashed) in entries.items()
        )
    )
    tokens = TokenFile(path)
    assert {secret: tokens.holder(secret) for secret in entries} == {
        secret: name for secret, (name, _) in entries.items()
    }
    assert (tokens.holder(stranger) is None) is (stranger not in entries)


def test_every_token_is_compared_wherever_the_right_one_stands(write: Callable[[str], TokenFile]) -> None:
    tokens = write(f"first:{SECRET}\n" + "".join(f"x{number}:{OTHER}{number}\n" for number in range(9)))

    def comparisons(guess: str) -> int:
        seen = []

        def watch(_frame: object, event: str, called: Any) -> None:
            if event == "c_call" and called is hmac.compare_digest:
                seen.append(called)

        sys.setprofile(watch)
        try:
            tokens.holder(guess)
        finally:
            sys.setprofile(None)
        return len(seen)

    assert {comparisons(guess) for guess in (SECRET, f"{OTHER}8", "stranger")} == {10}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no token"),
        ("# nobody\n", "holds no token"),
        (f"shop:{SECRET}\n{SECRET}", "line 2 does not begin with a name"),
        (f":{SECRET}", "line 1 does not begin with a name"),
        (f"the shop:{SECRET}", "line 1 does not begin with a name"),
        ("shop:", "line 1 has no token"),
        (f"shop: {SECRET}", "line 1 has no token"),
        (f"shop:{SECRET} # old", "line 1 has no token"),
        ("shop:motörhead-is-a-band", "line 1 has no token"),
        ("shop:sha256=abc", "line 1 has no 64 hexadecimal digits"),
        (f"shop:sha256={'x' * 64}", "line 1 has no 64 hexadecimal digits"),
        (f"shop:{SECRET}\nlab:{SECRET}", "line 2 holds a token that an earlier line holds"),
        (f"shop:{SECRET}\nlab:sha256={sha256(SECRET)}", "line 2 holds a token that an earlier line holds"),
    ],
)
def test_a_broken_file_is_refused_by_its_line_without_quoting_it(
    text: str, complaint: str, write: Callable[[str], TokenFile]
) -> None:
    with pytest.raises(ServerStartError) as caught:
        write(text)
    assert caught.value.reason == "TOKENS_INVALID"
    assert complaint in caught.value.message
    assert SECRET not in caught.value.message
    assert "motör" not in caught.value.message


def test_bytes_that_are_no_text_are_refused_without_quoting_them(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(f"shop:{SECRET}".encode() + b"\xff")
    with pytest.raises(ServerStartError, match="byte 33 is not UTF-8") as caught:
        TokenFile(tmp_path / "tokens")
    assert SECRET not in caught.value.message
    assert caught.value.__suppress_context__


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"nowhere cannot be read \(No such file"):
        TokenFile(tmp_path / "nowhere")


def test_a_token_short_enough_to_guess_is_warned_of(
    write: Callable[[str], TokenFile], caplog: pytest.LogCaptureFixture
) -> None:
    assert write("shop:tiny").holder("tiny") == "shop"
    assert "line 1 is short" in caplog.text
    assert "tiny" not in caplog.text.replace(str(write), "")


def known_within(tokens: TokenFile, token: str, name: str | None) -> bool:
    deadline = time.monotonic() + TAKEN_UP_SECONDS
    while time.monotonic() < deadline:
        if tokens.holder(token) == name:
            return True
        time.sleep(0.02)
    return False


def test_a_changed_file_is_taken_up_within_a_second(write: Callable[[str], TokenFile], tmp_path: Path) -> None:
    tokens = write(f"shop:{SECRET}")
    assert tokens.holder(SECRET) == "shop"
    with tokens.following():
        (tmp_path / "tokens").write_text(f"shop:{OTHER}")
        assert known_within(tokens, OTHER, "shop")
    assert tokens.holder(SECRET) is None


def test_a_file_that_cannot_be_read_to_its_end_holds_nobody_up(
    write: Callable[[str], TokenFile], tmp_path: Path
) -> None:
    tokens, path = write(f"shop:{SECRET}"), tmp_path / "tokens"
    path.unlink()
    os.mkfifo(path)
    with tokens.following():
        # The thread has opened the pipe by then, and waits for somebody who writes.
        time.sleep(TAKEN_UP_SECONDS)
        holders: list[str | None] = []
        asking = threading.Thread(target=lambda: holders.append(tokens.holder(SECRET)), daemon=True)
        asking.start()
        asking.join(TAKEN_UP_SECONDS)
        held_up = asking.is_alive()
        with path.open("w") as pipe:
            pipe.write(f"shop:{OTHER}")
        assert (held_up, holders) == (False, ["shop"])
        assert known_within(tokens, OTHER, "shop")
        path.unlink()


def test_following_ends_with_its_context(write: Callable[[str], TokenFile]) -> None:
    before = set(threading.enumerate())
    with write(f"shop:{SECRET}").following():
        (thread,) = set(threading.enumerate()) - before
    thread.join(TAKEN_UP_SECONDS)
    assert not thread.is_alive()


@pytest.mark.parametrize("damage", ["", f"lab:{OTHER}\nbroken", None])
def test_a_broken_file_keeps_the_tokens_and_is_logged_once_without_them(
    damage: str | None, write: Callable[[str], TokenFile], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = write(f"shop:{SECRET}")
    if damage is None:
        (tmp_path / "tokens").unlink()
    else:
        (tmp_path / "tokens").write_text(damage)
    with tokens.following():
        assert not known_within(tokens, OTHER, "lab")
    assert tokens.holder(SECRET) == "shop"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "Going on with the tokens read before" in record.getMessage()
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text


def test_a_token_and_its_hash_are_in_no_representation(write: Callable[[str], TokenFile]) -> None:
    tokens = write(f"shop:{SECRET}")
    shown = repr(tokens) + repr(vars(tokens)) + repr(tokens._tokens.current())
    assert "shop" in shown
    assert SECRET not in shown
    assert repr(hashlib.sha256(SECRET.encode()).digest()) not in shown
