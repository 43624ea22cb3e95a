import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import * as path from 'node:path';
import { test } from 'node:test';
import { SecretFiles } from './secret-files.ts';

test('a secret is kept for its own user alone, replaced as a whole, and removed', async () => {
  const place = await mkdtemp(path.join(tmpdir(), 'rouse-secrets-'));
  try {
    const directory = path.join(place, 'secrets');
    const secrets = new SecretFiles(directory);
    await secrets.put('one', 'first');
    await secrets.put('one', 'second ü\n');
    assert.equal(await secrets.get('one'), 'second ü\n');
    assert.equal((await stat(directory)).mode & 0o777, 0o700);
    assert.equal((await stat(path.join(directory, 'one'))).mode & 0o777, 0o600);
    assert.deepEqual(await readdir(directory), ['one']);
    await secrets.remove('one');
    await secrets.remove('one');
    await assert.rejects(secrets.get('one'), { code: 'not-found' });
    await assert.rejects(secrets.put('../other', 'x'), { code: 'internal' });
  } finally {
    await rm(place, { recursive: true });
  }
});
