/**
 * The lab's guests themselves: what they say can only be trusted as proof of a recovery if it is
 * true here, and if it is wrong when the disk is.
 */
import assert from 'node:assert/strict';
import { mkdir, open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { bootSectorCount, buildBootSector, buildGuest, Heartbeats } from '#lab/guest.ts';
import { Qemu } from '#lab/qemu.ts';
import { enterWorld } from '#lab/world.ts';

const world = await enterWorld();
after(() => world.end());
const bootMs = 90_000;

async function machine(name: string, disk: string): Promise<Qemu> {
  const directory = join(world.directory, name);
  await mkdir(directory, { recursive: true });
  return new Qemu({ processes: world.processes, directory, disks: [disk] });
}

test('a guest boots, beats, knows its file, obeys and goes on where it was', async () => {
  const guest = await buildGuest({ directory: world.directory, name: 'web01' });
  const first = await machine('first', guest.disk);
  const { serial } = first;
  const beats = new Heartbeats(serial);
  await serial.waitFor(/ROUSE boot name=web01 /, bootMs);
  await serial.waitFor(/ROUSE fsck clean/, bootMs);
  const known = await serial.waitFor(/ROUSE known (\w+)/, bootMs);
  assert.equal(known[1], guest.knownSha256);
  const seen = await beats.next(bootMs, 3);

  assert.equal(await serial.command('hash'), guest.knownSha256);
  await serial.command('write 2');
  assert.ok(Number(await serial.command('churn 2')) > 0, 'it wrote and compared');
  assert.equal(await serial.command('check'), 'clean');
  assert.match(await serial.shell('cat /proc/mounts'), /\/dev\/vda2 \/ ext4 rw/);
  await assert.rejects(serial.shell('ls /nothing-here'), /No such file/);

  const picture = join(world.directory, 'screen.png');
  await first.screenshot(picture);
  assert.equal((await readFile(picture)).toString('latin1', 1, 4), 'PNG');
  assert.ok((await stat(picture)).size > 1000, 'there is something on the screen');

  await first.pressPowerButton();
  assert.equal(await first.off(30_000), 0);
  await serial.waitFor(/ROUSE stopped/, 1000);
  assert.doesNotMatch(serial.text, /ROUSE error|ROUSE fsck errors/);
  await first.end();

  const second = await machine('second', guest.disk);
  await second.serial.waitFor(/ROUSE boots 2/, bootMs);
  const base = await second.serial.waitFor(/ROUSE heartbeat-base (\d+)/, bootMs);
  assert.ok(Number(base[1]) >= seen, 'no beat that was said is missing on the disk');
  await second.end();
});

test('a guest whose plug was pulled while it wrote comes back clean', async () => {
  const guest = await buildGuest({ directory: world.directory, name: 'plug', heartbeatMs: 200 });
  const first = await machine('plug-1', guest.disk);
  const said = await new Heartbeats(first.serial).next(bootMs, 3);
  first.serial.command('churn 60', 90_000).catch(() => undefined);
  await new Heartbeats(first.serial).next(bootMs, 4);
  await first.end();

  const second = await machine('plug-2', guest.disk);
  await second.serial.waitFor(/ROUSE fsck clean/, bootMs);
  const base = await second.serial.waitFor(/ROUSE heartbeat-base (\d+)/, bootMs);
  assert.ok(Number(base[1]) >= said + 4);
  await second.end();
});

test('a guest on a damaged disk says so', async () => {
  const guest = await buildGuest({ directory: world.directory, name: 'bad', knownMiB: 3 });
  const disk = await open(guest.disk, 'r+');
  const contents = await disk.readFile();
  // The known file starts with this run of bytes, somewhere on the ext4 partition.
  const { knownBytes } = await import('#lab/known-bytes.ts');
  const at = contents.indexOf(knownBytes(1, 4096));
  assert.ok(at > 0, 'the known file is on the disk');
  await disk.write(Buffer.from([contents[at + 100]! ^ 1]), 0, 1, at + 100);
  // The first group descriptor of ext4 follows its superblock, one block of 1 or 4 KiB on.
  const descriptors =
    24 * 1024 * 1024 + (contents[24 * 1024 * 1024 + 1024 + 24] === 0 ? 2048 : 4096);
  await disk.write(Buffer.alloc(12, 0x5a), 0, 12, descriptors + 12);
  await disk.close();
  const broken = await machine('bad', guest.disk);
  await broken.serial.waitFor(/ROUSE fsck errors/, bootMs);
  const known = await broken.serial.waitFor(/ROUSE known (\w+)/, bootMs);
  assert.notEqual(known[1], guest.knownSha256);
  await broken.end();
});

test('the boot sector counts its boots on its disk', async () => {
  const path = join(world.directory, 'sector.raw');
  await buildBootSector({ path });
  for (const boots of [1, 2]) {
    const tiny = await machine(`sector-${boots}`, path);
    await tiny.serial.waitFor(new RegExp(`ROUSE boots 0${boots}`), 30_000);
    await tiny.end();
    assert.equal(await bootSectorCount(path), boots);
  }
});
