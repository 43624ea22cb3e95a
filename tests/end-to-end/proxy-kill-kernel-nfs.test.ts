/**
 * The Linux kernel's NFS client, in a guest, on a published clone, while the proxy is killed with
 * -9 again and again and `rouse up` starts it anew: a hard mount only waits, what was written is
 * there, and handles of open and removed files go on.
 */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { knownBytes, sha256Of } from '#lab/known-bytes.ts';
import { startNfsGuest } from '#lab/nfs-guest.ts';
import { eventually } from '#lab/processes.ts';
import type { Qemu } from '#lab/qemu.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { enterWorld } from '#lab/world.ts';
import { systemClock } from '#src/lib/clock.ts';
import { logsOf, pidOf } from './rouse-world.ts';

const world = await enterWorld();
await mkdir(world.directory, { recursive: true });
const rouse = new RouseCommand(world, join(world.directory, 'data'));
const content = knownBytes(11, 24 * 1024 * 1024);
const kills = 4;
let guest: Qemu;
let disk: string;

interface Published {
  readonly recovery: string;
  readonly export: { readonly path: string; readonly nfsPort: number; readonly mountPort: number };
  readonly disks: readonly { readonly path: string; readonly sizeBytes: number }[];
}

function shell(script: string, timeoutMs = 180_000): Promise<string> {
  return guest.serial.shell(script, timeoutMs);
}

before(async () => {
  await rouse.up();
  const image = join(world.directory, 'disk.raw');
  await writeFile(image, content);
  await rouse.run('backup', '--file', image, '--name', 'files01');
  const published = await rouse.json<Published>(
    ...['recover', 'files01', '--mode', 'publish', '--client', '127.0.0.1'],
  );
  disk = published.disks[0]?.path ?? '';
  const { path, nfsPort, mountPort } = published.export;
  const options = [
    ...['vers=3', 'nolock', 'tcp', `port=${nfsPort}`, `mountport=${mountPort}`, 'mountproto=tcp'],
    ...['addr=10.0.2.2', 'hard', 'timeo=20'],
  ].join(',');
  guest = await startNfsGuest(world);
  await shell(`mount -t nfs -o ${options} 10.0.2.2:${path} /tools/mnt`);
});

after(async () => {
  await guest.end();
  await rouse.stop();
  await world.end();
});

/** Kills the proxy and returns once another process of it answers. */
async function killProxy(): Promise<void> {
  const pid = await pidOf(rouse, 'proxy');
  process.kill(pid, 'SIGKILL');
  await eventually(
    'the proxy to run again',
    async () => (await pidOf(rouse, 'proxy').catch(() => pid)) !== pid,
    30_000,
    100,
  );
}

test('a verifying load does not notice that the proxy is killed again and again', async () => {
  // Open from before the first kill to after the last: a file that keeps its name, and one that
  // lost it. A line goes to both ten times a second.
  await shell(`
    set -e
    cd /tools/mnt
    exec 7>>kept 8>>removed 9<removed
    rm removed
    cd /
    (
      lines=0
      while [ ! -e /tmp/enough ]; do
        echo line >&7 && echo line >&8 || break
        lines=$((lines + 1))
        usleep 100000
      done
      echo $lines $(wc -l <&9) >/tmp/lines
    ) >/dev/null 2>&1 &`);
  let over = false;
  const load = shell(
    `chroot /tools fio --name=killed --filename=/mnt/${disk} --size=24m --rw=randwrite ` +
      '--bsrange=4k-16k --direct=1 --ioengine=libaio --iodepth=8 --time_based --runtime=14 ' +
      '--verify=crc32c --verify_fatal=1 --verify_backlog=256 --fsync=512 --minimal',
    240_000,
  ).finally(() => {
    over = true;
  });
  let underLoad = 0;
  for (let round = 0; round < kills; round++) {
    await systemClock.sleep(1_000);
    if (!over) underLoad++;
    await killProxy();
  }
  const said = await load;
  assert.equal(underLoad, kills, `the load ended too early\n${logsOf(rouse)}`);
  // fio's terse line: version;fio;name;group;error;...
  assert.equal(said.trim().split('\n').at(-1)?.split(';')[4], '0', said);
});

test('handles from before the kills are good, and data is the same without caches', async () => {
  const said = await shell(`
    touch /tmp/enough
    while [ ! -s /tmp/lines ]; do usleep 50000; done
    echo 3 >/proc/sys/vm/drop_caches
    cat /tmp/lines
    wc -l </tools/mnt/kept`);
  const [written, removed, kept] = said.trim().split(/\s+/).map(Number);
  assert.ok(written !== undefined && written > 0, said);
  assert.deepEqual([removed, kept], [written, written]);
  const first = await shell(`sha256sum /tools/mnt/${disk}`);
  await killProxy();
  await shell('echo 3 >/proc/sys/vm/drop_caches');
  const again = await shell(`sha256sum /tools/mnt/${disk}`);
  assert.equal(again, first);
  assert.notEqual(first.slice(0, 64), sha256Of(content), 'the load wrote nothing');
});

test('the guest saw no error, and lets go of the mount', async () => {
  await shell('umount /tools/mnt');
  assert.doesNotMatch(
    guest.serial.text,
    /ROUSE error|I\/O error|Stale file handle|nfs: server .* not responding, timed out/,
  );
});
