/**
 * The engine is killed at every point where that can make a difference: before and after every
 * call to the outside and every commit. A new engine goes on with the reopened database file.
 * Whatever happened, all is done or all is undone, each thing exactly once, and nothing is left.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { type Database, openDatabase } from '#src/database/database.ts';
import { FakeClock, settle } from '#src/testing/fake-clock.ts';
import { SeededRandom } from '#src/testing/seeded-random.ts';
import type { Engine, RunView } from '#src/workflows/api.ts';
import { createEngine } from '#src/workflows/engine.ts';
import { killableClock, killableDatabase, Killer } from './killable.ts';
import {
  always,
  type Faults,
  lookWorkflow,
  openWorkflow,
  things,
  World,
} from './workflow-world.ts';

let directory: string;
let files = 0;

before(async () => {
  // A killed process loses nothing that the kernel has: memory will do, and is quick.
  const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
  directory = await mkdtemp(join(base, 'rouse-kill-'));
  const clock = new FakeClock();
  const database = await openDatabase({ path: join(directory, 'empty.sqlite'), clock });
  await database.close();
});

after(async () => {
  await rm(directory, { recursive: true });
});

interface Scenario {
  readonly seed: number;
  readonly faults?: Faults;
  /** Kill the first process at this point, the second one at the next, ...; 0: let it live. */
  readonly kills: readonly number[];
  /** Somebody cancels when the process reaches this point (of the first process). */
  readonly cancelAt?: number;
}

interface Outcome {
  readonly world: World;
  readonly open: RunView;
  readonly points: number;
  readonly kills: number;
  /** The cancel was acknowledged while something was still to be made. */
  readonly cancelledInTime: boolean;
}

/** One server process: everything that a kill takes away. */
class Process {
  readonly killer: Killer;
  readonly clock: FakeClock;
  readonly #database: Database;
  readonly engine: Engine;

  constructor(database: Database, world: World, clock: FakeClock, killer: Killer, seed: number) {
    this.killer = killer;
    this.clock = clock;
    this.#database = database;
    this.engine = createEngine({
      database: killableDatabase(database, killer),
      clock: killableClock(clock, killer),
      random: new SeededRandom(seed),
      report: () => undefined,
    });
    world.killer = killer;
    world.busy = 0;
    this.engine.register(openWorkflow(world));
    this.engine.register(lookWorkflow(world));
    this.engine.onTimer('test/', async (name) => {
      await killer.point();
      world.fired.push(name);
      await killer.point();
    });
  }

  /** Runs until the work is done; false when it was killed before. */
  async live(work: (engine: Engine) => Promise<void>): Promise<boolean> {
    let done = false;
    let failure: unknown;
    work(this.engine).then(
      () => (done = true),
      (error: unknown) => (failure = error),
    );
    for (let turns = 0; turns < 5_000; turns++) {
      await settle();
      if (this.killer.killed) return false;
      if (failure !== undefined) throw failure;
      if (done) return true;
      await this.clock.advanceToNext();
    }
    throw new Error('it goes on for ever');
  }

  async close(): Promise<void> {
    if (!this.killer.killed) await this.engine.stop();
    await this.#database.close();
  }
}

async function play(scenario: Scenario): Promise<Outcome> {
  const path = join(directory, `${files++}.sqlite`);
  await copyFile(join(directory, 'empty.sqlite'), path);
  const random = new SeededRandom(scenario.seed);
  const world = new World(new Killer(), scenario.faults ?? {});
  let clock = new FakeClock();
  let points = 0;
  let cancelledInTime = false;
  const asked: ((engine: Engine) => Promise<unknown>)[] = [
    (engine) => engine.setTimer('test/late', 0, null),
    (engine) => engine.submit('test.open', 'subject', null, 'open'),
    (engine) => engine.submit('test.look', 'subject', null, 'look'),
  ];
  for (let kills = 0; ; kills++) {
    const killer = new Killer(scenario.kills[kills] ?? 0);
    clock = new FakeClock(clock.now() + random.below(120_000));
    const database = await openDatabase({ path, clock });
    const server = new Process(database, world, clock, killer, scenario.seed + kills);
    if (kills === 0 && scenario.cancelAt !== undefined) {
      killer.onPoint = (point) => {
        if (point !== scenario.cancelAt) return;
        server.engine.cancel('open').then(
          () => (cancelledInTime ||= world.created.length < things.length),
          () => undefined,
        );
      };
    }
    const ended = await server.live(async (engine) => {
      await engine.start();
      // What was acknowledged once is never asked for again.
      for (let ask = asked[0]; ask !== undefined; ask = asked[0]) {
        await ask(engine);
        asked.shift();
      }
      await engine.finished('open');
      await engine.finished('look');
    });
    points += killer.points;
    if (ended) {
      const open = await server.engine.run('open');
      assert.ok(open);
      await checkNothingIsLeft(server, database);
      await server.close();
      return { world, open, points, kills, cancelledInTime };
    }
    await server.close();
  }
}

async function checkNothingIsLeft(server: Process, database: Database): Promise<void> {
  await server.live(() => settle());
  assert.deepEqual(await server.engine.runs({ active: true }), []);
  for (const table of ['claims', 'timers'] as const) {
    const rows = await database.query.selectFrom(table).selectAll().execute();
    assert.deepEqual(rows, [], table);
  }
}

function check({ world, open }: Outcome): void {
  if (open.state === 'done') {
    assert.deepEqual([...world.things], [...things]);
    assert.deepEqual(world.created, [...things]);
    assert.deepEqual(world.removed, []);
  } else {
    assert.deepEqual([...world.things], []);
    assert.deepEqual(world.removed, world.created.toReversed());
    assert.equal(new Set(world.created).size, world.created.length);
  }
  const allOrNothing = open.state === 'done' ? things.length : 0;
  for (const found of world.found) assert.equal(found, allOrNothing);
  assert.ok(world.found.length > 0);
  assert.equal(world.settled.at(-1), open.state);
  assert.ok(world.fired.includes('test/late'));
}

const failing: Faults = {
  createFails: { machine: always },
  removeFails: { datastore: 2, clone: 1 },
};
const flaky: Faults = { createFails: { export: 1 }, answerLost: { datastore: 2 } };

const stories: readonly { name: string; faults: Faults; state: RunView['state'] }[] = [
  { name: 'everything works', faults: {}, state: 'done' },
  { name: 'some calls fail at first', faults: flaky, state: 'done' },
  { name: 'the last step fails, and undoing does at first', faults: failing, state: 'failed' },
];

for (const { name, faults, state } of stories) {
  test(`killed at every point: ${name}`, async () => {
    const whole = await play({ seed: 1, faults, kills: [] });
    check(whole);
    assert.equal(whole.open.state, state);
    assert.ok(whole.points > 25, `only ${whole.points} points`);
    for (let point = 1; point <= whole.points; point++) {
      const outcome = await play({ seed: point, faults, kills: [point] });
      assert.equal(outcome.kills, 1, `point ${point} was not reached`);
      check(outcome);
      assert.equal(outcome.open.state, state, `killed at point ${point}`);
    }
  });
}

test('cancelled at every point: undone, or done if nothing was left to do', async () => {
  const { points } = await play({ seed: 1, kills: [] });
  const states = new Set<string>();
  for (let cancelAt = 1; cancelAt <= points; cancelAt++) {
    const outcome = await play({ seed: cancelAt, kills: [], cancelAt });
    check(outcome);
    states.add(outcome.open.state);
    if (outcome.cancelledInTime) assert.equal(outcome.open.state, 'cancelled', `at ${cancelAt}`);
  }
  assert.deepEqual([...states].sort(), ['cancelled', 'done']);
});

test('cancelled at every point and killed soon after: the wish is not forgotten', async () => {
  const { points } = await play({ seed: 1, kills: [] });
  for (let cancelAt = 1; cancelAt <= points; cancelAt++) {
    for (let later = 1; later <= 4; later++) {
      const outcome = await play({ seed: cancelAt, kills: [cancelAt + later], cancelAt });
      check(outcome);
      if (outcome.cancelledInTime) assert.equal(outcome.open.state, 'cancelled', `at ${cancelAt}`);
    }
  }
});

test('each step fails, each undo fails at first: undone', async () => {
  for (const culprit of things) {
    for (const stubborn of things) {
      const faults = { createFails: { [culprit]: always }, removeFails: { [stubborn]: 3 } };
      const lost = { answerLost: { [culprit]: always }, removeFails: { [stubborn]: 3 } };
      for (const trouble of [faults, lost]) {
        const outcome = await play({ seed: 1, faults: trouble, kills: [] });
        check(outcome);
        assert.equal(outcome.open.state, 'failed');
      }
    }
  }
});

test('killed again and again, with faults and cancels, by seed', async () => {
  const states = new Map<string, number>();
  for (let seed = 1; seed <= 120; seed++) {
    const random = new SeededRandom(seed);
    const some = () => (random.chance(0.4) ? { [random.pick(things)]: random.below(5) } : {});
    const faults = { createFails: some(), answerLost: some(), removeFails: some() };
    const kills = Array.from({ length: random.below(6) }, () => 1 + random.below(30));
    const cancel = random.chance(0.5) ? { cancelAt: 1 + random.below(40) } : {};
    const outcome = await play({ seed, faults, kills, ...cancel });
    check(outcome);
    const { state } = outcome.open;
    states.set(state, (states.get(state) ?? 0) + 1);
    if (outcome.cancelledInTime) assert.notEqual(state, 'done', `seed ${seed}`);
  }
  for (const state of ['done', 'failed', 'cancelled']) assert.ok(states.get(state), state);
});
