"""Meeting links, and functions that wrap them."""

import json
from urllib.parse import quote

TID, OID = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
CONTEXT = quote(json.dumps({"Tid": TID, "Oid": OID}, separators=(",", ":")), safe="")
TEAMS = f"https://teams.microsoft.com/l/meetup-join/19%3Ameeting_ABC%40thread.v2/0?context={CONTEXT}"
TEAMS_SHORT = "https://teams.microsoft.com/meet/2345678901234?p=AbCdEf"
ZOOM = "https://us02web.zoom.us/j/81234567890?pwd=AbC.1"
MEET = "https://meet.google.com/abc-defg-hij"


def enc(text: str, times: int = 1) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


def safe_link(url: str) -> str:
    return (
        f"https://eur03.safelinks.protection.outlook.com/?url={enc(url)}&data=05%7C02&sdata=x%3D&reserved=0"
    )
