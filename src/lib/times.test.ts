import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatRelative, formatTime, parseDuration, parseTime, tryDuration } from './times.ts';

process.env['TZ'] = 'UTC';
/** A Sunday. */
const nowMs = Date.parse('2026-11-22T12:00:00Z');

test('durations as people write them', () => {
  const day = 86_400_000;
  const cases: [string, number | undefined][] = [
    ['5d', 5 * day],
    ['90m', 5_400_000],
    ['1d 12h', 1.5 * day],
    ['1d12h', 1.5 * day],
    ['2 weeks', 14 * day],
    ['1 day, 2 hours and 3 min', day + 7_380_000],
    ['1.5h', 5_400_000],
    ['-5d', -5 * day],
    ['0s', 0],
    ['250ms', 250],
    ['5', undefined],
    ['', undefined],
    ['-', undefined],
    ['5x', undefined],
    ['d5', undefined],
    ['5d banana', undefined],
  ];
  for (const [text, ms] of cases) assert.equal(tryDuration(text), ms, text);
  assert.throws(() => parseDuration('soon', '--lease'), {
    code: 'bad-request',
    message: '--lease "soon" is not a duration',
  });
});

test('times in the past, as people write them', async () => {
  const cases: [string, string][] = [
    ['yesterday 22:00', '2026-11-21T22:00:00.000Z'],
    ['22:00', '2026-11-21T22:00:00.000Z'],
    ['08:00', '2026-11-22T08:00:00.000Z'],
    ['friday 6pm', '2026-11-20T18:00:00.000Z'],
    ['sunday 22:00', '2026-11-15T22:00:00.000Z'],
    ['2 hours ago', '2026-11-22T10:00:00.000Z'],
    ['now', '2026-11-22T12:00:00.000Z'],
    ['2026-11-21T22:00:00Z', '2026-11-21T22:00:00.000Z'],
    ['2026-11-21T22:00+02:00', '2026-11-21T20:00:00.000Z'],
    ['2026-11-21 22:00', '2026-11-21T22:00:00.000Z'],
    ['21/11/2026 22:00', '2026-11-21T22:00:00.000Z'],
    [String(nowMs), '2026-11-22T12:00:00.000Z'],
  ];
  for (const [text, iso] of cases) {
    assert.equal(new Date(await parseTime(text, '--at', nowMs)).toISOString(), iso, text);
  }
});

test('a day without a time is its end when looking back, its beginning when planning', async () => {
  const both = async (text: string) => [
    new Date(await parseTime(text, '--at', nowMs, 'past')).toISOString(),
    new Date(await parseTime(text, '--at', nowMs, 'future')).toISOString(),
  ];
  const friday = ['2026-11-20T23:59:59.999Z', '2026-11-27T00:00:00.000Z'];
  assert.deepEqual(await both('friday'), friday);
  const day = ['2026-11-21T23:59:59.999Z', '2026-11-21T00:00:00.000Z'];
  assert.deepEqual(await both('2026-11-21'), day);
  assert.equal((await both('08:00'))[1], '2026-11-23T08:00:00.000Z');
  assert.equal((await both('tomorrow 2am'))[1], '2026-11-23T02:00:00.000Z');
});

test('what is no time, or too vague to act on, is refused', async () => {
  for (const text of [
    '',
    'banana',
    '2026-02-31',
    '2026-13-01',
    '2026-11-21 25:00',
    '5pm maybe',
    'nov 30',
    'last night',
    '2026-11-21T22:00:00Z or so',
  ]) {
    await assert.rejects(parseTime(text, '--at', nowMs), {
      code: 'bad-request',
      message: `--at "${text}" is not a time`,
    });
  }
});

test('times are shown in full and relative to now', () => {
  assert.equal(formatTime(nowMs + 65_000), '2026-11-22 12:01');
  const cases: [number, string][] = [
    [0, 'just now'],
    [-60_000, '1 minute ago'],
    [-59_700, '1 minute ago'],
    [3 * 3_600_000, 'in 3 hours'],
    [-47 * 3_600_000, '47 hours ago'],
    [10 * 86_400_000, 'in 10 days'],
    [-90 * 86_400_000, '3 months ago'],
    [-3 * 365.25 * 86_400_000, '3 years ago'],
  ];
  for (const [difference, text] of cases) {
    assert.equal(formatRelative(nowMs + difference, nowMs), text);
  }
});
