/**
 * Backups through the stand-in for vCenter (lab/vcenter): full under a lease, then only what changed,
 * each the same as the disk byte for byte; every doubt makes a full one and says why.
 */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { enterWorld } from '#lab/world.ts';
import type { Backup } from '#src/backup/schema.ts';
import type { Saveset } from '#src/vault/api.ts';
import { sparseImage, VsphereBackupWorld } from './vsphere-backup-world.ts';

const MiB = 1 << 20;
const world = await enterWorld({ guests: false });
const { directory } = world;
await mkdir(directory, { recursive: true });
const images = [
  await sparseImage(join(directory, 'a.img'), 64 * MiB),
  await sparseImage(join(directory, 'b.img'), 24 * MiB + 512 * 3),
];
const at = await VsphereBackupWorld.open(
  world,
  [{ name: 'box', disks: images, settings: { nvram: 'box.nvram' } }],
  { nvram: ['box'] },
);
after(async () => {
  await server.stop();
  await at.close();
  await world.end();
});

const server = await at.server();

async function backUp(machine: string, full = false): Promise<{ view: Backup; saveset: Saveset }> {
  const { id } = await server.backups.start({
    kind: 'machine',
    machine,
    hypervisor: undefined,
    full,
    mtree: undefined,
    proxy: undefined,
  });
  const view = await server.ended(id);
  assert.ok(view !== 'died');
  assert.equal(view.state, 'done', JSON.stringify(view.error));
  assert.deepEqual(await at.leftSnapshots(), []);
  return { view, saveset: await at.vault.saveset(view.savesetId ?? '') };
}

test('full, of a machine that is off: both disks, .vmx and .nvram; nothing is left', async () => {
  const { view, saveset } = await backUp('box');
  assert.deepEqual([view.kind, view.fullBecause, view.consistency], ['full', null, 'offline']);
  assert.deepEqual(view.warnings, []);
  assert.deepEqual(await at.hashes(saveset), [await at.hashOf('box'), await at.hashOf('box', 1)]);
  assert.deepEqual(saveset.files.map(({ name }) => name).sort(), ['machine.vmx', 'nvram']);
  assert.ok(saveset.cost.readBytes < 2 * MiB, `holes are not read: ${saveset.cost.readBytes}`);
});

test('incremental: only what changed is read, and the disks are the same', async () => {
  await at.scribble('box', 10 * MiB, 70_000);
  await at.scribble('box', 40 * MiB + 123, 1_000);
  const { view, saveset } = await backUp('box');
  assert.deepEqual([view.kind, view.fullBecause], ['incremental', null]);
  assert.deepEqual(await at.hashes(saveset), [await at.hashOf('box'), await at.hashOf('box', 1)]);
  assert.ok(saveset.cost.readBytes > 70_000, 'it was read');
  assert.ok(saveset.cost.readBytes < MiB / 2, `${saveset.cost.readBytes} bytes were read`);
});
