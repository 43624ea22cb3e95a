import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { enterWorld } from '../lab/world.ts';
import { tableOf, verdict } from './figures.ts';
import type { Row } from './figures.ts';
import { describeMachine, machineText } from './machine.ts';
import { measureMounts } from './mounts.ts';
import { measureRecoveries } from './recoveries.ts';
import { measureServing } from './serving.ts';
import { measureTakeIn } from './take-in.ts';

/**
 * Every bar as a ratio to a peer of the same run: interleaved rounds, medians and ranges, pinned
 * cores. Prints a table and writes it, with the machine's description, to benchmarks/results/.
 *
 *   npm run bench                        all of it, five rounds (some twenty minutes)
 *   npm run bench -- serving --rounds 3  one part
 *   npm run bench -- recoveries          own time to power on, memory of 200 idle clones (two minutes)
 *   npm run bench -- take-in --mebibytes 512   with smaller images (2 GiB otherwise, some minutes)
 *   npm run bench -- --quick             a look at everything in about a minute; nothing is written
 *
 * The peers come with scripts/bench-setup; what is missing is left out of the comparison.
 */
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    mebibytes: { type: 'string' },
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    'no-write': { type: 'boolean', default: false },
  },
});
const isQuick = values.quick;
const MiB = 1_048_576;
const rounds = Number(values.rounds ?? (isQuick ? 1 : 5));
const seconds = Number(values.seconds ?? (isQuick ? 1 : 4));
const sizeBytes = Number(values.mebibytes ?? (isQuick ? 128 : 0)) * MiB;
const all = ['serving', 'mounts', 'recoveries', 'take-in'];
const parts = positionals.length === 0 ? all : positionals;
const unknown = parts.find((part) => !all.includes(part));
if (unknown !== undefined) throw new Error(`there is no part ${unknown}: ${all.join(', ')}`);

const world = await enterWorld({ guests: false });
const machine = await describeMachine(world.directory);
console.log(machineText(machine));
const rows: Row[] = [];
if (parts.includes('serving')) {
  console.error('serving');
  rows.push(
    ...(await measureServing(world, {
      rounds,
      seconds,
      sizeBytes: sizeBytes || 512 * MiB,
      only: values.only,
    })),
  );
}
if (parts.includes('mounts')) {
  console.error('mounts');
  const diskBytes = sizeBytes || 512 * MiB;
  rows.push(...(await measureMounts(world, { rounds, seconds, sizeBytes: diskBytes })));
}
if (parts.includes('recoveries')) {
  console.error('recoveries');
  const count = isQuick ? 5 : 20;
  const options = { rounds, recoveries: count, clones: isQuick ? 20 : 200 };
  rows.push(...(await measureRecoveries(world, options)));
}
if (parts.includes('take-in')) {
  console.error('taking in');
  rows.push(
    ...(await measureTakeIn({
      directory: world.directory,
      rounds,
      sizeBytes: sizeBytes || 2048 * MiB,
    })),
  );
}
const table = tableOf(rows);
console.log(`\n${table}`);
const missed = rows.filter((row) => verdict(row) === 'MISSED');
console.log(missed.length === 0 ? '\nNo bar was missed.' : `\n${missed.length} bars were missed.`);

if (!isQuick && !values['no-write']) {
  const folder = new URL('results/', import.meta.url).pathname;
  await mkdir(folder, { recursive: true });
  const date = new Date().toISOString().slice(0, 10);
  const facts = { date, parts, rounds, seconds, machine, rows };
  await writeFile(join(folder, `${date}.json`), `${JSON.stringify(facts, undefined, 2)}\n`);
  const note = `Medians of ${rounds} rounds (least-most), interleaved; a ratio above 1 is ours.`;
  const text = `# ${date}\n\n${machineText(machine)}\n\n${note}\n\n${table}\n`;
  await writeFile(join(folder, `${date}.md`), text);
  console.log(`Written to benchmarks/results/${date}.md and .json.`);
}
await world.end();
