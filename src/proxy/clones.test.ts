import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../lib/clock.ts';
import { Stable } from '../nfs/file-system.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { backUp, readWhole, vaultWorld } from '../testing/vault-world.ts';
import type { OpenedVault } from '../vault/vault.ts';
import { Clones } from './clones.ts';
import type { JobProgress } from './jobs.ts';

/** Sealing: what was written to a clone becomes a saveset, once. */

const sizeBytes = 64 * 4096;
const cloneId = 'Recover-p1-abc';

async function sealingBench() {
  const world = await vaultWorld();
  const vault = await world.open();
  const base = await backUp(vault, { vda: Buffer.alloc(sizeBytes, 3) });
  const directory = '/clones';
  await world.files.makeDirectory(directory);
  const clones = new Clones({
    around: {
      files: world.files,
      clock: systemClock,
      random: new SeededRandom(5),
      bootId: 'boot-1',
      openDisk: (root) => vault.openDisk(root),
      onDamage: ({ message }) => assert.fail(message),
      tuning: { reserveBytes: 64 * 1024 },
    },
    directory,
    vault,
    log: { error: (_facts, message) => assert.fail(message) },
  });
  await clones.create({ cloneId, mtree: 'main', savesetId: base.id, folder: 'web' });
  return { vault, clones };
}

async function write(clones: Clones, page: number, value: number): Promise<void> {
  const { fileSystem: fs } = clones.shared(cloneId);
  const disk = await fs.lookup(await fs.lookup(fs.root, 'web'), 'vda-flat.vmdk');
  await fs.write(disk, page * 4096, Buffer.alloc(4096, value), Stable.fileSync);
}

async function seal(
  vault: OpenedVault,
  clones: Clones,
  job: string,
  progress: Pick<JobProgress, 'signal' | 'update'> = {
    signal: new AbortController().signal,
    update: () => undefined,
  },
) {
  const writer = await vault.begin('main');
  return clones.seal(cloneId, writer, 1_000, { job }, progress);
}

test('the same writes sealed again answer the same saveset; others make another', async () => {
  const { vault, clones } = await sealingBench();
  await write(clones, 5, 9);
  const first = await seal(vault, clones, 'one');
  assert.equal((await seal(vault, clones, 'two')).id, first.id);
  await clones.closeAll();
  await clones.openAll();
  assert.equal((await seal(vault, clones, 'three')).id, first.id);
  assert.equal((await vault.savesets()).filter(({ kind }) => kind === 'sealed').length, 1);

  await write(clones, 6, 9);
  const second = await seal(vault, clones, 'four');
  assert.notEqual(second.id, first.id);
  const bytes = await readWhole(vault, second.disks[0]?.root ?? assert.fail('no disk'));
  assert.deepEqual([bytes[5 * 4096], bytes[6 * 4096], bytes[7 * 4096]], [9, 9, 3]);

  await write(clones, 6, 3);
  assert.equal((await seal(vault, clones, 'five')).id, first.id);
  await vault.close();
});

test('sealing tells how far it is, and stops when cancelled without a trace', async () => {
  const { vault, clones } = await sealingBench();
  for (const page of [1, 9, 30]) await write(clones, page, 7);
  const abort = new AbortController();
  const told: (readonly [number | undefined, number | undefined])[] = [];
  const cancelled = seal(vault, clones, 'one', {
    signal: abort.signal,
    update: ({ doneBytes, totalBytes }) => {
      told.push([doneBytes, totalBytes]);
      if (told.length === 2) abort.abort(new Error('enough'));
    },
  });
  await assert.rejects(cancelled, /enough/);
  assert.deepEqual(told, [
    [4096, 3 * 4096],
    [2 * 4096, 3 * 4096],
  ]);
  assert.equal((await vault.savesets()).length, 1);
  assert.equal((await seal(vault, clones, 'two')).kind, 'sealed');
  await vault.close();
});
