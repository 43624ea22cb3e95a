import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import fc from 'fast-check';
import { type Database, openDatabase } from '../database/database.ts';
import { workflowLimits } from '../limits.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import type { Engine } from './api.ts';
import { createEngine } from './engine.ts';
import { keepPruned, pruneRuns } from './pruning.ts';

/** Which ended runs go, and that all others stay. */

const dayMs = 86_400_000;
const nowDays = 1_000;
let directory: string;
let clock: FakeClock;
let database: Database;
let engine: Engine;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'rouse-prune-'));
  clock = new FakeClock(nowDays * dayMs);
  database = await openDatabase({ path: join(directory, 'rouse.sqlite'), clock });
  engine = createEngine({
    database,
    clock,
    random: new SeededRandom(1),
    report: (error) => assert.fail(String(error)),
  });
});

afterEach(async () => {
  await engine.stop();
  await database.close();
  await rm(directory, { recursive: true });
});

const subjects = ['one', 'two', 'needed'];

/** Rows as the journal writes them; `endedMs` null: it has not ended. */
async function enter(runs: readonly { subject: string; endedMs: number | null }[]): Promise<void> {
  await database.query.deleteFrom('steps').execute();
  await database.query.deleteFrom('runs').execute();
  for (const [index, { subject, endedMs }] of runs.entries()) {
    const id = `run${index}`;
    const state = endedMs === null ? 'waiting' : 'done';
    const rest = { outcome: null, error: null, stuck: null, cancelMs: null, createdMs: 0 };
    const run = { id, kind: 'k', subject, seq: index + 1, state, input: 'null', endedMs } as const;
    await database.query
      .insertInto('runs')
      .values({ ...run, ...rest, version: 1 })
      .execute();
    await database.query
      .insertInto('steps')
      .values({
        ...{ runId: id, position: 0, number: 1, name: 'a', state: 'done', attempts: 1 },
        ...{ failures: 0, crashes: 0, undoAttempts: 0, startedMs: 0, endedMs },
        ...{ result: null, error: null, undoError: null },
      })
      .execute();
  }
}

async function left(): Promise<{ runs: string[]; steps: string[] }> {
  const runs = await database.query.selectFrom('runs').select('id').orderBy('seq').execute();
  const steps = await database.query.selectFrom('steps').select('runId').execute();
  return { runs: runs.map(({ id }) => id), steps: steps.map(({ runId }) => runId) };
}

test('what is young, among the newest, needed or not ended stays; the rest goes', async () => {
  const run = fc.record({
    subject: fc.constantFrom(...subjects),
    endedMs: fc.option(fc.integer({ min: 0, max: nowDays }).map((day) => day * dayMs)),
  });
  const bounds = fc.record({
    runsKeptMin: fc.integer({ min: 0, max: 6 }),
    runsKeptMax: fc.integer({ min: 6, max: 12 }),
    runsKeptMs: fc.integer({ min: 0, max: nowDays }).map((days) => days * dayMs),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(run, { maxLength: 18 }), bounds, async (runs, kept) => {
      await enter(runs);
      const gone = await pruneRuns(database, clock, async (one) => one === 'needed', kept);
      const { runs: ids, steps } = await left();
      assert.equal(ids.length + gone, runs.length);
      assert.deepEqual([...steps].toSorted(), [...ids].toSorted());
      const rows = runs.map((one, index) => ({ ...one, id: `run${index}`, seq: index }));
      const ended = rows.filter(({ endedMs }) => endedMs !== null);
      for (const { id, subject, endedMs } of rows) {
        if (ids.includes(id)) continue;
        assert.notEqual(endedMs, null);
        assert.notEqual(subject, 'needed');
        // Every one that could have gone instead and was younger stayed no longer than this one.
        const isOld = (endedMs ?? 0) < clock.now() - kept.runsKeptMs;
        assert.ok(isOld || ended.length > kept.runsKeptMax, `${id} went too early`);
      }
      const endedLeft = ended.filter(({ id }) => ids.includes(id));
      assert.ok(endedLeft.length >= Math.min(ended.length, kept.runsKeptMin));
      const free = endedLeft.filter(({ subject }) => subject !== 'needed');
      const old = free.filter(({ endedMs }) => (endedMs ?? 0) < clock.now() - kept.runsKeptMs);
      if (endedLeft.length > kept.runsKeptMin) assert.deepEqual(old, []);
      if (endedLeft.length > kept.runsKeptMax) assert.deepEqual(free, []);
    }),
    { numRuns: 150 },
  );
});

test('many pages of runs go, past those that are needed', async () => {
  const count = workflowLimits.prunedAtOnce * 2 + 7;
  const all = Array.from({ length: count }, (_, index) => ({
    subject: index % 2 === 0 ? 'needed' : 'one',
    endedMs: index,
  }));
  await enter(all);
  const bounds = { runsKeptMin: 3, runsKeptMax: count, runsKeptMs: dayMs };
  const gone = await pruneRuns(database, clock, async (one) => one === 'needed', bounds);
  assert.equal(gone, Math.floor(count / 2));
  assert.equal((await left()).runs.length, count - gone);
});

test('the engine prunes by itself, again and again', async () => {
  let times = 0;
  const pruned = Promise.withResolvers<void>();
  await keepPruned(engine, clock, async () => {
    times++;
    if (times === 2) pruned.resolve();
    return 0;
  });
  await engine.start();
  await clock.advance(workflowLimits.pruneFirstMs);
  await clock.advance(workflowLimits.pruneEveryMs);
  await pruned.promise;
  assert.ok(times >= 2);
});
