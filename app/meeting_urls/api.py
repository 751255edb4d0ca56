"""Meeting URLs API: the links that the extractor sees in a text."""

from fastapi import APIRouter

from app.api.deps import AppState, ProjectId
from app.api.schemas import responses
from app.meeting_links.extract import find_all_links, find_meeting_link
from app.meeting_urls.hosts import meeting_hosts
from app.meeting_urls.schemas import CandidateRead, ParseRequest, ParseResult

router = APIRouter(prefix="/api/v1/meeting_urls", tags=["meeting urls"])


# Not `async`: 100,000 characters take a while, which must not delay other requests.
@router.post("/parse", operation_id="parse_meeting_urls", responses=responses(413, 429))
def parse(state: AppState, _project_id: ProjectId, body: ParseRequest) -> ParseResult:
    """The links in a text, the one that an event would get, and why the others are not meetings.

    The text is read like an event's location, in which a link may lack its `https://`. Nothing is fetched.
    """
    hosts = meeting_hosts(state.settings)
    link = find_meeting_link(location=body.text, hosts=hosts)
    candidates = find_all_links(body.text, hosts=hosts, scheme_less=True)
    return ParseResult(
        meeting_url=link.url if link is not None else None,
        meeting_platform=link.platform if link is not None else None,
        candidates=[
            CandidateRead(
                url=candidate.url,
                unwrapped=candidate.unwrapped_url,
                platform=candidate.link.platform if candidate.link is not None else None,
                reason=candidate.reason,
            )
            for candidate in candidates
        ],
    )
