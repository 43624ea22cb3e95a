import assert from 'node:assert/strict';
import { test } from 'node:test';
import { recoveryRequest } from '#src/recovery/schema.ts';
import { RecoveryScene, type Running } from './recovery-world.ts';

const request = recoveryRequest.parse({ machine: 'web01', powerOn: true });
const datastore = 'production';

async function wake(server: Running): Promise<string> {
  const { id } = await server.recoveries.create(request);
  return id;
}

/** The whole way with a server that dies at the given meeting, and one that goes on. */
async function wholeWay(scene: RecoveryScene, dieAt: number): Promise<{ died: boolean }> {
  let server = await scene.start(dieAt);
  let died = false;
  const next = async () => {
    died = true;
    await server.bury();
    server = await scene.start();
  };
  const id = await wake(server);
  if ((await server.until(id, ['available'])) === 'died') {
    await next();
    assert.notEqual(await server.until(id, ['available']), 'died');
  }
  const relocating = server.recoveries.relocate(id, { datastore });
  if ((await Promise.race([relocating.then(() => 'asked'), server.died])) === 'died') {
    await next();
    const view = await server.recoveries.get(id);
    if (view.state === 'available') await server.recoveries.relocate(id, { datastore });
  }
  if ((await server.until(id, ['done'])) === 'died') {
    await next();
    assert.notEqual(await server.until(id, ['done']), 'died');
  }
  await server.stop();
  return { died };
}

test('a server killed at any external call finishes the recovery once and leaves nothing', async () => {
  let points = 0;
  for (let dieAt = 1; ; dieAt++) {
    const scene = new RecoveryScene();
    try {
      const { died } = await wholeWay(scene, dieAt);
      const { machines, datastores } = await scene.hypervisor.inventory();
      const ours = machines.filter(({ name }) => name === 'web01');
      assert.equal(ours.length, 1, `killed at ${dieAt}: the machine is registered once`);
      assert.equal(ours[0]?.power, 'on', `killed at ${dieAt}: it runs`);
      assert.deepEqual(
        datastores.filter(({ kind }) => kind === 'nfs'),
        [],
        `killed at ${dieAt}`,
      );
      assert.equal(scene.proxy.clonesMade.length, 1, `killed at ${dieAt}: cloned once`);
      assert.equal(scene.proxy.exportsByClone.size, 0, `killed at ${dieAt}: no export is left`);
      assert.equal(scene.proxy.clonesById.size, 0, `killed at ${dieAt}: no clone is left`);
      if (!died) break;
      points++;
    } finally {
      scene.end();
    }
  }
  assert.ok(points > 20, `only ${points} points were tried`);
});

test('cancelled at any external call, everything is undone', async () => {
  for (let at = 1; at < 40; at++) {
    const scene = new RecoveryScene();
    try {
      const server = await scene.start();
      const id = await wake(server);
      while (scene.calls < at) {
        const view = await server.recoveries.get(id);
        if (view.state === 'available') break;
        await new Promise((resolve) => setImmediate(resolve));
      }
      await server.recoveries.cancel(id, { keepWrites: false });
      assert.notEqual(await server.until(id, ['cancelled']), 'died');
      const { machines, datastores } = await scene.hypervisor.inventory();
      assert.deepEqual(
        machines.filter(({ name }) => name === 'web01'),
        [],
        `cancelled at ${at}`,
      );
      assert.deepEqual(
        datastores.filter(({ kind }) => kind === 'nfs'),
        [],
        `cancelled at ${at}`,
      );
      assert.equal(scene.proxy.exportsByClone.size + scene.proxy.clonesById.size, 0);
      await server.stop();
    } finally {
      scene.end();
    }
  }
});
