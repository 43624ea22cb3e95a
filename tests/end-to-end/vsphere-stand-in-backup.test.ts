/**
 * What a backup asks of the stand-in, judged by govmomi's client: frozen disks while the guest writes,
 * downloads under a lease, changed areas that are the truth.
 */
import assert from 'node:assert/strict';
import { mkdir, open, readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { buildGuest, Heartbeats } from '#lab/guest.ts';
import { attempt, run } from '#lab/processes.ts';
import { buildGo } from '#lab/vcenter/build.ts';
import { startStandIn, writeMachine } from '#lab/vcenter/vcenter.ts';
import { enterWorld } from '#lab/world.ts';

const world = await enterWorld();
const { directory } = world;
const production = join(directory, 'production');
await mkdir(production, { recursive: true });
const guest = await buildGuest({ directory, name: 'web01' });
const vmx = await writeMachine({ directory: production, name: 'web01', disks: [guest.disk] });
const vcenter = await startStandIn({
  directory: join(directory, 'vc'),
  inventory: {
    datacenters: [
      {
        name: 'dc1',
        hosts: [{ name: 'esx1', addresses: ['127.0.0.1'] }],
        datastores: [{ name: 'production', directory: production }],
        machines: [{ vmx: `[production] ${vmx}`, host: 'esx1', poweredOn: true }],
      },
    ],
  },
});
const serial = await vcenter.serial('web01');
const beats = new Heartbeats(serial);
await beats.next(120_000);
const judge = await buildGo(join(import.meta.dirname, '..', '..', 'lab', 'vcenter', 'client'));
after(async () => {
  await serial.close();
  await vcenter.stop();
  await world.end();
});

const asked = (...args: string[]) =>
  attempt(judge, [
    ...['-url', vcenter.url, '-user', vcenter.user, '-password', vcenter.password],
    ...['-certificate', vcenter.certificate, '-datacenter', 'dc1', ...args],
  ]);

async function ask<T = unknown>(...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await asked(...args);
  assert.equal(code, 0, `${args.join(' ')}: ${stderr}`);
  return JSON.parse(stdout) as T;
}

interface SnapshotView {
  readonly snapshot: string;
  readonly disks: readonly {
    readonly Key: number;
    readonly File: string;
    readonly ChangeID: string;
  }[];
}

interface Area {
  readonly Start: number;
  readonly Length: number;
}

/** Downloads a snapshot's disk and unpacks it with QEMU's reader. */
async function exported(snapshot: string, name: string): Promise<string> {
  const stream = join(directory, `${name}.vmdk`);
  const raw = join(directory, `${name}.raw`);
  assert.equal(await ask('export', snapshot, stream), 1);
  assert.match((await readFile(stream)).subarray(512, 1536).toString('latin1'), /streamOptimized/);
  await run('qemu-img', ['convert', '-f', 'vmdk', '-O', 'raw', stream, raw]);
  return raw;
}

async function get(
  file: string,
  range?: Area,
  auth = true,
): Promise<{ status: number; body: Buffer }> {
  const ca = await readFile(vcenter.certificate);
  const url = new URL(`/folder/${file}?dcPath=dc1&dsName=production`, vcenter.url);
  const headers: Record<string, string> = {};
  if (range !== undefined)
    headers['Range'] = `bytes=${range.Start}-${range.Start + range.Length - 1}`;
  const login = auth ? `${vcenter.user}:${vcenter.password}` : undefined;
  return new Promise((resolve, reject) => {
    const call = request(url, { ca, headers, auth: login, agent: false }, async (response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks) });
    });
    call.once('error', reject).end();
  });
}

const flat = 'web01/web01-flat.vmdk';
let first: SnapshotView;
let whole: string;

test('a snapshot freezes the disk of a guest that writes on', async () => {
  await ask('track', 'web01');
  const writing = serial.command('churn 4', 60_000);
  await beats.next(30_000, 1);
  first = await ask<SnapshotView>('snapshot', 'web01', 'rouse-1');
  assert.equal(first.disks[0]?.File, '[production] web01/web01.vmdk');
  assert.match(first.disks[0]?.ChangeID ?? '', /^[0-9a-f -]+\/1$/);
  whole = await exported(first.snapshot, 'first');
  assert.ok(Number(await writing) > 0);
  const { body } = await get(flat);
  assert.ok((await readFile(whole)).equals(body), 'both ways show one point in time');
  assert.equal((await get(flat, undefined, false)).status, 401);
  await ask('drop', 'web01');
});

test('changed areas, read by range, make the old copy the new one', async () => {
  await serial.command('write 2');
  const second = await ask<SnapshotView>('snapshot', 'web01', 'rouse-2');
  const [disk] = first.disks;
  assert.ok(disk !== undefined);
  const key = String(disk.Key);
  const areas = await ask<Area[]>('changes', 'web01', second.snapshot, key, disk.ChangeID);
  const changed = areas.reduce((sum, { Length }) => sum + Length, 0);
  assert.ok(changed > 0 && changed < guest.sizeBytes / 2, `${changed} bytes changed`);
  const copy = await open(whole, 'r+');
  for (const area of areas) {
    const { status, body } = await get(flat, area);
    assert.deepEqual([status, body.length], [206, area.Length]);
    await copy.write(body, 0, body.length, area.Start);
  }
  await copy.close();
  const again = await readFile(await exported(second.snapshot, 'second'));
  assert.ok((await readFile(whole)).equals(again));
  const all = await ask<Area[]>('changes', 'web01', second.snapshot, key, '*');
  assert.ok(all.reduce((sum, { Length }) => sum + Length, 0) < guest.sizeBytes);

  await vcenter.resetChangeTracking('web01');
  const { stderr } = await asked('changes', 'web01', second.snapshot, key, disk.ChangeID);
  assert.match(stderr, /FileFault/);
});

test('a lease that nobody keeps alive ends', async () => {
  await vcenter.behaviour({ leaseTimeoutSeconds: 1 });
  const { snapshot } = await ask<SnapshotView>('snapshot', 'web01', 'rouse-3');
  assert.equal(await ask('expire', snapshot), 'error');
  await ask('drop', 'web01');
  assert.ok((await beats.next(30_000, 2)) > 0);
});
