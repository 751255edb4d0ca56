// Receives calbridge's webhooks and keeps a copy of all events in a JSON file. Needs Node.js 18 or newer and no packages.
//
//   export CALBRIDGE_URL=http://localhost:8000 CALBRIDGE_API_KEY=... WEBHOOK_SECRET=...
//   node receiver.mjs
//
// It listens on http://127.0.0.1:8002/webhook (PORT changes the port) and writes receiver.json.

import { createHmac, timingSafeEqual } from "node:crypto";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";

const { CALBRIDGE_URL, CALBRIDGE_API_KEY, WEBHOOK_SECRET, PORT = "8002" } = process.env;
if (!CALBRIDGE_URL || !CALBRIDGE_API_KEY || !WEBHOOK_SECRET) {
  throw new Error("Set CALBRIDGE_URL, CALBRIDGE_API_KEY and WEBHOOK_SECRET.");
}

const MOST_BYTES = 1_000_000; // anybody can send something here, and it is read before its signature is checked
const FILE = "receiver.json";
const EVENTS_CHANGED = new Set(
  ["calendar.events_update", "event.created", "event.updated", "event.deleted", "event.rsvp_update"],
);
const stored = existsSync(FILE)
  ? JSON.parse(readFileSync(FILE, "utf8"))
  : { messages: {}, calendars: {}, events: {}, bots: {} };

function save() {
  writeFileSync(`${FILE}.new`, JSON.stringify(stored));
  renameSync(`${FILE}.new`, FILE); // a process that is killed leaves the old file or the new one
}

function isGenuine(headers, rawBody, secret) {
  const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures } = headers;
  if (!id || !timestamp || !signatures) return false;
  // A recorded request must not be accepted again later.
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) <= 300)) return false;
  const key = Buffer.from(secret, "base64");
  const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(rawBody).digest();
  return signatures.split(" ").some((part) => {
    const given = Buffer.from(part.replace(/^v1,/, ""), "base64");
    return given.length === expected.length && timingSafeEqual(given, expected);
  });
}

async function receive(request, response) {
  if (request.method !== "POST" || request.url !== "/webhook") return response.writeHead(404).end();
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MOST_BYTES) return response.writeHead(413, { connection: "close" }).end();
    chunks.push(chunk);
  }
  const rawBody = Buffer.concat(chunks);
  if (!isGenuine(request.headers, rawBody, WEBHOOK_SECRET)) return response.writeHead(401).end();
  // Store the message and answer; the work is done afterwards. A repeated delivery has the same id.
  stored.messages[request.headers["webhook-id"]] = JSON.parse(rawBody);
  save();
  response.writeHead(204).end();
  work();
}

let working = false;

// Handles stored messages one after the other, and tries again while calbridge cannot be reached.
async function work() {
  if (working) return;
  working = true;
  try {
    let id;
    while ((id = Object.keys(stored.messages)[0]) !== undefined) {
      await handle(stored.messages[id]);
      delete stored.messages[id];
      save();
    }
  } catch (error) {
    console.warn("Will be tried again in 5 s:", error);
    setTimeout(work, 5000);
  } finally {
    working = false;
  }
}

// Asks the API for what changed: messages may come twice, late, and in another order.
async function handle(message) {
  const { trigger, data, calendar_id: calendarId, bot_id: botId } = message;
  console.log(trigger, JSON.stringify(data));
  if (data.test) return; // POST /api/v1/webhooks/{id}/test: its ids belong to no object
  if (EVENTS_CHANGED.has(trigger)) {
    await saveEvents(calendarId);
  } else if (trigger === "calendar.state_change") {
    const calendar = await get(`/calendars/${calendarId}`);
    if (calendar) stored.calendars[calendarId] = { ...stored.calendars[calendarId], state: calendar.state };
  } else if (trigger === "bot.state_change") {
    stored.bots[botId] = (await get(`/bots/${botId}`))?.state ?? "deleted";
  }
}

// Saves all events that changed since the cursor, which is the largest `updated_at` seen so far.
async function saveEvents(calendarId) {
  const query = new URLSearchParams({ calendar_id: calendarId, ordering: "updated_at" });
  const cursor = stored.calendars[calendarId]?.cursor;
  if (cursor) query.set("updated_after", cursor);
  let page = await get(`/calendar_events?${query}`);
  while (page) {
    for (const event of page.results) {
      if (event.is_deleted) delete stored.events[event.id];
      else stored.events[event.id] = event;
      stored.calendars[calendarId] = { ...stored.calendars[calendarId], cursor: event.updated_at };
    }
    save();
    page = page.next && (await get(page.next));
  }
}

// The response's JSON; null for 404.
async function get(url) {
  const response = await fetch(url.startsWith("/") ? `${CALBRIDGE_URL}/api/v1${url}` : url, {
    headers: { Authorization: `Token ${CALBRIDGE_API_KEY}` },
  });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${url}: ${response.status} ${await response.text()}`);
  return response.json();
}

createServer((request, response) => {
  receive(request, response).catch(() => response.destroy()); // the sender hung up, or the disk is full
}).listen(Number(PORT), "127.0.0.1");
work();
