/**
 * File-level recovery on the stand-in for vCenter, through the command line: a disk of a backup
 * appears in a Linux guest that runs on an ESXi, whose only controller is full; the guest reads a
 * known file from it, writes to the clone, and gives the disk back.
 */
import assert from 'node:assert/strict';
import { mkdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, Heartbeats } from '#lab/guest.ts';
import { eventually } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld, worldAddresses } from '#lab/world.ts';

const world = await enterWorld();
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const hosts = [await world.addHost('esx1'), await world.addHost('esx2')];
const source = await buildGuest({ directory, name: 'web01' });
const helper = await buildGuest({ directory, name: 'helper', seed: 2 });
await writeHelper();
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        clusters: [
          {
            name: 'cluster1',
            hosts: hosts.map(({ name, ipv4, ipv6 }) => ({
              name,
              netns: name,
              addresses: [ipv4, ipv6],
            })),
          },
        ],
        datastores: [{ name: 'production', directory: production }],
        machines: [{ vmx: '[production] helper/helper.vmx', host: 'esx2', poweredOn: true }],
      },
    ],
  },
});
const address = ['--address', worldAddresses.ipv4];
const rouse = new RouseCommand(world, join(directory, 'data'), false, address);
await rouse.up();
const serial = await vcenter.serial('helper');
after(async () => {
  await serial.close();
  await vcenter.stop();
  await rouse.stop();
  await world.end();
});

/** With 15 disks on its one controller: the next one has no place on it. */
async function writeHelper(): Promise<void> {
  const small = join(directory, 'small.img');
  await writeFile(small, '');
  await truncate(small, 1 << 20);
  const disks = [helper.disk, ...Array.from({ length: 14 }, () => small)];
  await writeMachine({ directory: production, name: 'helper', disks });
}

interface Recovery {
  readonly id: string;
  readonly state: string;
  readonly host: string | null;
  readonly writtenBytes: number;
  readonly steps: readonly { readonly detail: string | null }[];
  readonly attached: readonly { readonly disk: string; readonly device: string }[];
}

const show = (id: string) => rouse.json<Recovery>('show', id);
/** The disk that is 128 MiB, and is not the guest's own. */
const findDisk = `for disk in /sys/block/sd*; do
  [ "$(cat $disk/size)" = ${source.sizeBytes / 512} ] && ! grep -q "/dev/\${disk##*/}" /proc/mounts &&
    echo /dev/\${disk##*/}
done; true`;

async function nothingIsLeft(): Promise<void> {
  const { proxy } = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  assert.deepEqual([proxy.clones, proxy.exports], [0, 0]);
  const mounted = (await vcenter.datastores()).filter(({ remote }) => remote !== '');
  assert.deepEqual(mounted, []);
  const { disks, scsiControllers } = await vcenter.machine('helper');
  assert.deepEqual([disks.length, scsiControllers], [15, 1], 'it has what is its own alone');
}

let attachedId = '';

test('a disk of the backup appears in a running guest, on a controller that was added', async () => {
  const password = join(directory, 'password');
  await writeFile(password, vcenter.password, { mode: 0o600 });
  const who = ['--user', vcenter.user, '--password-file', password];
  const pin = ['--fingerprint', vcenter.fingerprint];
  await rouse.run('hypervisor', 'add', 'vc', vcenter.url, ...who, ...pin);
  await rouse.run('backup', '--file', source.disk, '--name', 'web01');
  await serial.waitFor(/ROUSE fsck clean/, 120_000);
  await vcenter.tools('helper', 'guestToolsNotRunning');
  const view = await rouse.json<Recovery>('recover', 'web01', '--mode', 'flr', '--into', 'helper');
  attachedId = view.id;
  assert.deepEqual([view.state, view.host], ['available', 'esx2']);
  assert.deepEqual(
    view.attached.map(({ device }) => device),
    ['scsi1:0'],
  );
  assert.match(view.steps[8]?.detail ?? '', /not confirmed: no guest agent answers/);
  const found = async () => (await serial.shell(findDisk)).trim() || undefined;
  const device = await eventually('the disk in the guest', found, 30_000, 250);
  await serial.shell(`mkdir -p /tmp/restored; mount -t ext4 ${device}2 /tmp/restored`);
  assert.equal(await serial.command('hash /tmp/restored/data/known.bin'), source.knownSha256);
});

test('what the guest writes lands in the clone', async () => {
  const write = 'dd if=/dev/urandom of=/tmp/restored/data/fresh bs=65536 count=32 conv=fsync';
  await serial.shell(`${write} 2>/dev/null`);
  assert.ok((await show(attachedId)).writtenBytes > 2 << 20);
  await rouse.run('vault', 'verify');
});

test('a disk that VMware Tools tell is mounted is not taken away', async () => {
  const mounts = [
    { slot: 'scsi0:0', path: '/' },
    { slot: 'scsi1:0', path: '/tmp/restored' },
  ];
  await vcenter.tools('helper', 'guestToolsRunning', mounts);
  await rouse.run('cancel', attachedId, '--no-wait');
  const detail = async () => (await show(attachedId)).steps[12]?.detail ?? '';
  const isSaid = async () => /scsi1:0 mounted at \/tmp\/restored/.test(await detail());
  await eventually('the word of VMware Tools', isSaid, 60_000);
  await serial.shell('umount /tmp/restored');
  await vcenter.tools('helper', 'guestToolsRunning', mounts.slice(0, 1));
  const isOver = async () => (await show(attachedId)).state === 'cancelled';
  await eventually('the end', isOver, 120_000);
  await nothingIsLeft();
});

test('chosen disks only; the backup is as it was; the target runs on', async () => {
  const files = ['--file', source.disk, '--file', join(directory, 'small.img')];
  await rouse.run('backup', ...files, '--name', 'two');
  const { disks } = await rouse
    .json<{ disks: { name: string }[] }>('show-saveset', 'two')
    .catch(() => ({ disks: [] }));
  const wanted = disks[0]?.name ?? 'vda';
  const flr = ['recover', 'two', '--mode', 'flr', '--into', 'helper', '--disks', wanted];
  const view = await rouse.json<Recovery>(...flr);
  assert.match(view.steps[8]?.detail ?? '', /not confirmed: its guest agent tells mounts only/);
  assert.equal((await vcenter.machine('helper')).disks.length, 16);
  const found = async () => (await serial.shell(findDisk)).trim() || undefined;
  const device = await eventually('the disk in the guest', found, 30_000, 250);
  await serial.shell(`mount -t ext4 -o ro,noload ${device}2 /tmp/restored`);
  assert.doesNotMatch(await serial.shell('ls /tmp/restored/data'), /fresh/);
  await serial.shell('umount /tmp/restored');
  await rouse.run('cancel', view.id);
  await nothingIsLeft();
  assert.ok((await new Heartbeats(serial).next(60_000, 2)) > 0);
});
