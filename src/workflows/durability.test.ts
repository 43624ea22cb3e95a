/** What outlives a process: timers, claims, upgrades, and several servers on one database. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type Database, openDatabase } from '../database/database.ts';
import { workflowLimits } from '../limits.ts';
import { FakeClock, settle } from '../testing/fake-clock.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import type { Engine, Json, RunView, Step, StepContext, Workflow } from './api.ts';
import { createEngine } from './engine.ts';

let directory: string;
let clock: FakeClock;
let database: Database;
let engines: Engine[];
let log: string[];
let reports: string[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'rouse-durable-'));
  clock = new FakeClock();
  engines = [];
  log = [];
  reports = [];
  database = await openDatabase({ path: join(directory, 'rouse.sqlite'), clock });
});

afterEach(async () => {
  for (const engine of engines) await engine.stop();
  await database.close();
  await rm(directory, { recursive: true });
});

function newEngine(workflows: readonly Workflow[] = [], owner = 'server'): Engine {
  const engine = createEngine({
    database,
    clock,
    random: new SeededRandom(1),
    owner,
    report: (error, where) =>
      reports.push(`${where}: ${error instanceof Error ? error.message : String(error)}`),
  });
  engines.push(engine);
  for (const workflow of workflows) engine.register(workflow);
  return engine;
}

function step(name: string, number: number, run?: (c: StepContext<Json>) => Promise<void>) {
  return {
    name,
    number,
    run: async (context) => {
      log.push(`do ${name}`);
      await run?.(context);
    },
    undo: async () => {
      log.push(`undo ${name}`);
    },
  } satisfies Step<Json>;
}

const hang = () => new Promise<void>(() => undefined);

/** Runs up to a step that hangs, and forgets the engine as a kill does. */
async function killDuring(workflow: Workflow, id = 'r1'): Promise<void> {
  const engine = newEngine([workflow]);
  await engine.start();
  await engine.submit(workflow.kind, 's', null, id);
  await clock.advance(0);
  await stall(engine);
}

/** Its loop stands still, as in a process that is dead or sleeps. */
async function stall(engine: Engine): Promise<void> {
  engines = engines.filter((other) => other !== engine);
  clock.forgetSleepers();
  await settle();
}

test('an interrupted step runs again, and its attempts are counted', async () => {
  await killDuring({ kind: 'k', steps: [step('a', 1), step('b', 2, hang)] });
  const engine = newEngine([{ kind: 'k', steps: [step('a', 1), step('b', 2)] }]);
  await engine.start();
  const run = await engine.finished('r1');
  assert.equal(run.state, 'done');
  assert.deepEqual(log, ['do a', 'do b', 'do b']);
  assert.equal(run.steps[1]?.attempts, 2);
});

test('a step that takes the process down again and again is undone in the end', async () => {
  const deadly = { kind: 'k', steps: [step('a', 1), step('b', 2, hang)] };
  for (let crash = 0; crash <= workflowLimits.crashesMax; crash++) await killDuring(deadly);
  const engine = newEngine([deadly]);
  await engine.start();
  const run = await engine.finished('r1');
  assert.equal(run.state, 'failed');
  assert.match(run.error?.message ?? '', /died 26 times during step 2 "b"/);
  assert.deepEqual(log.slice(-2), ['undo b', 'undo a']);
});

test('an upgrade that renames a step that had begun fails loudly and undoes what it knows', async () => {
  await killDuring({ kind: 'k', steps: [step('a', 1), step('b', 2, hang)] });
  const engine = newEngine([{ kind: 'k', steps: [step('a', 1), step('x', 2), step('b', 2)] }]);
  await engine.start();
  const run = await engine.finished('r1');
  assert.equal(run.state, 'failed');
  assert.match(run.error?.message ?? '', /recorded step 2 "b" where this version has step 2 "x"/);
  assert.deepEqual(log, ['do a', 'do b', 'undo b', 'undo a']);
});

test('a step that this version cannot undo keeps the run in undoing, and says so', async () => {
  await killDuring({ kind: 'k', steps: [step('a', 1), step('b', 2, hang)] });
  const newer = newEngine([{ kind: 'k', steps: [step('a', 1)] }]);
  await newer.start();
  await clock.advance(60_000);
  const stuck = await newer.run('r1');
  assert.equal(stuck?.state, 'undoing');
  assert.match(stuck?.stuck?.message ?? '', /"b" where this version has no step/);
  assert.deepEqual(log, ['do a', 'do b']);
  await newer.stop();
  const older = newEngine([{ kind: 'k', steps: [step('a', 1), step('b', 2)] }]);
  await older.start();
  assert.equal((await older.finished('r1')).state, 'failed');
  assert.deepEqual(log.slice(2), ['undo b', 'undo a']);
});

test('steps that had not begun follow the upgrade', async () => {
  await killDuring({ kind: 'k', steps: [step('a', 1, hang), step('b', 2)] });
  const engine = newEngine([{ kind: 'k', steps: [step('a', 1), step('c', 2), step('d', 3)] }]);
  await engine.start();
  const run = await engine.finished('r1');
  assert.equal(run.state, 'done');
  assert.deepEqual(
    run.steps.map(({ name, state }) => `${name} ${state}`),
    ['a done', 'c done', 'd done'],
  );
});

test('a run of an unknown kind waits, says so, and goes on when the kind is known', async () => {
  await killDuring({ kind: 'k', steps: [step('a', 1, hang)] });
  const engine = newEngine();
  await engine.start();
  await clock.advance(60_000);
  assert.match((await engine.run('r1'))?.stuck?.message ?? '', /is a k, which this version/);
  assert.equal(reports.length, 1);
  engine.register({ kind: 'k', steps: [step('a', 1)] });
  const run = await engine.finished('r1');
  assert.equal(run.state, 'done');
  assert.equal(run.stuck, undefined);
});

test('another server waits until the lease ends, then goes on; the old one cannot commit', async () => {
  const gate = Promise.withResolvers<void>();
  const steps = (name: string, wait?: () => Promise<void>): Workflow => ({
    kind: 'k',
    steps: [
      { ...step('a', 1), run: async () => void log.push(`${name}: a`, String(await wait?.())) },
      { ...step('b', 2), run: async () => void log.push(`${name}: b`) },
    ],
  });
  const first = newEngine([steps('first', () => gate.promise)], 'first');
  await first.start();
  await first.submit('k', 's', null, 'r1');
  await clock.advance(0);
  await stall(first);
  const second = newEngine([steps('second')], 'second');
  await second.start();
  await clock.advance(workflowLimits.leaseMs - workflowLimits.pollMs - 1);
  assert.ok(!log.includes('second: a'));
  await clock.advance(2 * workflowLimits.pollMs);
  const run = await second.finished('r1');
  assert.equal(run.state, 'done');
  gate.resolve();
  await settle();
  assert.ok(!log.includes('first: b'));
  assert.deepEqual(await second.run('r1'), run);
  assert.ok(reports.some((line) => line.includes('has taken over')));
});

test('a cancel given to another server, and an end there, are seen', async () => {
  const untilAborted = ({ signal }: StepContext<Json>) =>
    new Promise<void>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  const workflow = { kind: 'k', steps: [step('a', 1, untilAborted)] };
  const [first, second] = [newEngine([workflow], 'first'), newEngine([workflow], 'second')];
  await first.start();
  await first.submit('k', 's', null, 'r1');
  await clock.advance(0);
  await second.start();
  const seen: RunView[] = [];
  const ended = second.finished('r1').then((run) => seen.push(run));
  await second.cancel('r1');
  await clock.advance(2 * workflowLimits.pollMs);
  await ended;
  assert.equal(seen[0]?.state, 'cancelled');
  assert.deepEqual(log, ['do a', 'undo a']);
});

test('a timer fires once it is due, with its payload, and is gone', async () => {
  const engine = newEngine();
  engine.onTimer('lease/', async (name, payload) => {
    log.push(`${name} ${JSON.stringify(payload)}`);
  });
  await engine.start();
  await engine.setTimer('lease/r1', clock.now() + 86_400_000 * 30, { warn: 1 });
  await engine.setTimer('lease/r2', clock.now() + 1_000, null);
  await engine.setTimer('lease/r2', clock.now() + 5_000, 'moved');
  await engine.setTimer('lease/r3', clock.now() + 2_000, null);
  await engine.clearTimer('lease/r3');
  await engine.clearTimer('lease/r3');
  await clock.advance(4_999);
  assert.deepEqual(log, []);
  await clock.advance(1);
  assert.deepEqual(log, ['lease/r2 "moved"']);
  await clock.jump(86_400_000 * 30);
  assert.deepEqual(log, ['lease/r2 "moved"', 'lease/r1 {"warn":1}']);
  await clock.jump(86_400_000);
  assert.equal(log.length, 2);
});

test('a timer that fell due while nobody ran fires at the start', async () => {
  const first = newEngine();
  await first.start();
  await first.setTimer('a/1', clock.now() + 1_000, null);
  await first.stop();
  await clock.advance(50_000);
  const second = newEngine();
  second.onTimer('a/', async (name) => void log.push(name));
  await second.start();
  await settle();
  assert.deepEqual(log, ['a/1']);
});

test('a timer that was firing when the process died fires again', async () => {
  const first = newEngine();
  first.onTimer('a/', async (name) => {
    log.push(name);
    await hang();
  });
  await first.start();
  await first.setTimer('a/1', clock.now(), null);
  await settle();
  await stall(first);
  const second = newEngine();
  second.onTimer('a/', async (name) => void log.push(name));
  await second.start();
  await settle();
  assert.deepEqual(log, ['a/1', 'a/1']);
});

test('a listener that fails is called again later', async () => {
  let failures = 2;
  const engine = newEngine();
  engine.onTimer('a/', async () => {
    log.push('called');
    if (failures-- > 0) throw new Error('not now');
  });
  await engine.start();
  await engine.setTimer('a/1', clock.now(), null);
  await clock.advance(100_000);
  assert.deepEqual(log, ['called', 'called', 'called']);
  assert.equal(reports.length, 2);
});

test('a timer that its own listener sets anew is kept', async () => {
  const engine = newEngine();
  engine.onTimer('a/', async (name) => {
    log.push(name);
    if (log.length < 3) await engine.setTimer(name, clock.now() + 1_000, null);
  });
  await engine.start();
  await engine.setTimer('a/1', clock.now(), null);
  await clock.advance(10_000);
  assert.deepEqual(log, ['a/1', 'a/1', 'a/1']);
});

test('a timer without a listener waits for one', async () => {
  const engine = newEngine();
  await engine.start();
  await engine.setTimer('a/1', clock.now(), null);
  await clock.advance(1_000);
  engine.onTimer('a/', async (name) => void log.push(name));
  await clock.advance(0);
  assert.deepEqual(log, ['a/1']);
});

test('many timers due at once all fire', async () => {
  const engine = newEngine();
  engine.onTimer('a/', async (name) => {
    await clock.sleep(10);
    log.push(name);
  });
  await engine.start();
  const count = workflowLimits.timersMax * 3;
  for (let n = 0; n < count; n++) await engine.setTimer(`a/${n}`, clock.now() + 500, null);
  await clock.advance(1_000);
  assert.equal(new Set(log).size, count);
  assert.equal(log.length, count);
});
