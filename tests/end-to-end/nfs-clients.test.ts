import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { systemClock } from '../../src/lib/clock.ts';
import type { NfsServer } from '../../src/nfs/server.ts';
import { lateFileSystem, MemoryFileSystem } from '../../src/testing/memory-file-system.ts';
import { insideOwnWorld, must, run, startServer } from './nfs-world.ts';

/** libnfs, QEMU's nfs driver, showmount and rpcinfo against the server, over a memory file system. */
const file = import.meta.filename;

if (process.env['ROUSE_TEST_WORLD'] === '1') {
  for (const late of [false, true]) {
    describe(late ? 'real clients, late answers' : 'real clients, immediate answers', () => {
      clientTests(late);
    });
  }
} else {
  test('real NFS clients, in a world of their own', async () => {
    await insideOwnWorld(file);
  });
}

function clientTests(late: boolean): void {
  let server: NfsServer;
  let memory: MemoryFileSystem;
  let scratch: string;
  const path = '/vault/Recover-p-1';
  const base = `nfs://127.0.0.1${path}`;
  const disk = seededBytes(8 * 1_048_576 + 517);

  before(async () => {
    scratch = await mkdtemp('/run/rouse-nfs-');
    memory = new MemoryFileSystem({ clock: systemClock, capacityBytes: 256 << 20 });
    memory.put('/web01/vda-flat.vmdk', disk);
    memory.put('/web01/web01.vmx', Buffer.from('config.version = "8"\n'));
    server = await startServer({ mountPort: 20_048 });
    server.addExport({
      id: 1,
      path,
      secret: Buffer.alloc(32, 3),
      clients: ['127.0.0.1', '10.99.0.0/16', '::1'],
      fileSystem: late ? lateFileSystem(memory) : memory,
    });
  });

  after(async () => {
    await server.close();
    await rm(scratch, { recursive: true });
  });

  test('the portmapper is ours, on TCP and UDP', async () => {
    assert.equal(server.portmapper, 'bound');
    const text = (await must('rpcinfo', ['-p', '127.0.0.1'])).toString();
    assert.match(text, /100003\s+3\s+tcp\s+2049\s+nfs/);
    assert.match(text, /100005\s+3\s+tcp\s+20048\s+mountd/);
    assert.match(text, /100000\s+2\s+udp\s+111\s+portmapper/);
    const short = (await must('rpcinfo', ['-s', '127.0.0.1'])).toString();
    assert.match(short, /100003\s+3\s+tcp/);
    for (const program of ['nfs', 'mountd']) {
      const ping = (await must('rpcinfo', ['-t', '127.0.0.1', program, '3'])).toString();
      assert.match(ping, /ready and waiting/);
    }
    const ping = (await must('rpcinfo', ['-u', '127.0.0.1', 'portmapper', '2'])).toString();
    assert.match(ping, /ready and waiting/);
    const six = (await must('rpcinfo', ['-T', 'tcp6', '::1', 'nfs', '3'])).toString();
    assert.match(six, /ready and waiting/);
  });

  test('showmount lists exports with their clients, and mounts', async () => {
    const text = (await must('showmount', ['-e', '127.0.0.1'])).toString();
    assert.match(text, /\/vault\/Recover-p-1\s+127\.0\.0\.1,10\.99\.0\.0\/16,::1/);
    const all = (await must('showmount', ['-a', '127.0.0.1'])).toString();
    assert.match(all, /All mount points/);
  });

  for (const ports of ['', '?version=3&nfsport=2049&mountport=20048']) {
    const how = ports === '' ? 'through the portmapper' : 'with ports given';
    test(`libnfs ${how}: ls, cat, cp`, async () => {
      const listing = (await must('nfs-ls', ['-R', `${base}${ports}`])).toString();
      assert.match(listing, /web01\/vda-flat\.vmdk/);
      const cat = await must('nfs-cat', [`${base}/web01/vda-flat.vmdk${ports}`]);
      assert.equal(hash(cat), hash(disk));
      const source = join(scratch, 'source');
      const bytes = seededBytes(1_500_001);
      await writeFile(source, bytes);
      await must('nfs-cp', [source, `${base}/web01/copied${ports}`]);
      assert.equal(hash(memory.contents('/web01/copied')), hash(bytes));
      const back = join(scratch, 'back');
      await must('nfs-cp', [`${base}/web01/copied${ports}`, back]);
      assert.equal(hash(await readFile(back)), hash(bytes));
      await rm(back);
      memory.remove(memory.lookup(memory.root, 'web01'), 'copied');
    });
  }

  test('libnfs: a sub-directory is mounted, a missing export is not', async () => {
    const listing = (await must('nfs-ls', [`${base}/web01`])).toString();
    assert.match(listing, /web01\.vmx/);
    const missing = await run('nfs-ls', ['nfs://127.0.0.1/vault/Recover-p-2']);
    assert.notEqual(missing.code, 0);
  });

  test('QEMU: info, compare, convert there and back, bench', async () => {
    const url = `${base}/web01/vda-flat.vmdk`;
    const info = (await must('qemu-img', ['info', '-f', 'raw', url])).toString();
    assert.match(info, /virtual size: 8 MiB/);
    const local = join(scratch, 'disk.raw');
    await must('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', url, local]);
    assert.equal(hash((await readFile(local)).subarray(0, disk.length)), hash(disk));
    const target = `${base}/web01/converted`;
    await must('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', local, target]);
    await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', local, target]);
    const depth = ['-c', '2000', '-d', '32', '-s', '4096', '-f', 'raw'];
    await must('qemu-img', ['bench', ...depth, '-t', 'none', url]);
    await must('qemu-img', ['bench', ...depth, '-w', '--flush-interval', '100', target]);
    const counters = server.exports()[0];
    assert.ok(counters !== undefined && counters.reads > 2000 && counters.writes > 2000);
  });

  test('an address that is no client mounts nothing', async () => {
    await must('ip', ['address', 'replace', '10.7.7.1/32', 'dev', 'lo']);
    await must('ip', ['route', 'replace', '10.7.7.2', 'dev', 'lo', 'src', '10.7.7.1']);
    const refused = await run('nfs-ls', [`nfs://10.7.7.1${path}`]);
    assert.notEqual(refused.code, 0);
    assert.match(refused.output, /ACCES|EACCES|denied|access/i);
  });
}

function seededBytes(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = 12_345;
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    bytes[at] = state >>> 16;
  }
  return bytes;
}

function hash(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
