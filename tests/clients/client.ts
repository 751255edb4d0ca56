// Compiled against the generated schema.d.ts and run by test_clients.py: what an application does with a TypeScript client.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string> };

type Calendar = components["schemas"]["CalendarRead"];

function check(holds: unknown, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

const client = createClient<paths>({
  baseUrl: process.env["API_URL"]!,
  headers: { Authorization: `Bearer ${process.env["API_KEY"]}` },
});

// Creating: what has a default may be left out.
const feed = await client.POST("/api/v1/calendars", {
  body: { platform: "ics", feed_url: "http://127.0.0.1:9/feed.ics" },
});
check(feed.data?.platform === "ics", "an iCal feed is connected");
const local = await client.POST("/api/v1/calendars", {
  params: { header: { "Idempotency-Key": "the first local calendar" } },
  body: { platform: "local", name: "Lectures", owner_email: "ada@example.com" },
});
check(local.data, "a local calendar is made without timezone and locale");
check(local.data.timezone === "UTC" && local.data.locale === "en", "it has the defaults");

// Updating one field leaves the others as they are.
const hook = await client.POST("/api/v1/webhooks", {
  body: { url: "http://127.0.0.1:9/hook", triggers: ["calendar.events_update"], is_active: false },
});
check(hook.data?.secret, "the secret is shown once");
const patched = await client.PATCH("/api/v1/webhooks/{webhook_id}", {
  params: { path: { webhook_id: hook.data.id } },
  body: { include_events: true },
});
check(patched.data?.include_events && !patched.data.is_active, "include_events alone is changed");
check(patched.data.url === "http://127.0.0.1:9/hook", "the URL stays");

const bot = await client.POST("/api/v1/bots", {
  body: { bot_name: "Notetaker", meeting_url: "https://zoom.us/j/5551112222", join_at: "2031-01-31T09:00:00Z" },
});
check(bot.data?.state === "scheduled", "a bot is scheduled");
const renamed = await client.PATCH("/api/v1/bots/{bot_id}", {
  params: { path: { bot_id: bot.data.id } },
  body: { metadata: { user_id: "42" } },
});
check(renamed.data?.bot_name === "Notetaker", "its name stays");

const day = await client.POST("/api/v1/calendar_events", {
  body: {
    calendar_id: local.data.id,
    name: "A day",
    start_time: "2031-01-31",
    end_time: "2031-02-01",
    is_all_day: true,
  },
});
check(day.data?.is_all_day, "an all-day event is made");
const other = await client.PATCH("/api/v1/calendar_events/{event_id}", {
  params: { path: { event_id: day.data.id } },
  body: { name: "The day" },
});
check(other.data?.name === "The day" && other.data.is_all_day, "its name alone is changed");
check(new Date(other.data.updated_at).getFullYear() > 2000, "times are ISO 8601");

// Lists, page by page.
for (let count = 0; count < 30; count++) {
  await client.POST("/api/v1/calendars", {
    body: { platform: "local", name: `Calendar ${count}`, owner_email: "ada@example.com" },
  });
}
const found: Calendar[] = [];
let cursor: string | null = null;
do {
  const page: { data?: components["schemas"]["PageRead_CalendarRead_"] } = await client.GET("/api/v1/calendars", {
    params: { query: cursor ? { cursor } : {} },
  });
  check(page.data, "a page is given");
  found.push(...page.data.results);
  cursor = page.data.next && new URL(page.data.next).searchParams.get("cursor");
} while (cursor);
check(new Set(found.map((calendar) => calendar.id)).size === 32, "all calendars are listed once");

// Errors are typed.
const wrong = await client.POST("/api/v1/calendars", { body: { platform: "ics", feed_url: "nowhere" } });
check(wrong.error && wrong.response.status === 400, "a bad address is refused");
check("feed_url" in wrong.error, "the field is named");
const missing = await client.GET("/api/v1/calendars/{calendar_id}", {
  params: { path: { calendar_id: "cal_0000000000000000" } },
});
check(missing.error && "error" in missing.error && missing.error.error === "Calendar not found", "404 is typed");
const stranger = createClient<paths>({ baseUrl: process.env["API_URL"]! });
const refused = await stranger.GET("/api/v1/webhooks");
check(refused.error && "detail" in refused.error && refused.error.detail, "401 is typed");
