/**
 * A server in miniature, to be killed with SIGKILL: one run of five steps whose things are lines
 * of a log. `node workflow-process.ts DIRECTORY [FAILING STEP]`; says `begun` once the run is
 * durable, and ends with its state.
 */
import * as fs from 'node:fs';
import { join } from 'node:path';
import { openDatabase } from '#src/database/database.ts';
import { RouseError } from '#src/errors.ts';
import { systemClock } from '#src/lib/clock.ts';
import { systemRandom } from '#src/lib/random.ts';
import type { Json, Step } from '#src/workflows/api.ts';
import { createEngine } from '#src/workflows/engine.ts';

const [directory = '', failing = ''] = process.argv.slice(2);
const things = ['clone', 'export', 'datastore', 'machine', 'power'];

/** One write is one call to the kernel: a kill comes before it or after it. */
function write(line: string): void {
  fs.appendFileSync(join(directory, 'log'), line);
}

function exists(name: string): boolean {
  const lines = fs.readFileSync(join(directory, 'log'), 'utf8').split('\n');
  return lines.lastIndexOf(`+${name}`) > lines.lastIndexOf(`-${name}`);
}

/** The log shows it when a thing is made twice. */
function create(name: string): void {
  if (!exists(name)) write(`+${name}\n`);
}

function remove(name: string): void {
  if (exists(name)) write(`-${name}\n`);
}

function step(name: string, index: number): Step<Json> {
  return {
    number: index + 1,
    name,
    run: async ({ signal }) => {
      await systemClock.sleep(15, signal);
      create(name);
      await systemClock.sleep(15, signal);
      if (name === failing) throw new RouseError('host-unreachable', `${name} fails`);
    },
    undo: async ({ signal }) => {
      await systemClock.sleep(15, signal);
      remove(name);
      await systemClock.sleep(15, signal);
    },
  };
}

const database = await openDatabase({
  path: join(directory, 'rouse.sqlite'),
  clock: systemClock,
});
const engine = createEngine({
  database,
  clock: systemClock,
  random: systemRandom,
  report: (error, where) => console.error(where, error),
});
engine.register({ kind: 'test.open', steps: things.map(step) });
await engine.start();
await engine.submit('test.open', 'subject', null, 'run');
console.log('begun');
const run = await engine.finished('run');
await engine.stop();
await database.close();
console.log(`${run.state} ${JSON.stringify(run.steps.map(({ attempts }) => attempts))}`);
