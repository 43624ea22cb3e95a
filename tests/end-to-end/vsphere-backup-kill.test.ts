/**
 * A server that is killed before or after any of its calls, to vCenter or to the proxy, while a machine
 * is backed up through the stand-in: the next one ends the backup, once, with nothing left.
 */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { enterWorld } from '#lab/world.ts';
import { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { requestOf, sparseImage, VsphereBackupWorld } from './vsphere-backup-world.ts';

const MiB = 1 << 20;
const world = await enterWorld({ guests: false });
const { directory } = world;
await mkdir(directory, { recursive: true });
const image = await sparseImage(join(directory, 'a.img'), 2 * MiB);
const at = await VsphereBackupWorld.open(world, [{ name: 'box', disks: [image] }]);
after(async () => {
  await at.close();
  await world.end();
});

/** Every n-th point: a backup meets the world outside some hundred times. */
const stride = 5;

/** From the n-th meeting with anything outside on, nothing comes back any more. */
function mortality(dieAt: number) {
  const { promise: died, resolve: die } = Promise.withResolvers<'died'>();
  let meetings = 0;
  const meet = async () => {
    meetings += 1;
    if (meetings < dieAt) return;
    die('died');
    await new Promise(() => undefined);
  };
  return { died, meet, count: () => meetings };
}

/** Every request to vCenter is a meeting, before it is sent and before its answer is read. */
function mortalDriver(driver: VsphereHypervisor, meet: () => Promise<void>): VsphereHypervisor {
  const { http } = driver.client;
  const call = http.call.bind(http);
  http.call = async (request) => {
    await meet();
    const reply = await call(request);
    await meet();
    return reply;
  };
  return driver;
}

for (const kind of ['full', 'incremental'] as const) {
  test(`killed at any call of one that is ${kind}: it is stored once, and nothing is left`, async () => {
    let points = 0;
    for (let dieAt = 1; ; dieAt += stride) {
      const database = at.newDatabase();
      if (kind === 'incremental') {
        const before = await at.server({ database });
        await at.backUp(before, 'box');
        await before.stop();
        await at.scribble('box', MiB, 30_000);
      }
      const { died, meet } = mortality(dieAt);
      const wrap = (driver: VsphereHypervisor) => mortalDriver(driver, meet);
      const first = await at.server({ database, meet, died, wrap });
      const { id } = await first.backups.start(requestOf('box'));
      const ended = await first.ended(id);
      if (ended !== 'died') {
        // It may have died since, and then would not stop.
        await first.bury();
        break;
      }
      points += 1;
      await first.bury();
      const next = await at.server({ database });
      const view = await next.ended(id);
      const when = `killed at ${dieAt}`;
      assert.ok(view !== 'died');
      assert.equal(view.state, 'done', `${when}: ${view.error?.message}`);
      assert.equal(view.kind, kind, `${when}: ${view.fullBecause}`);
      const saveset = await at.vault.saveset(view.savesetId ?? '');
      assert.deepEqual(await at.hashes(saveset), [await at.hashOf('box')], when);
      assert.deepEqual(await at.leftSnapshots(), [], when);
      const stored = await at.vault.savesets();
      const ofBackup = stored.filter(({ labels }) => labels['rouse.job'] === id);
      assert.equal(ofBackup.length, 1, when);
      await next.stop();
    }
    assert.ok(points >= 8, `only ${points} points were tried`);
  });
}

test('cancelled at any call, it is stored or gone, with nothing left', async () => {
  const states = new Set<string>();
  for (let cancelAt = 1; ; cancelAt += 3 * stride) {
    let cancelled: Promise<unknown> | undefined;
    let meetings = 0;
    let cancel = async (): Promise<unknown> => undefined;
    const meet = async () => {
      meetings += 1;
      if (meetings === cancelAt) cancelled = cancel().catch((error: unknown) => error);
    };
    const wrap = (driver: VsphereHypervisor) => mortalDriver(driver, meet);
    const server = await at.server({ meet, wrap });
    const { id } = await server.backups.start(requestOf('box'));
    cancel = () => server.backups.cancel(id);
    const view = await server.ended(id);
    await cancelled;
    assert.ok(view !== 'died');
    states.add(view.state);
    assert.equal(view.state === 'done', view.savesetId !== null, `cancelled at ${cancelAt}`);
    assert.deepEqual(await at.leftSnapshots(), [], `cancelled at ${cancelAt}`);
    await server.stop();
    if (cancelled === undefined) break;
  }
  assert.ok(states.has('cancelled') && states.has('done'), [...states].join());
});
