/** Backups of machines that are off: their disks must not change while they are read. */
import assert from 'node:assert/strict';
import { appendFile, mkdtemp, rename, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { openDisk } from '../formats/open-disk.ts';
import type { BackupSource } from '../hypervisors/port.ts';
import { fileStamp } from '../lib/file-stamp.ts';
import { vaultWorld } from '../testing/vault-world.ts';
import type { JobSpec } from './port.ts';
import { createRunner } from './runner.ts';

const directory = await mkdtemp(join(tmpdir(), 'rouse-runner-'));
after(() => rm(directory, { recursive: true }));
const path = join(directory, 'disk.raw');

/** A backup of that file; `meanwhile` runs once it is open. */
async function backUp(meanwhile: () => Promise<void>, isFile = true) {
  await writeFile(path, Buffer.alloc(64 * 1024, 7));
  // A second ago, so that writing now cannot leave the same time.
  await utimes(path, 1, 1);
  const world = await vaultWorld();
  const vault = await world.open();
  const stamp = await fileStamp(path);
  const access = { via: 'file' as const, path, format: 'raw' };
  const source: BackupSource = {
    token: 't',
    machine: { id: 'm', name: 'web01' } as BackupSource['machine'],
    consistency: 'offline',
    kind: 'full',
    disks: [
      {
        name: 'vda',
        sizeBytes: 64 * 1024,
        source: path,
        access: isFile && stamp !== undefined ? { ...access, stamp } : access,
      },
    ],
    files: [],
    labels: {},
  };
  const machine = { id: 'm', name: 'web01' };
  const spec: JobSpec = { kind: 'backup', id: 'job', mtree: 'main', machine, source, takenAtMs: 1 };
  const run = createRunner({
    vault,
    openFile: async (file) => {
      const disk = await openDisk(file, { format: 'raw' });
      await meanwhile();
      return disk;
    },
    openNbd: () => assert.fail('no NBD here'),
    openReader: () => assert.fail('no session here'),
    createTarget: () => assert.fail('nothing is restored'),
    sealClone: () => assert.fail('nothing is sealed'),
    mtreeOf: () => assert.fail('there is no clone'),
  });
  const ended = run(spec, { signal: new AbortController().signal, update: () => undefined });
  try {
    return { result: await ended, savesets: (await vault.savesets()).length };
  } catch (error) {
    return { error, savesets: (await vault.savesets()).length };
  } finally {
    await vault.close();
  }
}

test('a disk that nobody touches is backed up', async () => {
  const { result, savesets } = await backUp(async () => undefined);
  assert.equal(result?.kind, 'saveset');
  assert.equal(savesets, 1);
});

test('a disk that is written to meanwhile makes no saveset, and says what to do', async () => {
  const changes = [
    () => writeFile(path, Buffer.alloc(512, 8), { flag: 'r+' }),
    () => appendFile(path, 'x'),
    async () => {
      await writeFile(`${path}.new`, Buffer.alloc(64 * 1024, 7));
      await rename(`${path}.new`, path);
    },
  ];
  for (const change of changes) {
    const { error, savesets } = await backUp(change);
    assert.ok(error instanceof Error);
    assert.match(error.message, /disk vda changed while the machine was backed up as powered off/);
    assert.match((error as Error & { advice: string }).advice, /powered on meanwhile/);
    assert.equal(savesets, 0);
  }
});

test('a disk that vanishes meanwhile is named', async () => {
  const { error, savesets } = await backUp(() => rm(path));
  assert.match(String(error), /disk\.raw: no such file/);
  assert.equal(savesets, 0);
});

test('a block device cannot tell', async () => {
  assert.equal(await fileStamp('/dev/null'), undefined);
  const { savesets } = await backUp(() => appendFile(path, 'x'), false);
  assert.equal(savesets, 1);
});
