import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Terminal } from '../lib/terminal.ts';
import type { Recovery } from './schema.ts';
import { stepLines } from './steps-text.ts';

// What else a terminal has is not asked here.
const terminal = { width: 80, paint: (_style, text) => text } as Pick<
  Terminal,
  'width' | 'paint'
> as Terminal;

const detail =
  '1 disk in web01: scsi0:0 is scsi0:1; not confirmed: nothing in its guest tells which disks it ' +
  'sees, so look there yourself before you mount anything';
const step = {
  number: 9,
  name: 'Attach',
  state: 'done',
  startedMs: 1,
  endedMs: 2,
  progress: null,
  detail,
  subSteps: [],
} as const;
const recovery = { steps: [step, { ...step, detail: 'short' }] } as unknown as Recovery;

test('a long detail is cut while a recovery is watched, and whole where one is shown', () => {
  const watched = stepLines(recovery, terminal, 3);
  assert.equal(watched.length, 2);
  assert.match(watched[0] ?? '', /…$/);
  const shown = stepLines(recovery, terminal, 3, true);
  for (const line of [...watched, ...shown]) assert.ok(line.length <= 80, line);
  const below = shown.slice(1, -1).map((line) => line.trim());
  assert.equal(below.join(' '), detail);
  assert.match(shown.at(-1) ?? '', /short$/);
});
