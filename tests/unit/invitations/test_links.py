"""Tokens of RSVP links: what they bind, and that keys may rotate."""

import hashlib
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.fernet import Fernet
from itsdangerous import URLSafeSerializer

from app.invitations.links import RsvpTokens, Subject

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
BOB = Subject("cal_1", "uid-1", "20261124T090000Z", "Bob+é@example.org")


def test_a_token_reads_back_as_what_was_signed():
    tokens = RsvpTokens([NEW])
    assert tokens.read(tokens.sign(BOB)) == BOB


def test_a_link_has_the_token_and_the_action():
    tokens = RsvpTokens([NEW])
    links = tokens.links(BOB, "https://cal.example")
    assert [parse_qs(urlsplit(link).query)["action"] for link in links] == [
        ["accepted"],
        ["tentative"],
        ["declined"],
    ]
    for link in links:
        assert link.startswith("https://cal.example/rsvp/?")
        assert tokens.read(parse_qs(urlsplit(link).query)["token"][0]) == BOB


def test_old_links_live_on_when_the_keys_rotate():
    old_link = RsvpTokens([OLD]).sign(BOB)
    rotated = RsvpTokens([NEW, OLD])
    assert rotated.read(old_link) == BOB
    assert RsvpTokens([NEW]).read(rotated.sign(BOB)) == BOB
    assert RsvpTokens([NEW]).read(old_link) is None


@pytest.mark.parametrize("token", ["", ".", "x", "a" * 3000, "é", "\x00", "WyJhIl0.AAAA", "a.b.c"])
def test_garbage_reads_as_nothing(token):
    assert RsvpTokens([NEW]).read(token) is None


def test_every_changed_character_breaks_a_token():
    tokens = RsvpTokens([NEW])
    token = tokens.sign(BOB)
    for place in range(len(token) - 1):  # the last one has bits that stand for nothing
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        assert tokens.read(changed) is None, place


def test_the_encryption_key_itself_does_not_sign():
    signer = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    serializer = URLSafeSerializer(NEW, salt="rsvp-v1", signer_kwargs=signer)
    assert RsvpTokens([NEW]).read(str(serializer.dumps(list(BOB)))) is None


def test_keys_are_not_shown():
    assert NEW not in repr(vars(RsvpTokens([NEW])).keys()) + repr(RsvpTokens([NEW]))
