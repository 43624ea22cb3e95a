import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Backup, BackupRequest } from '#src/backup/schema.ts';
import { RouseError } from '#src/errors.ts';
import { BackupScene, type BackupServer } from './backup-world.ts';

const request: BackupRequest = {
  kind: 'machine',
  machine: 'web01',
  hypervisor: undefined,
  full: false,
  mtree: undefined,
  proxy: undefined,
};

async function withScene(work: (scene: BackupScene) => Promise<void>): Promise<void> {
  const scene = new BackupScene();
  try {
    await work(scene);
  } finally {
    scene.end();
  }
}

/** Whatever happened: nothing is held, and labels are of the same point in time as the content. */
async function checkEnd(scene: BackupScene, server: BackupServer, view: Backup, when: string) {
  assert.deepEqual([...scene.hypervisor.openBackups], [], `${when}: no job is left`);
  const stored = await server.savesets();
  for (const saveset of [...scene.proxy.vault, ...stored]) {
    assert.equal(saveset.disks[0]?.source, saveset.labels['checkpoint'], when);
  }
  const ids = stored.map(({ id }) => id);
  assert.deepEqual(ids, view.savesetId === null ? [] : [view.savesetId], when);
  assert.equal(view.state === 'done', view.savesetId !== null, when);
  assert.ok(scene.proxy.vault.length <= 1, `${when}: stored once`);
}

async function backUp(scene: BackupScene, dieAt: number) {
  let server = await scene.start(dieAt);
  const { id } = await server.backups.start(request);
  let view = await server.ended(id);
  const died = view === 'died';
  if (died) {
    await server.bury();
    server = await scene.start();
    view = await server.ended(id);
  }
  assert.ok(view !== 'died');
  return { server, view, died };
}

test('killed at any external call, a backup goes on and is recorded once', async () => {
  let points = 0;
  for (let dieAt = 1; ; dieAt++) {
    let died = false;
    await withScene(async (scene) => {
      const told = await backUp(scene, dieAt);
      const { server, view } = told;
      const when = `killed at ${dieAt}`;
      assert.equal(view.state, 'done', when);
      assert.deepEqual(view.warnings, ['no nvram'], when);
      await checkEnd(scene, server, view, when);
      await server.stop();
      ({ died } = told);
    });
    if (!died) break;
    points++;
  }
  assert.ok(points >= 8, `only ${points} points were tried`);
});

test('a proxy that restarts at any time is given the job again', async () => {
  for (let at = 1; at <= 14; at++) {
    await withScene(async (scene) => {
      scene.onMeeting = (count) => {
        if (count === at) scene.proxy.restart();
      };
      const { server, view } = await backUp(scene, Number.POSITIVE_INFINITY);
      assert.equal(view.state, 'done', `restarted at ${at}: ${view.error?.message}`);
      await checkEnd(scene, server, view, `restarted at ${at}`);
      await server.stop();
    });
  }
});

test('cancelled at any external call, it is either stored or gone', async () => {
  const states = new Set<string>();
  for (let at = 1; at <= 16; at++) {
    await withScene(async (scene) => {
      const server = await scene.start();
      let cancelled: Promise<unknown> = Promise.resolve();
      const { id } = await server.backups.start(request);
      scene.onMeeting = (count) => {
        if (count === at) cancelled = server.backups.cancel(id).catch((error: unknown) => error);
      };
      const view = await server.ended(id);
      await cancelled;
      assert.ok(view !== 'died');
      states.add(view.state);
      await checkEnd(scene, server, view, `cancelled at ${at}`);
      await server.stop();
    });
  }
  assert.ok(states.has('cancelled'), [...states].join());
});

test('a server that shuts down leaves the job running, and the next one finds it', async () => {
  await withScene(async (scene) => {
    scene.proxy.turns = 200;
    const server = await scene.start();
    const { id } = await server.backups.start(request);
    while (scene.proxy.started === 0) await new Promise((resolve) => setImmediate(resolve));
    await server.stop();
    const next = await scene.start();
    const view = await next.ended(id);
    assert.ok(view !== 'died');
    assert.equal(view.state, 'done');
    assert.equal(scene.proxy.started, 1, 'it was read once');
    assert.equal(scene.hypervisor.points, 1);
    await checkEnd(scene, next, view, 'shut down');
    await next.stop();
  });
});

test('of two backups of one machine at once, one is refused as busy', async () => {
  await withScene(async (scene) => {
    const server = await scene.start();
    const both = await Promise.allSettled([
      server.backups.start(request),
      server.backups.start(request),
    ]);
    const [begun] = both.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
    const [refused] = both.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
    assert.ok(begun !== undefined && refused instanceof RouseError);
    assert.equal(refused.code, 'busy');
    assert.match(refused.advice, new RegExp(begun.id));
    await server.ended(begun.id);
    await server.stop();
  });
});

test('a job that does not end after the saveset is stored is a warning; one failure is none', async () => {
  for (const failures of [1, 5]) {
    await withScene(async (scene) => {
      for (let count = 0; count < failures; count++) {
        scene.hypervisor.faults.failOnce('endBackup', new RouseError('time-out', 'it hangs'));
      }
      const { server, view } = await backUp(scene, Number.POSITIVE_INFINITY);
      assert.equal(view.state, 'done');
      assert.equal(view.savesetId, scene.proxy.vault[0]?.id);
      const [, warning] = view.warnings;
      if (failures === 1) assert.equal(warning, undefined);
      else assert.match(warning ?? '', /stored, but its job .* did not end: it hangs/);
      await server.stop();
    });
  }
});

test('a source that fails ends the backup as failed, with nothing held', async () => {
  await withScene(async (scene) => {
    scene.onMeeting = (count) => {
      if (count === 3) scene.hypervisor.readable.clear();
    };
    const { server, view } = await backUp(scene, Number.POSITIVE_INFINITY);
    assert.equal(view.state, 'failed');
    assert.equal(view.error?.code, 'io-error');
    await checkEnd(scene, server, view, 'failed');
    const again = await server.backups.start(request);
    scene.onMeeting = () => undefined;
    const second = await server.ended(again.id);
    assert.ok(second !== 'died');
    assert.equal(second.state, 'done');
    await server.stop();
  });
});
