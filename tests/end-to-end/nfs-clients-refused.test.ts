import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/lib/clock.ts';
import type { NfsServer } from '../../src/nfs/server.ts';
import { MemoryFileSystem } from '../../src/testing/memory-file-system.ts';
import { insideOwnWorld, must, run, startServer } from './nfs-world.ts';

/**
 * Two hosts with addresses of both families, on real network interfaces: the export answers the one
 * that it is for, and refuses the other on every call, with a stolen handle too.
 */
const pid = process.pid;
const good = `rouse-good-${pid}`;
const evil = `rouse-evil-${pid}`;

if (process.env['ROUSE_TEST_WORLD'] !== '1') {
  test('two hosts, in a world of their own', async () => {
    await insideOwnWorld(import.meta.filename);
  });
} else {
  let server: NfsServer;
  let memory: MemoryFileSystem;

  before(async () => {
    await addHost(good, 1);
    await addHost(evil, 2);
    memory = new MemoryFileSystem({ clock: systemClock });
    memory.put('/web01/disk', Buffer.from('the disk'));
    server = await startServer();
    server.addExport({
      id: 1,
      path: '/vault/a',
      secret: Buffer.alloc(32, 1),
      clients: ['10.91.1.2', 'fd91:1::2'],
      fileSystem: memory,
    });
  });

  after(async () => {
    await server.close();
    for (const name of [good, evil]) await must('ip', ['netns', 'delete', name]);
  });

  test('its host may, over IPv4 and IPv6', async () => {
    assert.equal((await client(good, 'mount', '10.91.1.1')).status, 0);
    assert.equal((await client(good, 'mount', 'fd91:1::1')).status, 0);
    const listing = await on(good, ['nfs-ls', 'nfs://10.91.1.1/vault/a/web01']);
    assert.match(listing.output, /disk/);
  });

  test('another host may not, over IPv4 and IPv6, mount or use a stolen handle', async () => {
    const { handle } = await client(good, 'mount', '10.91.1.1');
    for (const address of ['10.91.2.1', 'fd91:2::1']) {
      assert.equal((await client(evil, 'mount', address)).status, 13, address);
      const used = await client(evil, 'use', address, handle);
      assert.deepEqual(
        used.statuses,
        Array.from({ length: 21 }, () => 13),
        address,
      );
    }
    assert.equal(memory.contents('/web01/disk').toString(), 'the disk');
    // The same calls of the host that it is for do what they say.
    const mine = await client(good, 'use', 'fd91:1::1', handle);
    assert.equal(mine.statuses?.[0], 0);
    assert.equal(memory.contents('/stolen/disk').toString(), 'the disk');
    const refused = server.exports()[0]?.refused ?? 0;
    assert.equal(refused, 2 * 22);
    assert.deepEqual(server.exports()[0]?.connected, []);
    const listing = await on(evil, ['nfs-ls', 'nfs://10.91.2.1/vault/a']);
    assert.notEqual(listing.code, 0);
  });
}

/** A host of its own: a namespace, joined to ours by a pair of interfaces. */
async function addHost(name: string, number: number): Promise<void> {
  const ours = `rh${number}`;
  await must('ip', ['netns', 'add', name]);
  await must('ip', ['link', 'add', ours, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name]);
  const inside = (args: string[]) => must('ip', ['-n', name, ...args]);
  await must('ip', ['address', 'add', `10.91.${number}.1/24`, 'dev', ours]);
  await must('ip', ['address', 'add', `fd91:${number}::1/64`, 'dev', ours, 'nodad']);
  await must('ip', ['link', 'set', ours, 'up']);
  await inside(['address', 'add', `10.91.${number}.2/24`, 'dev', 'eth0']);
  await inside(['address', 'add', `fd91:${number}::2/64`, 'dev', 'eth0', 'nodad']);
  await inside(['link', 'set', 'lo', 'up']);
  await inside(['link', 'set', 'eth0', 'up']);
}

function on(host: string, command: readonly string[]) {
  return run('ip', ['netns', 'exec', host, ...command]);
}

interface Answer {
  readonly status?: number;
  readonly handle?: string;
  readonly statuses?: readonly number[];
}

/** Runs nfs-host-client.ts on a host. */
async function client(
  host: string,
  what: 'mount' | 'use',
  address: string,
  handle = '',
): Promise<Answer> {
  const script = new URL('nfs-host-client.ts', import.meta.url).pathname;
  const result = await on(host, [process.execPath, script, what, address, handle]);
  assert.equal(result.code, 0, result.output);
  const answer: Answer = JSON.parse(result.stdout.toString());
  return answer;
}
