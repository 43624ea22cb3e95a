import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { createServer } from 'node:net';
import { after, test } from 'node:test';
import { enterWorld, worldAddresses } from './world.ts';

const world = await enterWorld({ guests: false });
after(() => world.end());

test('a world has an empty /run, loopback alone, and its own processes', async () => {
  assert.deepEqual((await readdir('/run')).sort(), ['lock', 'netns']);
  const devices = readFileSync('/proc/net/dev', 'utf8').matchAll(/^\s*(\S+):/gm);
  assert.deepEqual(
    [...devices].map((match) => match[1]),
    ['lo'],
  );
  assert.ok(process.pid < 100, 'process ids start anew');
  assert.deepEqual(await readdir(world.directory), []);
});

test('hosts reach the world by IPv4 and IPv6 from addresses of their own', async () => {
  const callers: string[] = [];
  const server = createServer((socket) => {
    callers.push((socket.remoteAddress ?? '').replace('::ffff:', ''));
    socket.end();
  });
  // A fixed port below 1024: free here, whatever runs outside.
  await new Promise<void>((resolve) => server.listen(111, '::', resolve));
  const expected: string[] = [];
  for (const name of ['host1', 'host2']) {
    const host = await world.addHost(name);
    for (const address of [worldAddresses.ipv4, worldAddresses.ipv6])
      await host.run('busybox', ['nc', address, '111']);
    expected.push(host.ipv4, host.ipv6);
  }
  server.close();
  assert.deepEqual(callers, expected);
});
