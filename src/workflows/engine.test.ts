import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type Database, openDatabase } from '../database/database.ts';
import { isRouseError, RouseError } from '../errors.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import type { Engine, Json, RunView, Step, StepContext, Workflow } from './api.ts';
import { createEngine } from './engine.ts';

let directory: string;
let path: string;
let clock: FakeClock;
let database: Database;
let engine: Engine;
let log: string[];
let reports: string[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'rouse-engine-'));
  path = join(directory, 'rouse.sqlite');
  clock = new FakeClock();
  log = [];
  reports = [];
  database = await openDatabase({ path, clock });
  engine = newEngine();
});

afterEach(async () => {
  await engine.stop();
  await database.close();
  await rm(directory, { recursive: true });
});

function newEngine(owner = 'server'): Engine {
  const report = (error: unknown, where: string) => {
    reports.push(`${where}: ${error instanceof Error ? error.message : String(error)}`);
  };
  return createEngine({ database, clock, random: new SeededRandom(1), owner, report });
}

type Behaviour = (context: StepContext<Json>) => Promise<Json | void>;

function step(name: string, behaviour?: Behaviour, extra: Partial<Step<Json>> = {}): Step<Json> {
  return {
    name,
    number: 1,
    run: async (context) => {
      log.push(`do ${name}`);
      return behaviour?.(context);
    },
    undo: async () => {
      log.push(`undo ${name}`);
    },
    ...extra,
  };
}

function workflow(steps: readonly Step<Json>[], extra: Partial<Workflow> = {}): Workflow {
  return { kind: 'test', steps, ...extra };
}

/** A step that waits until it is aborted, and says why it was. */
const untilAborted: Behaviour = ({ signal }) =>
  new Promise((_, reject) => {
    const stop = () => {
      log.push(`aborted: ${String(signal.reason)}`);
      reject(signal.reason);
    };
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop);
  });

const fails =
  (message: string): Behaviour =>
  async () => {
    throw new RouseError('host-unreachable', message);
  };

function states(run: RunView | undefined): string[] {
  return (run?.steps ?? []).map(({ name, state }) => `${name} ${state}`);
}

test('steps run in order, see earlier results, and settle', async () => {
  const seen: Json[] = [];
  engine.register(
    workflow(
      [
        step('a', async () => ({ port: 7 })),
        step('b', async ({ result, input }) => {
          seen.push(result('a') ?? null, input);
          assert.equal(result('b'), undefined);
        }),
      ],
      { settled: async (run) => void log.push(`settled ${run.state}`) },
    ),
  );
  await engine.start();
  const submitted = await engine.submit('test', 's', { x: 1 }, 'r1');
  assert.equal(submitted.state, 'waiting');
  const run = await engine.finished('r1');
  assert.deepEqual(log, ['do a', 'do b', 'settled done']);
  assert.deepEqual(seen, [{ port: 7 }, { x: 1 }]);
  assert.equal(run.state, 'done');
  assert.deepEqual(run.steps[0]?.result, { port: 7 });
  assert.equal(run.steps[1]?.result, null);
  assert.deepEqual(await engine.finished('r1'), run);
  assert.deepEqual(await engine.run('r1'), run);
});

test('the same id answers the same run, another subject does not get it', async () => {
  engine.register(workflow([step('a')]));
  await engine.start();
  await engine.submit('test', 's', 1, 'r1');
  await engine.finished('r1');
  assert.equal((await engine.submit('test', 's', 1, 'r1')).state, 'done');
  assert.deepEqual(log, ['do a']);
  await assert.rejects(engine.submit('test', 'other', 1, 'r1'), (error) =>
    isRouseError(error, 'already-exists'),
  );
});

test('a failed step undoes itself and all before it, in reverse', async () => {
  engine.register(
    workflow([step('a'), step('b', fails('no route')), step('c')], {
      settled: async (run) => void log.push(`settled ${run.state}`),
    }),
  );
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  const run = await engine.finished('r1');
  assert.deepEqual(log, ['do a', 'do b', 'undo b', 'undo a', 'settled failed']);
  assert.equal(run.state, 'failed');
  assert.equal(run.error?.code, 'host-unreachable');
  assert.match(run.error?.message ?? '', /no route/);
  assert.deepEqual(states(run), ['a undone', 'b undone', 'c waiting']);
});

test('errors that a retry may mend are tried again, with growing pauses', async () => {
  let attempts = 0;
  const flaky: Behaviour = async () => {
    attempts += 1;
    if (attempts < 3) throw new RouseError('host-unreachable', `attempt ${attempts}`);
  };
  engine.register(workflow([step('a', flaky, { attemptsMax: 3 })]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  const waiting = await engine.run('r1');
  assert.deepEqual(states(waiting), ['a running']);
  assert.equal(waiting?.steps[0]?.error?.message, 'attempt 1');
  await clock.advance(1_000);
  assert.equal(attempts, 2);
  await clock.advance(1_000);
  assert.equal(attempts, 2);
  await clock.advance(1_000);
  const run = await engine.finished('r1');
  assert.equal(run.state, 'done');
  assert.equal(run.steps[0]?.attempts, 3);
  assert.equal(run.steps[0]?.error, undefined);
});

test('a manager that is away is waited for, beyond the usual attempts', async () => {
  let attempts = 0;
  const away: Behaviour = async () => {
    attempts += 1;
    const code = attempts < 6 ? 'hypervisor-unreachable' : 'hypervisor-error';
    throw new RouseError(code, `attempt ${attempts}`);
  };
  engine.register(workflow([step('a', away, { attemptsMax: 3, awayAttemptsMax: 30 })]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  for (let second = 0; second < 40; second += 1) await clock.advance(1_000);
  assert.equal(attempts, 8, 'any other error has its usual attempts besides');
  assert.equal((await engine.finished('r1')).error?.message, 'attempt 8');
});

test('errors that no retry mends are not tried again', async () => {
  const wrong: Behaviour = async () => {
    throw new RouseError('bad-request', 'no such mode');
  };
  engine.register(workflow([step('a', wrong, { attemptsMax: 5 })]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  assert.equal((await engine.finished('r1')).steps[0]?.attempts, 1);
});

test('an undo that fails is tried until it works, and seen meanwhile', async () => {
  let left = 3;
  const undo = async () => {
    left -= 1;
    if (left > 0) throw new RouseError('busy', 'the host still uses it');
    log.push('undone at last');
  };
  engine.register(workflow([step('a'), step('b', fails('no'), { undo })]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  const stuck = await engine.run('r1');
  assert.equal(stuck?.state, 'undoing');
  assert.equal(stuck?.stuck?.message, 'the host still uses it');
  assert.equal(stuck?.steps[1]?.error?.code, 'busy');
  assert.match(stuck?.error?.message ?? '', /no/);
  await clock.advance(10_000);
  const run = await engine.finished('r1');
  assert.equal(run.state, 'failed');
  assert.equal(run.stuck, undefined);
  assert.deepEqual(log, ['do a', 'do b', 'undone at last', 'undo a']);
  assert.equal(reports.length, 2);
});

test('cancel while a step runs aborts it and undoes', async () => {
  engine.register(workflow([step('a'), step('b', untilAborted), step('c')]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  await engine.cancel('r1');
  await engine.cancel('r1');
  const run = await engine.finished('r1');
  assert.equal(run.state, 'cancelled');
  assert.equal(run.error, undefined);
  assert.deepEqual(log, ['do a', 'do b', 'aborted: cancelled', 'undo b', 'undo a']);
  await engine.cancel('r1');
  assert.equal((await engine.run('r1'))?.state, 'cancelled');
});

test('cancel while waiting ends at once, also behind another run of its subject', async () => {
  engine.register(
    workflow([step('a', untilAborted)], {
      settled: async (run) => void log.push(`settled ${run.id} ${run.state}`),
    }),
  );
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await engine.submit('test', 's', null, 'r2');
  await clock.advance(0);
  await engine.cancel('r2');
  assert.equal((await engine.finished('r2')).state, 'cancelled');
  assert.deepEqual(log, ['do a', 'settled r2 cancelled']);
  assert.equal((await engine.run('r1'))?.state, 'running');
});

test('cancel between two attempts does not wait for the next one', async () => {
  engine.register(workflow([step('a', fails('no'), { attemptsMax: 9 })]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  await engine.cancel('r1');
  assert.equal((await engine.finished('r1')).state, 'cancelled');
  assert.deepEqual(log, ['do a', 'undo a']);
});

test('cancel while it undoes because it failed changes nothing', async () => {
  const undone = Promise.withResolvers<void>();
  engine.register(workflow([step('a', fails('no'), { undo: () => undone.promise })]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  await engine.cancel('r1');
  undone.resolve();
  assert.equal((await engine.finished('r1')).state, 'failed');
});

test('runs of one subject never overlap and keep their order; others run beside them', async () => {
  const gates = new Map<string, () => void>();
  const gate: Behaviour = ({ runId }) =>
    new Promise((resolve) => {
      log.push(`begin ${runId}`);
      gates.set(runId, () => resolve());
    });
  engine.register(workflow([step('a', gate)]));
  await engine.start();
  for (const [id, subject] of [
    ['r1', 's'],
    ['r2', 's'],
    ['r3', 'other'],
  ] as const) {
    await engine.submit('test', subject, null, id);
  }
  await clock.advance(0);
  assert.deepEqual([...gates.keys()], ['r1', 'r3']);
  gates.get('r1')?.();
  await engine.finished('r1');
  await clock.advance(0);
  assert.deepEqual([...gates.keys()], ['r1', 'r3', 'r2']);
  const active = await engine.runs({ active: true });
  assert.deepEqual(
    active.map((run) => run.id),
    ['r2', 'r3'],
  );
  gates.get('r2')?.();
  gates.get('r3')?.();
  await engine.finished('r2');
});

test('stop interrupts without undoing, and the next engine goes on', async () => {
  let blocked = true;
  const sometimes: Behaviour = (context) => (blocked ? untilAborted(context) : Promise.resolve());
  const steps = workflow([step('a'), step('b', sometimes)]);
  engine.register(steps);
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  const waiting = assert.rejects(engine.finished('r1'), (error) =>
    isRouseError(error, 'server-unreachable'),
  );
  await engine.stop();
  await waiting;
  assert.deepEqual(log, ['do a', 'do b', 'aborted: shutdown']);
  blocked = false;
  engine = newEngine();
  engine.register(steps);
  await engine.start();
  const run = await engine.finished('r1');
  assert.equal(run.state, 'done');
  assert.equal(run.steps[1]?.attempts, 2);
  assert.deepEqual(log, ['do a', 'do b', 'aborted: shutdown', 'do b']);
});

test('stop does not wait for ever for a step that does not listen', async () => {
  const never = Promise.withResolvers<void>();
  engine.register(workflow([step('a', () => never.promise)]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  const stopping = engine.stop();
  await clock.advance(10_000);
  await stopping;
  never.resolve();
  await clock.advance(0);
  assert.equal((await engine.run('r1'))?.state, 'running');
});

test('a finished wait can be given up', async () => {
  engine.register(workflow([step('a', untilAborted)]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await assert.rejects(engine.finished('r1', AbortSignal.abort(new Error('enough'))), /enough/);
  const controller = new AbortController();
  const waiting = assert.rejects(engine.finished('r1', controller.signal), /enough/);
  controller.abort(new Error('enough'));
  await waiting;
  await assert.rejects(engine.finished('nobody'), (error) => isRouseError(error, 'not-found'));
});

test('progress is seen at once when asked and published a few times a second', async () => {
  const published: number[] = [];
  const gate = Promise.withResolvers<void>();
  engine.register(
    workflow([
      step('a', async ({ progress }) => {
        for (let done = 1; done <= 100; done++) {
          progress({ done, total: 100, unit: 'steps' });
          if (done % 10 === 0) await clock.sleep(100);
        }
        await gate.promise;
      }),
    ]),
  );
  engine.onChange((run) => {
    const done = run.steps[0]?.progress?.done;
    if (done !== undefined) published.push(done);
  });
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(1_000);
  assert.equal((await engine.run('r1'))?.steps[0]?.progress?.done, 100);
  assert.ok(published.length >= 3 && published.length <= 5, String(published.length));
  gate.resolve();
  assert.equal((await engine.finished('r1')).steps[0]?.progress, undefined);
});

test('listeners hear every change in order; one that throws harms nobody', async () => {
  const heard: string[] = [];
  engine.register(workflow([step('a'), step('b')]));
  engine.onChange(() => {
    throw new Error('listener');
  });
  const off = engine.onChange((run) => heard.push(`${run.state}: ${states(run).join(', ')}`));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await engine.finished('r1');
  assert.deepEqual(heard, [
    'waiting: a waiting, b waiting',
    'running: a running, b waiting',
    'running: a done, b running',
    'done: a done, b done',
  ]);
  off();
  await engine.submit('test', 's', null, 'r2');
  await engine.finished('r2');
  assert.equal(heard.length, 4);
  assert.equal(reports.length, 8);
});

test('settled is tried until it works', async () => {
  let failures = 2;
  engine.register(
    workflow([step('a')], {
      settled: async () => {
        if (failures-- > 0) throw new Error('not yet');
        log.push('settled');
      },
    }),
  );
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  await clock.advance(0);
  assert.match((await engine.run('r1'))?.stuck?.message ?? '', /not yet/);
  await engine.cancel('r1');
  await clock.advance(10_000);
  const run = await engine.finished('r1');
  assert.equal(run.state, 'done');
  assert.deepEqual(log, ['do a', 'settled']);
});

test('what a step records commits together with its end, or makes it fail', async () => {
  const record = async (result: Json, input: Json) => {
    const value = Number(result);
    await database.query.insertInto('counters').values({ name: 'recorded', value }).execute();
    if (input === 'refuse') throw new RouseError('wrong-state', 'refused');
  };
  engine.register(workflow([step('a', async () => 42, { record })]));
  await engine.start();
  await engine.submit('test', 's', 'refuse', 'r1');
  const refused = await engine.finished('r1');
  assert.equal(refused.state, 'failed');
  assert.equal(refused.error?.message, 'refused');
  const rows = () =>
    database.query.selectFrom('counters').selectAll().where('name', '=', 'recorded').execute();
  assert.deepEqual(await rows(), []);
  await engine.submit('test', 's', 'accept', 'r2');
  assert.equal((await engine.finished('r2')).state, 'done');
  assert.equal((await rows())[0]?.value, 42);
});

test('a submission belongs to the transaction around it', async () => {
  engine.register(workflow([step('a')]));
  await engine.start();
  await assert.rejects(
    database.transaction(async () => {
      await engine.submit('test', 's', null, 'r1');
      throw new Error('no');
    }),
  );
  await clock.advance(0);
  assert.equal(await engine.run('r1'), undefined);
  assert.deepEqual(log, []);
});

test('a result too large for the journal fails its step', async () => {
  engine.register(workflow([step('a', async () => 'x'.repeat(300_000))]));
  await engine.start();
  await engine.submit('test', 's', null, 'r1');
  const run = await engine.finished('r1');
  assert.match(run.error?.message ?? '', /300002 characters/);
  assert.deepEqual(log, ['do a', 'undo a']);
});
