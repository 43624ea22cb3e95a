/** The stand-in's own unit tests, in Go. */
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../processes.ts';
import { goEnvironment } from './build.ts';

test('the parts of the stand-in do what they say', async () => {
  const cwd = join(import.meta.dirname, 'extended');
  await run('go', ['test', '.'], { cwd, env: goEnvironment(), timeoutMs: 600_000 });
});
