import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hasCommand, runChecked, runCommand } from './command.ts';

const node = process.execPath;

test('a command answers what it printed, its exit status and its errors', async () => {
  const script = 'process.stdin.pipe(process.stdout); console.error("oh"); process.exitCode = 3';
  const result = await runCommand(node, ['-e', script], { input: 'hello' });
  assert.equal(result.exit, 3);
  assert.equal(result.stdout.toString(), 'hello');
  assert.equal(result.stderr, 'oh');
  await assert.rejects(runChecked(node, ['-e', 'console.error("no"); process.exit(1)']), {
    code: 'io-error',
    message: `${node}: no`,
  });
});

test('a command that is not installed is named, with the package that brings it', async () => {
  await assert.rejects(runCommand('rouse-no-such-program', [], { package: 'some-package' }), {
    code: 'missing-tool',
    advice: 'Install it: apt-get install some-package',
  });
  assert.equal(await hasCommand('rouse-no-such-program'), false);
  assert.equal(await hasCommand(node), true);
});

test('a command is killed when it takes too long, is aborted, or prints too much', async () => {
  const forever = ['-e', 'setInterval(() => undefined, 1000)'];
  await assert.rejects(runCommand(node, forever, { timeoutMs: 200 }), { code: 'time-out' });
  const cancel = new AbortController();
  const running = runCommand(node, forever, { signal: cancel.signal });
  cancel.abort();
  await assert.rejects(running, { code: 'cancelled' });
  await assert.rejects(runCommand(node, forever, { signal: cancel.signal }), {
    code: 'cancelled',
  });
  const loud = ['-e', 'process.stdout.write("x".repeat(1e6)); setInterval(() => 0, 1000)'];
  await assert.rejects(runCommand(node, loud, { outputBytesMax: 1000 }), { code: 'io-error' });
});
