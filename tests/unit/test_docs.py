"""The documentation names what there is: settings, endpoints, commands, metrics, files and headings."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from fastapi.openapi.utils import get_openapi
from typer.main import get_command

from app.cli.main import cli
from app.main import create_app
from app.settings import Settings
from app.webhooks.payloads import canonical_json
from app.webhooks.signing import body_signature
from tests.conftest import FERNET_KEY

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()
EXAMPLE = ROOT / ".env.example"


def every_page(test: Any) -> Any:
    return pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])(test)


def rows(text: str) -> dict[str, str]:
    """The variables of a page's tables, with the cell beside the name."""
    return dict(re.findall(r"^\| `([A-Z][A-Z_]+)` \| (.*?) \|", text, re.MULTILINE))


# -- settings -----------------------------------------------------------------------------------------------


def as_text(default: object) -> str:
    if isinstance(default, frozenset):
        return ",".join(sorted(default))
    if isinstance(default, tuple):
        return ",".join(f"{value:g}" for value in default)
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def in_order(cell: str, default: object) -> str:
    """The cell as `as_text` writes it: the order of a set does not matter."""
    return ",".join(sorted(cell.split(","))) if isinstance(default, frozenset) else cell


def own_settings() -> dict[str, str]:
    return rows(SETTINGS_PAGE.partition("## Read by others")[0])


def test_the_page_of_settings_names_exactly_the_settings() -> None:
    assert set(own_settings()) == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_the_page_of_settings_has_the_default(name: str) -> None:
    default, cell = Settings.model_fields[name].default, own_settings()[name.upper()]
    if default is None or default == frozenset():
        assert cell == "none" or cell.startswith(("bundled by", "made by", "set by", "on when")), cell
    else:
        assert in_order(cell.strip("`"), default) == as_text(default)


def others() -> set[str]:
    return set(rows(SETTINGS_PAGE.partition("## Read by others")[2]))


def test_variables_of_compose_are_on_the_page() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text()))
    assert used <= set(own_settings()) | others()
    assert others() <= used | {"PROMETHEUS_MULTIPROC_DIR"}


@pytest.mark.parametrize("with_comments", [False, True], ids=["as_it_is", "with_everything_switched_on"])
def test_the_example_of_an_environment_can_be_loaded(clean_environment, tmp_path, with_comments) -> None:
    text = EXAMPLE.read_text()
    if with_comments:
        text = re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE)
        text = text.replace("CREDENTIALS_ENCRYPTION_KEYS=", f"CREDENTIALS_ENCRYPTION_KEYS={FERNET_KEY}")
    (tmp_path / ".env").write_text(text)
    names = set(dotenv_values(tmp_path / ".env"))
    assert names <= {name.upper() for name in Settings.model_fields} | others()
    settings = Settings()
    assert settings.app_url == "https://calendars.example.org"
    assert settings.push_enabled
    # A key or a password that everybody knows must not be in it.
    assert not dotenv_values(EXAMPLE)["CREDENTIALS_ENCRYPTION_KEYS"]
    assert not dotenv_values(EXAMPLE)["POSTGRES_PASSWORD"]
    if with_comments:
        assert settings.environment == "production"
        assert settings.smtp_sender == ("calendars@example.org", "Calendars")
        assert settings.webhook_allowed_hosts == {"app.internal"}
        assert settings.required_fernet_keys() == [FERNET_KEY]


# -- links --------------------------------------------------------------------------------------------------


def headings(text: str) -> list[str]:
    """The headings of a page, without those inside code blocks."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(text)}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"(?:\]\(|<img src=\")([^)\s\"]+)[)\"]", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text())
            waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert set(PAGES) <= reached


@every_page
def test_paths_of_the_code_exist(page: Path) -> None:
    named = re.findall(r"`((?:app|bench|docs|migrations|tests|workers)/[\w/.-]+)`", page.read_text())
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []


# -- endpoints and commands ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def statuses() -> dict[tuple[str, str], set[int]]:
    """The documented statuses by (method, path) of every endpoint, with a parameter as {}."""
    settings = Settings(
        database_url="postgresql://x@/x", redis_url="redis://x", credentials_encryption_keys=FERNET_KEY
    )
    app = create_app(settings)
    document = get_openapi(title="all", version="1", routes=app.routes)
    # The public document drops the 422 that FastAPI adds by itself: such a request is 400 here.
    return {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path)): {int(status) for status in operation["responses"]}
        - {422}
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


@pytest.fixture(scope="module")
def operations(statuses: dict[tuple[str, str], set[int]]) -> set[tuple[str, str]]:
    """(method, path) of every endpoint, with a parameter as {}."""
    return set(statuses)


# What a path may begin with; others are those of providers, Messages, or the reader's own application.
_PREFIXES = ("/api/v1/", "/rsvp/", "/oauth/", "/notifications/", "/healthz", "/readyz", "/metrics")
# An id is written as {id}, cal_..., $CALENDAR; a JavaScript or shell expression may contain blanks and quotes.
_PARAMETER = re.compile(
    r"\{[^{}/]*\}|\$\{?[A-Z_]+\}?|\b(?:cal|evt|bot|webhook|dlv)_(?:\.\.\.|x\b|(?=\w*[A-Z0-9])\w+)"
)


def known(path: str, operations: set[tuple[str, str]], method: str | None = None) -> bool:
    path = _PARAMETER.sub("{}", re.split(r"[?#\s\"'`<]", path)[0].rstrip(".,:;)"))
    for candidate in (path, f"/api/v1{path}"):
        for known_method, template in operations:
            if method in (None, known_method):
                pattern = re.escape(template).replace(r"\{\}", r"(\{\}|[\w.-]+)")
                if re.fullmatch(pattern, candidate):
                    return True
    return False


@every_page
def test_endpoints_exist(page: Path, operations: set[tuple[str, str]]) -> None:
    text = page.read_text()
    checked = 0
    # curl's method: -X POST, or POST where data are sent.
    for command in re.findall(r"curl (?:[^\n]*\\\n)*[^\n]*", text):
        hosts = r"https?://(?:localhost:8000|[a-z.]*example\.(?:com|org))"
        url = next(iter(re.findall(hosts + r"(/[^\s'\"]*)", command)), None)
        if url is None:
            continue
        method = (
            re.findall(r"-X ([A-Z]+)", command) or ["POST" if re.search(r"\s-d\s", command) else "GET"]
        )[0]
        assert known(url, operations, method), (method, url)
        checked += 1
    for method, path in re.findall(r"\b(GET|POST|PATCH|PUT|DELETE) (/[^\s`]*)", text):
        if path.startswith(("/bots", "/calendars", "/calendar_events", "/webhooks", "/oauth/s", *_PREFIXES)):
            assert known(path, operations, method), (method, path)
            checked += 1
    for path in re.findall(
        r"(?<![\w.}])(/(?:api/v1|rsvp|oauth|notifications|healthz|readyz|metrics)\b[^\s`]*)", text
    ):
        if path.rstrip("/.,") not in {"/api/v1", "/oauth"} and not path.startswith(("/oauth2", "/api/v1.0")):
            assert known(path, operations), path
            checked += 1
    if str(page.relative_to(ROOT)) in {"README.md", "docs/webhooks.md", "docs/bots.md", "docs/guide.md"}:
        assert checked >= 3


def test_endpoints_that_do_not_exist_are_found(operations: set[tuple[str, str]]) -> None:
    assert known("/api/v1/calendars/cal_x/sync", operations, "POST")
    assert known("/webhooks/{id}/deliveries?status=failed", operations, "GET")
    assert not known("/api/v1/calendars/cal_x/sync", operations, "GET")
    assert not known("/api/v1/calenders", operations)  # codespell:ignore


def command_names() -> set[str]:
    root: Any = get_command(cli)
    names = set()
    for name, command in root.commands.items():
        names |= {name} | {f"{name} {below}" for below in getattr(command, "commands", {})}
    return names


@every_page
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    code = "\n".join(
        re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
    names = command_names()
    for first, second in re.findall(
        r"(?:^|(?<=[\s/]))(?<!-U )(?<!-d )(?:calbridge|compose run --rm api|compose exec api calbridge) ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?",
        code,
        re.MULTILINE,
    ):
        assert f"{first} {second}" in names or first in names, (first, second)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^|(?<=\s))make ([a-z-]+)", code, re.MULTILINE):
        assert target in targets, target


def test_the_pages_name_the_metrics_that_there_are() -> None:
    source = "".join(file.read_text() for file in ROOT.glob("app/**/*.py"))
    made = set(re.findall(r'"(calbridge_\w+)"', source))
    assert len(made) > 20
    text = "".join(page.read_text() for page in PAGES)
    # Histograms are read by the names of their parts.
    named = {re.sub(r"_(count|bucket|sum)$", "", name) for name in re.findall(r"\bcalbridge_\w+", text)}
    assert named == made


def test_every_metric_is_documented() -> None:
    source = "\n".join(file.read_text() for file in ROOT.glob("app/**/*.py"))
    docs = "\n".join(file.read_text() for file in ROOT.glob("docs/*.md"))
    made = set(re.findall(r'"(calbridge_[a-z_]+)"', source))
    assert len(made) > 20
    assert {name for name in made if name not in docs} == set()


# -- quoted code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/webhooks.md"])
@pytest.mark.parametrize(("language", "file"), [("python", "receiver.py"), ("js", "receiver.mjs")])
def test_quoted_receivers_are_those_that_are_tested(page: str, language: str, file: str) -> None:
    quoted = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    source = (ROOT / "docs" / file).read_text()
    if page == "docs/webhooks.md":
        assert quoted
    for block in quoted:
        for part in block.split("# ...\n"):
            assert part.strip() in source


@every_page
def test_commands_have_no_comments_beside_them(page: Path) -> None:
    """zsh, the shell of macOS, passes them on as arguments when they are pasted."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        shell = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"^.*(?:^|\s)#\s.*$", shell, re.MULTILINE) == []


@every_page
def test_json_is_json(page: Path) -> None:
    for block in re.findall(r"^```json\n(\{.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        json.loads(block)


# -- docs/reference -----------------------------------------------------------------------------------------

REFERENCE = ROOT / "docs" / "reference"
REFERENCE_PAGES = sorted(REFERENCE.glob("*.md"))
HTTP_API = (REFERENCE / "http-api.md").read_text()
# Statuses that mean the same for every call: the table of errors explains them once.
_EVERYWHERE = {400, 401, 404, 409, 413, 429, 503}
# Every fault of a request can have these two, so OpenAPI does not list them.
_UNLISTED = {405, 500}


def section(text: str, heading: str) -> str:
    """The part of a page between a heading and the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}$\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def endpoint_rows() -> list[tuple[str, str, set[int]]]:
    """(method, path, statuses) of each row in the tables of endpoints."""
    found = re.findall(r"^\| `([A-Z]+) (/[^`]*)` \| ([\d, ]+) \|", HTTP_API, re.MULTILINE)
    return [
        (method, re.sub(r"\{.*?\}", "{}", path), {int(one) for one in listed.split(",")})
        for method, path, listed in found
    ]


def test_the_reference_has_exactly_the_endpoints(statuses: dict[tuple[str, str], set[int]]) -> None:
    listed = [(method, path) for method, path, _ in endpoint_rows()]
    assert sorted(listed) == sorted(statuses)


def test_the_reference_has_the_statuses_of_each_endpoint(statuses: dict[tuple[str, str], set[int]]) -> None:
    for method, path, listed in endpoint_rows():
        documented = statuses[method, path]
        assert listed <= documented, (method, path)
        assert documented - _EVERYWHERE <= listed, (method, path)


def test_the_reference_explains_every_error_status(statuses: dict[tuple[str, str], set[int]]) -> None:
    explained = re.findall(r"^\| (\d{3}) \|", section(HTTP_API, "Errors"), re.MULTILINE)
    used = {status for documented in statuses.values() for status in documented if status >= 400}
    assert {int(status) for status in explained} == used | _UNLISTED


# Codes that no calendar shows: of base classes, of push channels, and of syncs that were put off or repeated.
_NOT_SHOWN = {
    "budget_spent", "channel_exists", "channel_gone", "channel_opening", "client_held", "client_misconfigured",
    "connection_lost", "credentials_gone", "credentials_revoked", "cursor_expired", "no_tokens", "not_asked",
    "notification_address_refused", "provider_error", "push_refused", "transient",
}  # fmt: skip


def test_the_reference_has_the_codes_of_sync_failures() -> None:
    source = "".join(file.read_text() for file in ROOT.glob("app/**/*.py"))
    raised = set(re.findall(r"\bcode(?: = |=)\"([a-z_]+)\"", source))
    assert len(raised) > 30
    table = re.findall(r"^\| (`.*?) \|", section(HTTP_API, "Sync failure"), re.MULTILINE)
    listed = set(re.findall(r"`([a-z_]+)`", "".join(table))) - {"code"}
    assert raised - _NOT_SHOWN <= listed
    assert {code for code in listed if f'"{code}"' not in source} == set()


@pytest.mark.parametrize("page", REFERENCE_PAGES, ids=[page.name for page in REFERENCE_PAGES])
def test_each_section_of_the_reference_can_be_cited(page: Path) -> None:
    found = headings(page.read_text())
    assert len(found) == len(set(found))
    assert len(anchors(page.read_text())) == len(found)


def cited_sections(text: str) -> list[tuple[str, str]]:
    """(page, section or anchor, empty for the whole page) of what a text cites below docs/reference/."""
    # A citation may go on in the next line, in a comment too.
    joined = re.sub(r"\n[ \t]*(?:# )?", " ", text)
    found = re.findall(r"docs/reference/([\w-]+\.md)(?:#([\w-]+)|,? \"([^\"]{1,80})\")?", joined)
    return [(page, anchor or name) for page, anchor, name in found]


def is_section(page: str, name: str) -> bool:
    if not (REFERENCE / page).is_file():
        return False
    text = (REFERENCE / page).read_text()
    return not name or name in headings(text) or name in anchors(text)


def test_code_cites_sections_that_exist() -> None:
    files = [
        file
        for folder in ("app", "workers", "tests", "migrations")
        for file in ROOT.glob(f"{folder}/**/*.py")
    ]
    cited = {
        (str(file.relative_to(ROOT)), page, name)
        for file in files
        if file != Path(__file__)
        for page, name in cited_sections(file.read_text())
    }
    assert [one for one in sorted(cited) if not is_section(*one[1:])] == []


def test_a_section_that_does_not_exist_is_found() -> None:
    text = """\"\"\"Google's token endpoint (docs/reference/google.md, "Token
    endpoint"; docs/reference/google.md#sync-tokens).\"\"\"
    # docs/reference/google.md
    # docs/reference/google.md, "No such thing"; docs/reference/yahoo.md
    """
    assert [is_section(*one) for one in cited_sections(text)] == [True, True, True, False, False]


@every_page
def test_settings_that_pages_name_exist(page: Path) -> None:
    known = {name.upper() for name in Settings.model_fields} | others()
    families = {name.partition("_")[0] for name in known}
    named = re.findall(r"`([A-Z]+_[A-Z_]+[A-Z])`", page.read_text())
    assert {name for name in named if name.partition("_")[0] in families} <= known


def test_the_example_of_a_signature_is_right() -> None:
    text = section((REFERENCE / "attendee.md").read_text(), "Webhook signatures")
    secret, signature = re.findall(r"`([\w+/]{43}=)`", text)
    body = re.findall(r"^```\n(.*)\n```", text, re.MULTILINE)[0].encode()
    assert body_signature(secret, body) == signature
    assert canonical_json(json.loads(body)) == body


# -- docstrings ---------------------------------------------------------------------------------------------


def test_first_lines_of_docstrings_have_at_most_100_characters() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    long = []
    for path in sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("workers/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            first = (isinstance(node, documented) and ast.get_docstring(node)) or ""
            if len(first.partition("\n")[0]) > 100:
                long.append(f"{path.relative_to(ROOT)}: {first.partition(chr(10))[0]}")
    assert long == []
