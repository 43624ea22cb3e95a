/**
 * A clone, its disk and its plain files, under the Linux kernel's NFS client: loads that check what
 * they read, over restarts of server and clone.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { knownBytes, sha256Of } from '#lab/known-bytes.ts';
import { startNfsGuest } from '#lab/nfs-guest.ts';
import type { Qemu } from '#lab/qemu.ts';
import { enterWorld, freePort } from '#lab/world.ts';
import {
  createClone,
  openClone,
  type Clone,
  type CloneSurroundings,
} from '#src/datastore/clone.ts';
import { systemClock } from '#src/lib/clock.ts';
import { nodeFiles } from '#src/lib/node-files.ts';
import { systemRandom } from '#src/lib/random.ts';
import { createNfsServer, type NfsServer } from '#src/nfs/server.ts';
import { MemoryVaultDisk } from '#src/testing/memory-vault-disk.ts';

const world = await enterWorld();
const content = knownBytes(7, 32 * 1024 * 1024);
const port = await freePort();
const mountOptions = [
  ...['vers=3', 'nolock', 'tcp', `port=${port}`, `mountport=${port}`, 'mountproto=tcp'],
  ...['addr=10.0.2.2', 'hard', 'timeo=20'],
].join(',');
const damages: string[] = [];
const around: CloneSurroundings = {
  files: nodeFiles,
  clock: systemClock,
  random: systemRandom,
  bootId: 'boot-1',
  openDisk: async () =>
    new MemoryVaultDisk(content.length, (target, offset) => {
      target.set(content.subarray(offset, offset + target.length));
    }),
  onDamage: ({ message }) => damages.push(message),
  tuning: { garbageBytesMin: 64 * 1024 * 1024 },
};
const clones = `${world.directory}/clones`;
const cloneId = 'Recover-p-1';
let clone: Clone;
let server: NfsServer;
let guest: Qemu;

async function start(): Promise<void> {
  clone = await openClone(around, clones, cloneId);
  server = createNfsServer({
    clock: systemClock,
    log: { info: () => undefined, warn: () => undefined },
    listen: { addresses: ['127.0.0.1'], nfsPort: port, mountPort: port, portmap: 'off' },
  });
  await server.start();
  server.addExport({
    id: 1,
    path: '/vault/Recover-p-1',
    secret: clone.handleSecret,
    clients: ['127.0.0.1'],
    fileSystem: clone.fileSystem(),
  });
}

async function stop(): Promise<void> {
  await server.close();
  await clone.close();
}

function shell(script: string, timeoutMs = 180_000): Promise<string> {
  return guest.serial.shell(script, timeoutMs);
}

before(async () => {
  const root = { hash: 'a'.repeat(64), depth: 1, sizeBytes: content.length };
  await createClone(around, clones, {
    cloneId,
    mtree: 'vault',
    savesetId: 's1',
    folder: 'web01',
    disks: [{ name: 'vda', root }],
    files: [{ name: 'domain.xml', bytes: Buffer.from('<domain/>\n') }],
  });
  await start();
  guest = await startNfsGuest(world);
  await shell(`mount -t nfs -o ${mountOptions} 10.0.2.2:/vault/Recover-p-1 /tools/mnt`);
});

after(async () => {
  await guest.end();
  await stop();
  await world.end();
});

test('the disk reads as the saveset', async () => {
  const wanted = sha256Of(content);
  assert.equal((await shell('sha256sum /tools/mnt/web01/vda-flat.vmdk')).slice(0, 64), wanted);
  assert.equal(await shell('cat /tools/mnt/web01/domain.xml'), '<domain/>\n');
});

/** fio fills a file at random, in blocks with checksums, then reads it back and checks it. */
function fio(name: string, where: string, options: string): Promise<string> {
  const common = '--verify=crc32c --verify_fatal=1 --do_verify=1 --minimal';
  return shell(`chroot /tools fio --name=${name} ${where} ${common} ${options}`, 240_000);
}

const onDisk = '--filename=/mnt/web01/vda-flat.vmdk --size=32m';

test('fio finds every block of the disk as it wrote it', async () => {
  const direct = '--direct=1 --ioengine=libaio';
  await fio('random', onDisk, `--rw=randwrite --bs=4k ${direct} --iodepth=32`);
  await fio('odd', onDisk, '--rw=randwrite --bsrange=512-64k --bs_unaligned=1 --fsync=64');
  await fio('sync', onDisk, '--rw=randwrite --bs=4k --io_size=4m --sync=1');
  await fio('large', onDisk, `--rw=write --bs=1m ${direct}`);
});

test('fio finds every block of plain files as it wrote it', async () => {
  await fio(
    'plain',
    '--directory=/mnt',
    '--rw=randwrite --bsrange=512-64k --bs_unaligned=1 --size=8m',
  );
  await fio('synced', '--directory=/mnt', '--rw=randwrite --bs=8k --size=1m --numjobs=2 --sync=1');
  await shell('rm /tools/mnt/plain* /tools/mnt/synced*');
});

test('stress-ng finds nothing wrong with directories, links and renames', async () => {
  const kinds = ['dir', 'rename', 'link', 'symlink', 'dentry', 'filename', 'chmod', 'getdent'];
  const stressors = kinds.map((kind) => `--${kind} 1`).join(' ');
  const said = await shell(
    'mkdir /tools/mnt/stress && chroot /tools stress-ng --verify --temp-path /mnt/stress ' +
      `--dir-dirs 128 --dentries 128 --timeout 5s --metrics-brief ${stressors} 2>&1`,
    240_000,
  );
  assert.match(said, /successful run completed/);
  assert.doesNotMatch(said, /fail:|error:/);
  await shell('rm -rf /tools/mnt/stress');
});

test('a load goes on without an error when server and clone are restarted under it', async () => {
  const load = fio(
    'restart',
    onDisk,
    '--rw=randwrite --bs=4k --direct=1 --iodepth=8 --ioengine=libaio --loops=2',
  );
  for (let round = 0; round < 3; round++) {
    await systemClock.sleep(1500);
    await stop();
    await start();
  }
  await load;
});

test('nothing was damaged, and the guest was never left without an answer', async () => {
  await shell('umount /tools/mnt');
  assert.deepEqual(damages, []);
  assert.doesNotMatch(guest.serial.text, /ROUSE error|nfs: server .* not responding, timed out/);
});
