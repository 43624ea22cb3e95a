import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { access, rm } from 'node:fs/promises';
import { test } from 'node:test';
import { systemClock } from '../../src/lib/clock.ts';
import { MemoryFileSystem } from '../../src/testing/memory-file-system.ts';
import { insideOwnWorld, must, startServer } from './nfs-world.ts';

/** A running rpcbind holds port 111: the server registers with it, and takes itself away again. */
if (process.env['ROUSE_TEST_WORLD'] !== '1') {
  test('a real rpcbind, in a world of its own', async () => {
    await insideOwnWorld(import.meta.filename);
  });
} else {
  for (const withSocket of [true, false]) {
    const how = withSocket ? 'its unix socket' : 'TCP from a privileged port';
    test(`registers with a running rpcbind over ${how}`, async () => {
      const stop = await startRpcbind();
      try {
        const rpcbindSocket = withSocket ? '/run/rpcbind.sock' : '/run/none.sock';
        await registersAndLeaves(rpcbindSocket);
      } finally {
        await stop();
      }
    });
  }

  test('a registration left behind is replaced; one that is served is not', async () => {
    const stop = await startRpcbind();
    try {
      const first = await startServer({ nfsPort: 3049, mountPort: 3049, portmap: 'register' });
      await assert.rejects(startServer({ nfsPort: 3050, mountPort: 3050, portmap: 'register' }), {
        code: 'port-taken',
      });
      const second = await startServer({ nfsPort: 3051, mountPort: 3051, portmap: 'auto' });
      assert.equal(second.portmapper, 'unavailable');
      await second.close();
      assert.match(await portList(), /100003\s+3\s+tcp\s+3049/);
      await first.close();
      await must('rpcinfo', ['-p', '127.0.0.1']);
      await register(4049);
      const third = await startServer({ nfsPort: 3052, mountPort: 3052, portmap: 'auto' });
      assert.equal(third.portmapper, 'registered');
      assert.match(await portList(), /100003\s+3\s+tcp\s+3052/);
      await third.close();
    } finally {
      await stop();
    }
  });

  test('nobody on 111: "register" fails and says so, "auto" binds', async () => {
    await assert.rejects(startServer({ portmap: 'register' }), { code: 'port-taken' });
    const server = await startServer({ portmap: 'auto' });
    assert.equal(server.portmapper, 'bound');
    await assert.rejects(startServer({ nfsPort: 5049, mountPort: 5049, portmap: 'bind' }), {
      code: 'port-taken',
    });
    await assert.rejects(startServer({ portmap: 'off' }), { code: 'port-taken' });
    await server.close();
  });
}

async function registersAndLeaves(rpcbindSocket: string): Promise<void> {
  const server = await startServer({ mountPort: 20_048, portmap: 'auto', rpcbindSocket });
  assert.equal(server.portmapper, 'registered');
  server.addExport({
    id: 1,
    path: '/vault/a',
    secret: Buffer.alloc(32, 3),
    clients: ['127.0.0.1'],
    fileSystem: new MemoryFileSystem({ clock: systemClock }),
  });
  const text = await portList();
  assert.match(text, /100003\s+3\s+tcp\s+2049/);
  assert.match(text, /100005\s+3\s+tcp\s+20048/);
  await must('nfs-ls', ['nfs://127.0.0.1/vault/a']);
  const exports = (await must('showmount', ['-e', '127.0.0.1'])).toString();
  assert.match(exports, /\/vault\/a\s+127\.0\.0\.1/);
  await server.close();
  assert.doesNotMatch(await portList(), /100003|100005/);
}

async function portList(): Promise<string> {
  return (await must('rpcinfo', ['-p', '127.0.0.1'])).toString();
}

/** What a killed server leaves: a registration on a port that nobody listens on. */
async function register(port: number): Promise<void> {
  const { register } = await import('../../src/nfs/rpcbind.ts');
  await register(
    [
      { program: 100_003, version: 3, protocol: 'tcp', port },
      { program: 100_005, version: 3, protocol: 'tcp', port },
    ],
    { socketPath: '/run/rpcbind.sock', port: 111, families: [4, 6] },
  );
}

/** rpcbind keeps its warm-start files and its lock in /run, which is ours alone here. */
async function startRpcbind(): Promise<() => Promise<void>> {
  const child = spawn('rpcbind', ['-f', '-w'], { stdio: 'ignore' });
  const ended = new Promise<void>((resolve) => child.on('close', () => resolve()));
  for (let attempt = 0; attempt < 100; attempt++) {
    // It listens on its socket first, and on port 111 a moment later.
    const ready = await access('/run/rpcbind.sock')
      .then(() => must('rpcinfo', ['-p', '127.0.0.1']))
      .then(
        () => true,
        () => false,
      );
    if (ready) break;
    await systemClock.sleep(50);
  }
  return async () => {
    child.kill();
    await ended;
    await rm('/run/rpcbind.sock', { force: true });
    await rm('/run/rpcbind', { recursive: true, force: true });
  };
}
