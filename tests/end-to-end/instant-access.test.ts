/**
 * Instant access of a real Linux guest, with everything that may die dying: what the guest wrote is
 * compared by the guest itself, the file system is checked from inside.
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { eventually } from '#lab/processes.ts';
import { enterWorld } from '#lab/world.ts';
import { openGuestScene, pidOf } from './rouse-world.ts';

const world = await enterWorld();
const scene = await openGuestScene(world);
after(() => scene.close());
const { rouse, serial, beats } = scene;

interface Recovery {
  readonly id: string;
  readonly state: string;
  readonly name: string;
  readonly steps: readonly { readonly number: number; readonly state: string }[];
}

const state = async (id: string) => (await rouse.json<Recovery>('show', id)).state;

test('a running machine is backed up, first whole, then what changed', async () => {
  const full = await rouse.json<{ kind: string; newBytes: number }>('backup', 'web01');
  assert.equal(full.kind, 'full');
  await serial.command('write 2');
  const next = await rouse.json<{ kind: string; newBytes: number; readBytes: number }>(
    'backup',
    'web01',
  );
  assert.equal(next.kind, 'incremental');
  assert.ok(next.newBytes < full.newBytes / 2, `${next.newBytes} of ${full.newBytes}`);
  const report = await rouse.json<{ verify: { ok: boolean } } | { ok: boolean }>('vault', 'verify');
  assert.ok('ok' in report ? report.ok : report.verify.ok);
});

test('two machines of one name are refused, and nothing is left of the attempt', async () => {
  const { code, stderr } = await rouse.attempt('recover', 'web01');
  assert.equal(code, 5, stderr);
  assert.match(stderr, /a machine named web01 exists/);
  assert.match(stderr, /--name/);
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  assert.deepEqual([status.proxy.clones, status.proxy.exports], [0, 0]);
});

test('a lost machine runs again, and survives kills of proxy and server while it writes', async () => {
  await scene.loseMachine();
  const mark = serial.position;
  const { id } = await rouse.json<Recovery>('recover', 'web01', '--power-on', '--identity', 'keep');
  await serial.waitFor(/ROUSE fsck clean/, 120_000, mark);
  await serial.waitFor(/ROUSE heartbeat/, 120_000, mark);
  assert.equal(await serial.command('hash'), scene.knownSha256);

  const churning = serial.command('churn 12', 120_000);
  for (const role of ['proxy', 'server', 'proxy'] as const) {
    const pid = await pidOf(rouse, role);
    process.kill(pid, 'SIGKILL');
    await eventually(
      `the ${role} to run again`,
      async () => (await pidOf(rouse, role).catch(() => pid)) !== pid,
      30_000,
      200,
    );
    await beats.next(30_000, 1);
  }
  assert.ok(Number(await churning) > 0, 'the guest wrote and compared');
  assert.equal(await serial.command('check', 60_000), 'clean');
  assert.equal(await state(id), 'available');
});

test('a relocation is cancelled, the machine runs on; then it is relocated and all is gone', async () => {
  const { recoveries } = await rouse.json<{ recoveries: Recovery[] }>('recoveries');
  const id = recoveries[0]?.id ?? '';
  await rouse.run('relocate', id, '--to', 'production', '--bandwidth', '1M', '--no-wait');
  await eventually('step 12', async () => (await state(id)) === 'relocating', 20_000);
  await beats.next(30_000, 1);
  await rouse.run('cancel', id);
  assert.equal(await state(id), 'available');
  await beats.next(30_000, 1);

  const writing = serial.command('churn 5', 120_000);
  await rouse.run('relocate', id, '--to', 'production');
  await writing;
  await eventually('the end', async () => (await state(id)) === 'done', 60_000);
  assert.equal(await serial.command('check', 60_000), 'clean');
  assert.doesNotMatch(await scene.virsh('dumpxml', 'web01'), /protocol=.nfs/);
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  assert.deepEqual([status.proxy.clones, status.proxy.exports], [0, 0]);
});

test('a copy is parked with its writes, goes on, and is cancelled', async () => {
  const copy = await rouse.json<Recovery>('recover', 'web01', '--name', 'web01-copy');
  await rouse.run('cancel', copy.id, '--keep-writes');
  await eventually('parked', async () => (await state(copy.id)) === 'parked', 30_000);
  assert.doesNotMatch(await scene.virsh('list', '--all', '--name'), /web01-copy/);
  await rouse.run('resume', copy.id);
  await eventually('available', async () => (await state(copy.id)) === 'available', 60_000);
  assert.match(await scene.virsh('list', '--name'), /web01-copy/);
  await rouse.run('cancel', copy.id);
  await eventually('cancelled', async () => (await state(copy.id)) === 'cancelled', 60_000);
  assert.doesNotMatch(await scene.virsh('list', '--all', '--name'), /web01-copy/);
});

test('a full restore makes a machine of its own on the datastore', async () => {
  await rouse.run(
    'recover',
    'web01',
    '--mode',
    'new',
    '--name',
    'web02',
    '--datastore',
    'production',
  );
  const xml = await scene.virsh('dumpxml', 'web02');
  assert.match(xml, new RegExp(scene.production));
  assert.doesNotMatch(xml, /protocol=.nfs/);
  await scene.virsh('undefine', 'web02', '--nvram');
});
