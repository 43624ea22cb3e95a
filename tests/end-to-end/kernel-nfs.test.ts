/**
 * The Linux kernel's NFS client, in a guest, against our server: the client that is strictest about
 * attributes, cookies, handles and verifiers, with loads that check what they read.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { knownBytes, sha256Of } from '#lab/known-bytes.ts';
import { startNfsGuest } from '#lab/nfs-guest.ts';
import type { Qemu } from '#lab/qemu.ts';
import { enterWorld, freePort } from '#lab/world.ts';
import { systemClock } from '#src/lib/clock.ts';
import { createNfsServer } from '#src/nfs/server.ts';
import type { NfsServer } from '#src/nfs/server.ts';
import { lateFileSystem, MemoryFileSystem } from '#src/testing/memory-file-system.ts';

const world = await enterWorld();
const disk = knownBytes(7, 6 * 1024 * 1024 + 4321);
const memory = new MemoryFileSystem({ clock: systemClock, capacityBytes: 512 * 1024 * 1024 });
const port = await freePort();
const mountOptions = [
  ...['vers=3', 'nolock', 'tcp', `port=${port}`, `mountport=${port}`, 'mountproto=tcp'],
  ...['addr=10.0.2.2', 'hard', 'timeo=20'],
].join(',');
let server: NfsServer;
let guest: Qemu;

/** Answers of the file system come a macrotask late, so that calls overlap and overtake. */
async function startServer(): Promise<NfsServer> {
  const started = createNfsServer({
    clock: systemClock,
    log: { info: () => undefined, warn: () => undefined },
    listen: { addresses: ['127.0.0.1'], nfsPort: port, mountPort: port, portmap: 'off' },
  });
  await started.start();
  started.addExport({
    id: 1,
    path: '/vault/Recover-p-1',
    secret: Buffer.alloc(32, 9),
    clients: ['127.0.0.1'],
    fileSystem: lateFileSystem(memory),
  });
  return started;
}

function shell(script: string, timeoutMs = 120_000): Promise<string> {
  return guest.serial.shell(script, timeoutMs);
}

before(async () => {
  memory.put('/web01/vda-flat.vmdk', disk);
  server = await startServer();
  guest = await startNfsGuest(world);
  await shell(`mount -t nfs -o ${mountOptions} 10.0.2.2:/vault/Recover-p-1 /tools/mnt`);
});

after(async () => {
  await guest.end();
  await server.close();
  await world.end();
});

test('it reads what is there and writes what we then hold', async () => {
  assert.match(await shell('cat /proc/mounts'), / \/tools\/mnt nfs .*vers=3,.*rsize=1048576/);
  assert.ok((await shell('sha256sum /tools/mnt/web01/vda-flat.vmdk')).startsWith(sha256Of(disk)));
  await shell('cp /tools/usr/bin/fio /tools/mnt/copy && sync');
  const wanted = (await shell('sha256sum /tools/usr/bin/fio')).slice(0, 64);
  await shell('echo 3 >/proc/sys/vm/drop_caches');
  assert.equal((await shell('sha256sum /tools/mnt/copy')).slice(0, 64), wanted);
  await shell('rm /tools/mnt/copy');
});

test('it makes, finds, renames and removes thousands of files', async () => {
  const said = await shell(`
    set -e
    mkdir /tools/mnt/many && cd /tools/mnt/many
    for i in $(seq 2000); do : >file$i; done
    echo 3 >/proc/sys/vm/drop_caches
    ls | wc -l
    for i in $(seq 1 2 2000); do mv file$i moved$i; done
    ls | grep -c moved
    for i in $(seq 2 2 2000); do rm file$i; done
    ls | wc -l
    cd / && rm -r /tools/mnt/many && ls /tools/mnt`);
  assert.deepEqual(said.trim().split('\n'), ['2000', '1000', '1000', 'web01']);
});

test('names, links, modes, times and sizes are as POSIX has them', async () => {
  const long = 'n'.repeat(255);
  const said = await shell(`
    set -e
    mkdir /tools/mnt/posix && cd /tools/mnt/posix
    echo one >a && ln a b && ln -s a c && mkdir d
    stat -c '%h %F' a b d
    readlink c && cat c
    chmod 640 a && touch -d @1000000000 a && stat -c '%a %Y' b
    truncate -s 100000 a && stat -c %s a && head -c 4 a
    exec 3>>a && rm a && echo two >&3 && exec 3>&- && tail -c 4 b
    echo x >'${long}' && cat '${long}' && rm '${long}'
    echo ü >'Ümläut ☃' && cat 'Ümläut ☃'
    ! mkdir d 2>/dev/null && ! rmdir . 2>/dev/null && ! touch '${long}n' 2>/dev/null
    rm -r /tools/mnt/posix && echo gone`);
  assert.deepEqual(said.trim().split('\n'), [
    ...['2 regular file', '2 regular file', '2 directory'],
    ...['a', 'one', '640 1000000000', '100000', 'one', 'two', 'x', 'ü', 'gone'],
  ]);
});

/** A file that fio fills at random, in blocks with checksums, and then reads back and checks. */
function fio(name: string, options: string): Promise<string> {
  const common = '--directory=/mnt --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal';
  return shell(
    `chroot /tools fio --name=${name} ${common} ${options} && rm /tools/mnt/${name}*`,
    240_000,
  );
}

test('fio finds every block as it wrote it', async () => {
  await fio(
    'direct',
    '--rw=randwrite --bs=4k --size=16m --direct=1 --ioengine=libaio --iodepth=16',
  );
  await fio('mixed', '--rw=randrw --bsrange=512-256k --bs_unaligned=1 --size=16m --fsync=64');
  await fio('large', '--rw=write --bs=1m --size=64m --direct=1');
  await fio('shared', '--rw=randwrite --bs=8k --size=4m --numjobs=3 --sync=1');
});

test('stress-ng finds nothing wrong with directories, links and renames', async () => {
  const kinds = [
    'dir',
    'rename',
    'link',
    'dentry',
    'filename',
    'fstat',
    'chmod',
    'seek',
    'getdent',
  ];
  const stressors = kinds.map((kind) => `--${kind} 1`).join(' ');
  const said = await shell(
    'mkdir /tools/mnt/stress && chroot /tools stress-ng --verify --temp-path /mnt/stress ' +
      `--dir-dirs 128 --dentries 128 --timeout 5s --metrics-brief ${stressors} 2>&1`,
    180_000,
  );
  assert.match(said, /successful run completed/);
  assert.doesNotMatch(said, /fail:|error:/);
  await shell('rm -rf /tools/mnt/stress');
});

test('a load goes on without an error when the server is restarted under it', async () => {
  const load = fio(
    'restart',
    '--rw=randwrite --bs=4k --size=24m --direct=1 --iodepth=8 --ioengine=libaio',
  );
  for (let round = 0; round < 3; round++) {
    await systemClock.sleep(1500);
    await server.close();
    server = await startServer();
  }
  await load;
});

test('it says goodbye', async () => {
  await shell('umount /tools/mnt');
  assert.doesNotMatch(guest.serial.text, /ROUSE error|nfs: server .* not responding, timed out/);
});
