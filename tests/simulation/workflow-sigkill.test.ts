/** The same as workflow-kill.test.ts with real processes, a real disk and SIGKILL at any moment. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '#src/lib/clock.ts';
import { SeededRandom } from '#src/testing/seeded-random.ts';

const program = join(import.meta.dirname, 'workflow-process.ts');
const things = ['clone', 'export', 'datastore', 'machine', 'power'];

/** Its last line, or undefined when it was killed that long after it had begun. */
async function runFor(
  directory: string,
  failing: string,
  killAfterMs: number | undefined,
): Promise<string | undefined> {
  const child = spawn(process.execPath, [program, directory, failing], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise<void>((resolve) => child.on('close', () => resolve()));
  let output = '';
  for await (const chunk of child.stdout) {
    output += String(chunk);
    if (killAfterMs === undefined || !output.includes('begun')) continue;
    await systemClock.sleep(killAfterMs);
    child.kill('SIGKILL');
  }
  await ended;
  if (child.signalCode === 'SIGKILL') return undefined;
  assert.equal(child.exitCode, 0);
  return output.trim().split('\n').at(-1);
}

for (const [name, failing, state] of [
  ['done', '', 'done'],
  ['undone', 'power', 'failed'],
] as const) {
  test(`killed with SIGKILL again and again, and ${name} once`, { timeout: 300_000 }, async () => {
    const directory = await mkdtemp(join(tmpdir(), 'rouse-sigkill-'));
    try {
      await writeFile(join(directory, 'log'), '');
      const random = new SeededRandom(7);
      let last: string | undefined;
      for (let kills = 0; last === undefined; kills++) {
        // Five kills at most, each within one or two steps; then it may finish.
        last = await runFor(directory, failing, kills < 5 ? random.below(90) : undefined);
      }
      assert.match(last, new RegExp(`^${state} `));
      const made = things.map((thing) => `+${thing}`);
      const unmade = things.toReversed().map((thing) => `-${thing}`);
      const log = (await readFile(join(directory, 'log'), 'utf8')).trim().split('\n');
      assert.deepEqual(log, state === 'done' ? made : [...made, ...unmade]);
    } finally {
      await rm(directory, { recursive: true });
    }
  });
}
