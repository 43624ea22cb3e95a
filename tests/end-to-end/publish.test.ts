/** `recover --mode publish`: the clone of a saveset for any NFS client, and what becomes of writes. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { attempt, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { enterWorld, type Host, worldAddresses } from '#lab/world.ts';

const world = await enterWorld({ guests: false });
await mkdir(world.directory, { recursive: true });
const rouse = new RouseCommand(world, join(world.directory, 'data'));
await rouse.up();
after(async () => {
  await rouse.stop();
  await world.end();
});

const image = join(world.directory, 'disk.raw');
const content = Buffer.concat([randomBytes(3 << 20), Buffer.alloc(8 << 20), randomBytes(1 << 20)]);
await writeFile(image, content);
const backup = ['backup', '--file', image, '--name', 'files01'];
const { savesetId } = await rouse.json<{ savesetId: string }>(...backup);

interface Published {
  readonly recovery: string;
  readonly export: { readonly path: string; readonly nfsPort: number; readonly mountPort: number };
  readonly disks: readonly { readonly path: string; readonly sizeBytes: number }[];
}

const publish = (...clients: string[]) =>
  rouse.json<Published>(
    // Not the latest: sealing makes newer ones.
    ...['recover', '--saveset', savesetId, '--mode', 'publish'],
    ...clients.flatMap((client) => ['--client', client]),
  );

function urlOf(published: Published, host = '127.0.0.1'): string {
  const { path, nfsPort, mountPort } = published.export;
  const query = `version=3&nfsport=${nfsPort}&mountport=${mountPort}`;
  return `nfs://${host}${path}/${published.disks[0]?.path}?${query}`;
}

/** The file behind the URL, as a host copies it; nfs-cp does not overwrite. */
async function fetched(url: string, host?: Host): Promise<Buffer> {
  const target = join(world.directory, 'fetched.raw');
  await rm(target, { force: true });
  await (host === undefined ? run('nfs-cp', [url, target]) : host.run('nfs-cp', [url, target]));
  return readFile(target);
}

test('libnfs and QEMU read the disk that was backed up; the write layer takes writes', async () => {
  const published = await publish('127.0.0.1', '::1');
  assert.equal(published.disks[0]?.sizeBytes, content.length);
  assert.ok((await fetched(urlOf(published))).equals(content));
  const { path } = published.export;
  const disk = published.disks[0]?.path ?? '';
  const source = `nfs://127.0.0.1${path}/${disk}`;
  await run('qemu-io', ['-f', 'raw', '-c', 'write -P 0x5a 4096 12288', '-c', 'flush', source]);
  await run('qemu-io', ['-f', 'raw', '-c', 'read -P 0x5a 4096 12288', source]);
  const sealed = await rouse.json<{ id: string; kind: string }>('seal', published.recovery);
  assert.equal(sealed.kind, 'sealed');
  const same = await rouse.json<{ id: string }>('seal', published.recovery);
  assert.equal(same.id, sealed.id, 'the same writes make one saveset');
  await rouse.run('cancel', published.recovery);

  const again = await rouse.json<Published>(
    ...['recover', '--saveset', sealed.id, '--mode', 'publish', '--client', '127.0.0.1'],
  );
  const expected = Buffer.from(content);
  expected.fill(0x5a, 4096, 4096 + 12288);
  assert.ok((await fetched(urlOf(again))).equals(expected), 'the sealed saveset holds the writes');
  await rouse.run('cancel', again.recovery);
});

test('the export answers its client in both families, and another host nothing at all', async () => {
  const mine = await world.addHost('mine');
  const other = await world.addHost('other');
  const published = await publish(mine.ipv4, mine.ipv6);
  // libnfs takes no bare IPv6 address: this world's own /etc/hosts gives it a name.
  const hosts = join(world.directory, 'hosts');
  await writeFile(hosts, `${worldAddresses.ipv6} rouse-over-ipv6\n`);
  await run('mount', ['--bind', hosts, '/etc/hosts']);
  for (const address of [worldAddresses.ipv4, 'rouse-over-ipv6']) {
    assert.ok((await fetched(urlOf(published, address), mine)).equals(content), address);
    const target = join(world.directory, 'refused.raw');
    const refused = await other.attempt('nfs-cp', [urlOf(published, address), target]);
    assert.notEqual(refused.code, 0, `another host was let in over ${address}`);
  }
  await rouse.run('cancel', published.recovery);
});

test('after a cancel nothing is exported, and a client is told so', async () => {
  const published = await publish('127.0.0.1');
  await rouse.run('cancel', published.recovery);
  const { code } = await attempt('nfs-cp', [urlOf(published), join(world.directory, 'no.raw')]);
  assert.notEqual(code, 0);
  const status = await rouse.json<{ proxy: { clones: number; exports: number } }>('status');
  assert.deepEqual([status.proxy.clones, status.proxy.exports], [0, 0]);
});
