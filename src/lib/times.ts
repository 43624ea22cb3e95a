import { RouseError } from '../errors.ts';

/**
 * Times as people write them. Everything is relative to a `nowMs` that is handed in, and in the
 * time zone of the process (TZ), as people at a terminal expect. Only `parseTime` needs
 * chrono-node, which takes 0.1 s to load: it is loaded when an ISO time does not do.
 */
const unitsMs: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 7 * 86_400_000,
};
const unitNames: Readonly<Record<string, string>> = {
  sec: 's',
  secs: 's',
  second: 's',
  seconds: 's',
  min: 'm',
  mins: 'm',
  minute: 'm',
  minutes: 'm',
  hr: 'h',
  hrs: 'h',
  hour: 'h',
  hours: 'h',
  day: 'd',
  days: 'd',
  week: 'w',
  weeks: 'w',
};

/** `5d`, `90m`, `1d 12h`, `2 weeks`, `1.5h` in milliseconds; undefined when it is none. */
export function tryDuration(text: string): number | undefined {
  const part = /\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*(?:,|and\b)?/iy;
  const sign = /^\s*-/.test(text) ? -1 : 1;
  const rest = text.replace(/^\s*[-+]/, '');
  if (rest.trim() === '') return undefined;
  let total = 0;
  while (part.lastIndex < rest.trimEnd().length) {
    const match = part.exec(rest);
    if (match === null) return undefined;
    const word = (match[2] ?? '').toLowerCase();
    const unit = unitsMs[unitNames[word] ?? word];
    if (unit === undefined) return undefined;
    total += Number(match[1]) * unit;
  }
  return sign * Math.round(total);
}

/** The same; throws `bad-request`. `what` is the option or field: `--lease`. */
export function parseDuration(text: string, what: string): number {
  const milliseconds = tryDuration(text);
  if (milliseconds !== undefined) return milliseconds;
  throw new RouseError('bad-request', `${what} "${text}" is not a duration`, {
    advice: 'Write a number and a unit, such as 5d, 12h, 90m or "1d 12h".',
  });
}

const isoTime = /^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?$/i;

/**
 * `yesterday 22:00`, `friday 6pm`, `2026-11-21T22:00:00Z`, `2026-11-21 22:00`, `now`, milliseconds
 * since 1970. A weekday or a time of day without a date is the latest one past with
 * `prefer: 'past'`, the next one with `prefer: 'future'`. A day without a time is its last moment
 * with 'past' ("the last backup of that day") and its first one with 'future'. Throws `bad-request`.
 */
export async function parseTime(
  text: string,
  what: string,
  nowMs: number,
  prefer: 'past' | 'future' = 'past',
): Promise<number> {
  const trimmed = text.trim();
  if (trimmed === 'now') return nowMs;
  if (/^\d{12,14}$/.test(trimmed)) return Number(trimmed);
  if (isoTime.test(trimmed)) {
    if (hasThatDay(trimmed)) {
      // A date alone means that day here, not in Greenwich; ECMA-262 says the latter.
      const dayOnly = trimmed.length === 10;
      const at = Date.parse(dayOnly ? `${trimmed}T00:00` : trimmed.replace(' ', 'T'));
      if (!Number.isNaN(at)) return dayOnly ? momentOfDay(new Date(at), prefer) : at;
    }
  } else {
    const at = await parseWords(trimmed, nowMs, prefer);
    if (at !== undefined) return at;
  }
  throw new RouseError('bad-request', `${what} "${text}" is not a time`, {
    advice: 'Write it as "yesterday 22:00", "2 hours ago", "2026-11-21 22:00" or ISO 8601.',
  });
}

function momentOfDay(date: Date, prefer: 'past' | 'future'): number {
  const end = prefer === 'past';
  return date.setHours(end ? 23 : 0, end ? 59 : 0, end ? 59 : 0, end ? 999 : 0);
}

/** Date.parse takes 31 February for 3 March. */
function hasThatDay(text: string): boolean {
  const [year = 0, month = 0, day = 0] = text.slice(0, 10).split('-').map(Number);
  return new Date(Date.UTC(year, month - 1, day)).getUTCDate() === day;
}

async function parseWords(text: string, nowMs: number, prefer: 'past' | 'future') {
  // Read as the last moment but one day too early: no hour is meant by it, so it is not guessed.
  if (/^last night$/i.test(text)) return undefined;
  const chrono = await import('chrono-node');
  const results = chrono.en.GB.parse(text, new Date(nowMs), {
    forwardDate: prefer === 'future',
  });
  const [result] = results;
  // All words must be understood: "last friday noon-ish in Paris" would be a guess.
  if (result === undefined || results.length !== 1 || result.text.length !== text.length) {
    return undefined;
  }
  const { start } = result;
  // "nov 30" is read as November 2030: a month without a day is too vague to act on.
  if (start.isCertain('month') && !start.isCertain('day')) return undefined;
  const date = start.date();
  const weekdayOnly = start.isCertain('weekday') && !start.isCertain('day');
  const certainDay = start.isCertain('day') || start.isCertain('weekday');
  const dayOnly = start.get('hour') === 12 && !start.isCertain('hour') && certainDay;
  if (dayOnly) date.setTime(momentOfDay(date, prefer));
  const later = date.getTime() > nowMs;
  const today = date.toDateString() === new Date(nowMs).toDateString();
  if (prefer === 'past' && later && weekdayOnly && !(today && dayOnly)) {
    date.setDate(date.getDate() - 7);
  } else if (prefer === 'past' && later && !certainDay) {
    date.setDate(date.getDate() - 1);
  } else if (prefer === 'future' && !later && !certainDay) {
    date.setDate(date.getDate() + 1);
  }
  return date.getTime();
}

/** `2026-11-22 22:05` in local time: sorts, and fits a table. */
export function formatTime(atMs: number): string {
  const date = new Date(atMs);
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** `5 minutes ago`, `in 3 days`, `just now`. */
export function formatRelative(atMs: number, nowMs: number): string {
  const difference = atMs - nowMs;
  const size = Math.abs(difference);
  if (size < 5_000) return 'just now';
  const units = [
    ['second', 1_000, 60],
    ['minute', 60_000, 60],
    ['hour', 3_600_000, 48],
    ['day', 86_400_000, 60],
    ['month', 30.44 * 86_400_000, 24],
  ] as const;
  let words = `${Math.round(size / (365.25 * 86_400_000))} years`;
  for (const [unit, unitMs, most] of units) {
    const count = Math.round(size / unitMs);
    if (count >= most) continue;
    words = `${count} ${unit}${count === 1 ? '' : 's'}`;
    break;
  }
  return difference < 0 ? `${words} ago` : `in ${words}`;
}
