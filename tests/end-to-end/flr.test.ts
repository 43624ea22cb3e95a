/**
 * File-level recovery into a real Linux guest: it sees the disk, reads the backup's files, writes to
 * the clone alone, and gives the disk back.
 */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, guestDomainXml, Heartbeats, SerialConsole } from '#lab/guest.ts';
import { eventually } from '#lab/processes.ts';
import { enterWorld } from '#lab/world.ts';
import { openGuestScene, pidOf } from './rouse-world.ts';

const world = await enterWorld();
const scene = await openGuestScene(world);
const { rouse } = scene;
const helper = await startHelper();
after(async () => {
  await helper.serial.close();
  await scene.close();
});

interface Recovery {
  readonly id: string;
  readonly state: string;
  readonly writtenBytes: number;
  readonly steps: readonly { readonly detail: string | null }[];
  readonly attached: readonly {
    readonly disk: string;
    readonly device: string;
    readonly serial: string;
    readonly seenAs: string | null;
  }[];
}

const show = (id: string) => rouse.json<Recovery>('show', id);
const kind = (id: string) => async () => (await show(id)).state;

/** A guest with one free PCI place, no SCSI controller, and an agent that is not started yet. */
async function startHelper(): Promise<{ serial: SerialConsole; beats: Heartbeats }> {
  const programs = ['/usr/sbin/qemu-ga'];
  const guest = await buildGuest({
    directory: scene.production,
    name: 'helper',
    seed: 2,
    programs,
  });
  const serialLogPath = join(world.directory, 'helper.log');
  const commandSocketPath = join(world.directory, 'helper.sock');
  await writeFile(serialLogPath, '');
  const xml = join(world.directory, 'helper.xml');
  const machine = { chipset: 'q35', scsi: false, ports: 4, agentChannel: true } as const;
  const ports = { serialLogPath, commandSocketPath };
  await writeFile(xml, guestDomainXml({ name: 'helper', disk: guest.disk, ...machine, ...ports }));
  await scene.virsh('define', xml);
  await scene.virsh('start', 'helper');
  const serial = new SerialConsole({ logPath: serialLogPath, commandSocketPath });
  const beats = new Heartbeats(serial);
  await beats.next(120_000);
  return { serial, beats };
}

/** The attached disk as the guest finds it: by its serial, below /sys. */
const findDisk = (serial: string) =>
  `for disk in /sys/block/sd* /sys/block/vd*; do
    grep -q '${serial}' $disk/device/vpd_pg80 $disk/serial 2>/dev/null && echo /dev/\${disk##*/}
  done; true`;

async function nothingIsLeft(): Promise<void> {
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  assert.deepEqual([status.proxy.clones, status.proxy.exports], [0, 0]);
  const xml = await scene.virsh('dumpxml', 'helper');
  assert.doesNotMatch(xml, /protocol='nfs'|ua-rouse|type='scsi'/);
}

let attachedId = '';

test('a running guest sees the disk of the backup, by its serial', async () => {
  await rouse.run('backup', 'web01');
  const view = await rouse.json<Recovery>('recover', 'web01', '--mode', 'flr', '--into', 'helper');
  attachedId = view.id;
  assert.equal(view.state, 'available');
  const [disk] = view.attached;
  assert.deepEqual(disk, {
    disk: 'vda',
    device: 'sda',
    serial: `rouse-${view.id}-0`,
    seenAs: null,
  });
  assert.match(view.steps[8]?.detail ?? '', /not confirmed: no guest agent/);
  // Nobody has confirmed it yet: a busy guest takes its time to find a controller and a disk.
  const found = async () => (await helper.serial.shell(findDisk(disk.serial))).trim() || undefined;
  const device = await eventually('the disk in the guest', found, 30_000, 250);
  assert.match(device, /^\/dev\/sd[a-z]$/);
  await helper.serial.shell(`mkdir -p /tmp/restored; mount -t ext4 ${device}2 /tmp/restored`);
  assert.equal(await helper.serial.command('hash /tmp/restored/data/known.bin'), scene.knownSha256);
  const shown = await rouse.run('show', view.id);
  assert.match(shown, /Disk: +vda is sda of helper, serial rouse-\w+-0; not confirmed/);
  assert.match(shown, /Target +helper/);
});

test('what the guest writes survives kills, lands in the clone and not in the backup', async () => {
  await helper.serial.shell(
    'dd if=/dev/urandom of=/tmp/restored/data/fresh bs=65536 count=32 conv=fsync 2>/dev/null',
  );
  const before = await helper.serial.command('hash /tmp/restored/data/fresh');
  for (const role of ['proxy', 'server'] as const) {
    const pid = await pidOf(rouse, role);
    process.kill(pid, 'SIGKILL');
    const isBack = async () => (await pidOf(rouse, role).catch(() => pid)) !== pid;
    await eventually(`the ${role} to run again`, isBack, 30_000, 200);
  }
  await helper.serial.shell('echo 3 >/proc/sys/vm/drop_caches');
  assert.equal(await helper.serial.command('hash /tmp/restored/data/fresh', 60_000), before);
  assert.ok((await show(attachedId)).writtenBytes > 2 << 20, 'the clone holds it');
  const report = await rouse.json<{ verify: { ok: boolean } } | { ok: boolean }>('vault', 'verify');
  assert.ok('ok' in report ? report.ok : report.verify.ok);
});

test('a disk that the guest has mounted is not taken away, and it says where', async () => {
  await helper.serial.shell('modprobe virtio_console 2>/dev/null; ls /dev/vport*');
  await helper.serial.shell(
    '/usr/sbin/qemu-ga -d -m virtio-serial -p /dev/$(basename /dev/vport*) -f /tmp/qemu-ga.pid -t /tmp',
  );
  const ping = async () =>
    (await scene
      .virsh('qemu-agent-command', 'helper', '{"execute":"guest-ping"}')
      .catch(() => undefined)) !== undefined;
  await eventually('an agent that answers', ping, 30_000, 500);
  await rouse.run('cancel', attachedId, '--no-wait');
  const detail = async () => (await show(attachedId)).steps[12]?.detail ?? '';
  await eventually('the word of the agent', async () => /mounted at/.test(await detail()), 60_000);
  assert.match(await detail(), /guest of helper has sda \(\/dev\/sda\) mounted at \/tmp\/restored/);
  await helper.serial.shell('umount /tmp/restored');
  await eventually('the end', async () => (await kind(attachedId)()) === 'cancelled', 120_000);
  await nothingIsLeft();
  assert.equal((await helper.serial.shell('ls /sys/block | grep -c sd || true')).trim(), '0');
});

test('chosen disks, confirmed by the agent, and the backup as it was', async () => {
  const wanted = ['recover', 'web01', '--mode', 'flr', '--into', 'helper', '--disks', 'vda'];
  const view = await rouse.json<Recovery>(...wanted);
  assert.equal(view.attached[0]?.seenAs, '/dev/sda');
  assert.match(view.steps[8]?.detail ?? '', /its guest sees \/dev\/sda$/);
  await helper.serial.shell('mount -t ext4 -o ro,noload /dev/sda2 /tmp/restored');
  const files = await helper.serial.shell('ls /tmp/restored/data');
  assert.doesNotMatch(files, /fresh/, 'the backup knows nothing of what was written');
  await helper.serial.shell('umount /tmp/restored');
  await rouse.run('cancel', view.id);
  await nothingIsLeft();
  await helper.beats.next(30_000);
});

test('several disks, or one of several, beside those of another recovery', async () => {
  const contents = [randomBytes(3 << 20), randomBytes(1 << 20)];
  const paths = contents.map((_, index) => join(world.directory, `two-${index}.raw`));
  for (const [index, path] of paths.entries()) await writeFile(path, contents[index]!);
  const files = paths.flatMap((path) => ['--file', path]);
  await rouse.run('backup', ...files, '--name', 'two');
  const hashOf = (content: Buffer) => createHash('sha256').update(content).digest('hex');
  const whole = await rouse.json<Recovery>('recover', 'two', '--mode', 'flr', '--into', 'helper');
  assert.deepEqual(
    whole.attached.map(({ disk, device }) => `${disk} ${device}`),
    ['vda sda', 'vdb sdb'],
  );
  for (const [index, { seenAs }] of whole.attached.entries()) {
    assert.equal(await helper.serial.command(`hash ${seenAs}`), hashOf(contents[index]!));
  }
  const saved = await rouse.json<{ warnings: string[]; savesetId: string }>('backup', 'helper');
  assert.match(saved.warnings.join('; '), /disk sda is left out.*disk sdb is left out/);
  const { savesets } = await rouse.json<{ savesets: { id: string; disks: { name: string }[] }[] }>(
    'savesets',
    'helper',
  );
  const own = savesets.find(({ id }) => id === saved.savesetId)?.disks.map(({ name }) => name);
  assert.deepEqual(own, ['vda'], 'a backup of the target is of its own disks alone');
  const one = ['recover', 'two', '--mode', 'flr', '--into', 'helper', '--disks', 'vdb'];
  const second = await rouse.json<Recovery>(...one, '--name', 'other');
  const [disk] = second.attached;
  assert.deepEqual([second.attached.length, disk?.disk, disk?.device], [1, 'vdb', 'sdc']);
  assert.equal(await helper.serial.command(`hash ${disk?.seenAs}`), hashOf(contents[1]!));
  await rouse.run('recover', 'end', whole.id);
  assert.equal(await helper.serial.command(`hash ${disk?.seenAs}`), hashOf(contents[1]!));
  await rouse.run('cancel', second.id);
  await nothingIsLeft();
});

test('what cannot be done is refused, with what to do instead', async () => {
  const flr = (...more: string[]) => rouse.attempt('recover', 'web01', '--mode', 'flr', ...more);
  const cases = [
    { values: [], code: 2, says: /--mode flr needs --into/ },
    { values: ['--into', 'helpr'], code: 3, says: /Did you mean helper/ },
    { values: ['--into', 'helper', '--disks', 'vdq'], code: 3, says: /Its disks are: vda\./ },
    { values: ['--into', 'helper', '--power-on'], code: 2, says: /is for a new machine/ },
    {
      values: ['--into', 'helper', '--host', 'x'],
      code: 2,
      says: /that the target machine runs on/,
    },
  ];
  for (const { values, code, says } of cases) {
    const answer = await flr(...values);
    assert.equal(answer.code, code, answer.stderr);
    assert.match(answer.stderr, says);
  }
  await scene.virsh('destroy', 'helper');
  const off = await flr('--into', 'helper');
  assert.equal(off.code, 5, off.stderr);
  assert.match(off.stderr, /helper is off: it sees no new disk\n→ Power it on/);
  await nothingIsLeft();
});
