import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { isRouseError } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { openDisk } from './open-disk.ts';
import type { OpenDiskOptions } from './open-disk.ts';
import { qcow2Sample, vmdkDescriptorSample, vmdkSample } from './samples.ts';
import { parseStreamOptimized } from './vmdk-stream.ts';

const KiB = 1024;
let folder: string;
before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'open-disk-'));
});
after(() => fs.rm(folder, { recursive: true, force: true }));

async function put(name: string, bytes: Uint8Array | string): Promise<string> {
  const file = path.join(folder, name);
  await fs.writeFile(file, bytes);
  return file;
}

async function readWhole(file: string, options: OpenDiskOptions = {}): Promise<Buffer> {
  const disk = await openDisk(file, options);
  try {
    const bytes = Buffer.alloc(disk.sizeBytes, 0xee);
    await disk.read(bytes, 0);
    for (const extent of await disk.extents(0, disk.sizeBytes)) {
      const part = bytes.subarray(extent.offset, extent.offset + extent.length);
      assert.ok(!extent.zero || part.every((byte) => byte === 0), 'a hole that is none');
    }
    return bytes;
  } finally {
    await disk.close();
  }
}

async function refused(file: string, code: ErrorCode, message: RegExp, options?: OpenDiskOptions) {
  await assert.rejects(readWhole(file, options), (error) => {
    assert.ok(isRouseError(error, code), String(error));
    assert.match(error.message, message);
    assert.ok(error.message.includes(folder), 'the error names the file');
    return true;
  });
}

test('what cannot be a disk is refused by what it is', async () => {
  await refused(path.join(folder, 'absent.img'), 'not-found', /absent\.img/);
  await refused(await put('empty.img', ''), 'bad-request', /empty \(0 bytes\)/);
  await refused(folder, 'bad-request', /a directory/);
  await refused(await put('a.raw', randomBytes(512)), 'unsupported-format', /format luks/, {
    format: 'luks',
  });
});

test('packed files and foreign formats are named, unless said to be raw', async () => {
  const file = await put(
    'disk.img',
    Buffer.concat([Buffer.from([0x1f, 0x8b, 8]), randomBytes(509)]),
  );
  await refused(file, 'unsupported-format', /gzip/);
  assert.equal((await readWhole(file, { format: 'raw' })).length, 512);
});

test('raw: an odd size is rounded up to a sector, with zeros', async () => {
  const bytes = randomBytes(1000);
  const file = await put('odd.raw', bytes);
  const read = await readWhole(file);
  assert.equal(read.length, 1024);
  assert.ok(read.subarray(0, 1000).equals(bytes));
  assert.ok(read.subarray(1000).every((byte) => byte === 0));
});

test('raw: holes are found and not read', async () => {
  const file = await put('holes.raw', '');
  const handle = await fs.open(file, 'r+');
  await handle.truncate(64 * 1024 * KiB);
  await handle.write(Buffer.alloc(64 * KiB, 1), 0, 64 * KiB, 16 * 1024 * KiB);
  await handle.close();
  const disk = await openDisk(file);
  const extents = await disk.extents(0, disk.sizeBytes);
  await disk.close();
  assert.deepEqual(
    extents.map(({ zero, length }) => [zero, length]),
    [
      [true, 16 * 1024 * KiB],
      [false, 64 * KiB],
      [true, 48 * 1024 * KiB - 64 * KiB],
    ],
  );
});

test('reads outside of the disk are refused', async () => {
  const disk = await openDisk(await put('small.raw', randomBytes(512)));
  for (const offset of [-1, 1, 512, 0.5, Number.NaN]) {
    await assert.rejects(disk.read(Buffer.alloc(512), offset), (error) =>
      isRouseError(error, 'bad-request'),
    );
  }
  await disk.close();
});

for (const version of [2, 3] as const) {
  test(`qcow2 version ${version}: stored, packed, absent clusters`, async () => {
    const one = randomBytes(4096);
    const two = Buffer.alloc(4096, 'compressible ');
    const image = qcow2Sample({
      version,
      sizeBytes: 5 * 4096 - 512,
      clusters: { 1: { kind: 'stored', bytes: one }, 3: { kind: 'packed', bytes: two } },
    });
    const read = await readWhole(await put('a.qcow2', image));
    const nothing = Buffer.alloc(4096);
    const last = nothing.subarray(0, 3584);
    assert.ok(read.equals(Buffer.concat([nothing, one, nothing, two, last])));
  });
}

test('qcow2: zstd clusters, and padding behind them', async () => {
  const bytes = Buffer.alloc(4096, 'zstd and more ');
  const image = qcow2Sample({
    sizeBytes: 4096,
    zstd: true,
    clusters: { 0: { kind: 'packed', bytes } },
  });
  assert.ok((await readWhole(await put('z.qcow2', image))).equals(bytes));
});

test('qcow2: zeros hide the backing file, what is absent shows it', async () => {
  const below = randomBytes(3 * 4096);
  await put('base.raw', below);
  const image = qcow2Sample({
    sizeBytes: 4 * 4096,
    backingFile: 'base.raw',
    backingFormat: 'raw',
    clusters: { 1: { kind: 'zero' } },
  });
  const read = await readWhole(await put('over.qcow2', image));
  below.fill(0, 4096, 8192);
  assert.ok(read.equals(Buffer.concat([below, Buffer.alloc(4096)])));
});

test('qcow2: a backing file of unstated format may not lead further', async () => {
  await put('secret.raw', randomBytes(4096));
  await put(
    'lure.img',
    qcow2Sample({ sizeBytes: 4096, backingFile: 'secret.raw', backingFormat: 'raw' }),
  );
  const top = await put('top.qcow2', qcow2Sample({ sizeBytes: 4096, backingFile: 'lure.img' }));
  await refused(top, 'unsupported-format', /does not say its format/);
});

test('qcow2: a backing file by JSON, by URL, missing', async () => {
  const below = randomBytes(4096);
  const base = await put('json.raw', below);
  const json = `json:{"driver":"raw","file":{"driver":"file","filename":"${base}"}}`;
  const top = await put('json.qcow2', qcow2Sample({ sizeBytes: 4096, backingFile: json }));
  assert.ok((await readWhole(top)).equals(below));
  const url = await put('url.qcow2', qcow2Sample({ sizeBytes: 4096, backingFile: 'nbd://h/x' }));
  await refused(url, 'unsupported-format', /not a local file/);
  const lost = await put('lost.qcow2', qcow2Sample({ sizeBytes: 4096, backingFile: 'gone.raw' }));
  await refused(lost, 'not-found', /gone\.raw: missing; it is the backing file of .*lost\.qcow2/);
});

test('qcow2: what cannot be read is refused by name', async () => {
  const make = (sample: Partial<Parameters<typeof qcow2Sample>[0]>) =>
    put('bad.qcow2', qcow2Sample({ sizeBytes: 8192, ...sample }));
  await refused(await make({ encryption: 1 }), 'unsupported-format', /encrypted \(AES\)/);
  await refused(await make({ incompatible: 2 }), 'corrupt-data', /marked as corrupt/);
  await refused(await make({ incompatible: 1 << 20 }), 'unsupported-format', /bits 20/);
  await refused(await make({ incompatible: 4 }), 'unsupported-format', /data file is not named/);
  await refused(await make({ sizeBytes: 0 }), 'bad-request', /0 bytes/);
  await refused(
    await make({ version: 2, clusters: { 0: { kind: 'zero' } } }),
    'corrupt-data',
    /version 2/,
  );
  // Reference counts may be wrong after a crash; the data is not.
  assert.equal((await readWhole(await make({ incompatible: 1 }))).length, 8192);
});

test('VMDK: sparse and streamOptimized, with zero grains and a footer', async () => {
  const grain = randomBytes(64 * KiB);
  const text = Buffer.alloc(64 * KiB, 'some text ');
  const descriptor = vmdkDescriptorSample([
    'createType="monolithicSparse"',
    'RW 1000 SPARSE "x.vmdk"',
  ]);
  for (const make of ['sparse', 'stream'] as const) {
    const zeros = make === 'sparse' ? { 3: null } : {};
    const grains = { 1: grain, ...zeros, 7: text };
    const image = vmdkSample({ make, capacitySectors: 1000, grains, descriptor });
    const read = await readWhole(await put(`${make}.vmdk`, image));
    const expected = Buffer.alloc(1000 * 512);
    grain.copy(expected, 64 * KiB);
    text.copy(expected, 7 * 64 * KiB);
    assert.ok(read.equals(expected), make);
  }
});

test('VMDK: extents of several kinds make one disk', async () => {
  const flat = randomBytes(100 * 512);
  const grain = randomBytes(64 * KiB);
  await put('d-f001.vmdk', flat);
  await put(
    'd-s002.vmdk',
    vmdkSample({ make: 'sparse', capacitySectors: 300, grains: { 1: grain } }),
  );
  const lines = ['RW 90 FLAT "d-f001.vmdk" 10', 'RW 50 ZERO', 'RW 300 SPARSE "d-s002.vmdk"'];
  const file = await put('d.vmdk', vmdkDescriptorSample(lines));
  const expected = Buffer.alloc(440 * 512);
  flat.copy(expected, 0, 10 * 512);
  grain.copy(expected, (140 + 128) * 512);
  assert.ok((await readWhole(file)).equals(expected));
  await fs.rm(path.join(folder, 'd-s002.vmdk'));
  await refused(file, 'not-found', /d-s002\.vmdk: missing; .*d\.vmdk needs it/);
  await put('d-s002.vmdk', vmdkSample({ make: 'sparse', capacitySectors: 299, grains: {} }));
  await refused(file, 'corrupt-data', /has 299 sectors, its descriptor says 300/);
  await put('d-f001.vmdk', flat.subarray(512));
  await refused(file, 'corrupt-data', /d-f001\.vmdk: cut off/);
});

test('VMDK: a descriptor may not lead out of its folder, nor to unknown extents', async () => {
  for (const name of ['/etc/hostname', '../x', 'a/b', '']) {
    const file = await put('out.vmdk', vmdkDescriptorSample([`RW 1 FLAT "${name}" 0`]));
    await refused(file, 'unsupported-format', /not a file beside it/);
  }
  const rdm = await put('rdm.vmdk', vmdkDescriptorSample(['RW 1 VMFSRDM "x.vmdk"']));
  await refused(rdm, 'unsupported-format', /VMFSRDM/);
  const none = await put('none.vmdk', vmdkDescriptorSample([]));
  await refused(none, 'corrupt-data', /names no extent/);
});

test('VMDK: a child is read through its parent, unless that was changed', async () => {
  const below = randomBytes(200 * 512);
  await put('p-flat.vmdk', below);
  await put('p.vmdk', vmdkDescriptorSample(['RW 200 FLAT "p-flat.vmdk" 0']));
  const child = (parent: string) =>
    vmdkSample({
      make: 'sparse',
      capacitySectors: 200,
      grains: { 1: null },
      descriptor: vmdkDescriptorSample(
        ['parentFileNameHint="p.vmdk"', 'RW 200 SPARSE "c.vmdk"'],
        parent,
      ),
    });
  below.fill(0, 64 * KiB);
  assert.ok((await readWhole(await put('c.vmdk', child('12345678')))).equals(below));
  await refused(await put('c.vmdk', child('aaaaaaaa')), 'corrupt-data', /was changed since/);
});

test('VMDK stream: grains as they come, zeros between, an error when cut off', async () => {
  const grain = randomBytes(64 * KiB);
  const image = vmdkSample({
    make: 'stream',
    capacitySectors: 1000,
    grains: { 2: grain, 7: grain },
  });
  const chunks = async function* (bytes: Buffer) {
    for (let at = 0; at < bytes.length; at += 1000) yield bytes.subarray(at, at + 1000);
  };
  const stream = await parseStreamOptimized(chunks(image), 'export');
  const seen: (readonly [number, number, boolean])[] = [];
  for await (const piece of stream.pieces) {
    seen.push([piece.offset, piece.length, piece.zero]);
    if (!piece.zero) assert.ok(grain.subarray(0, piece.length).equals(piece.data));
  }
  assert.deepEqual(seen, [
    [0, 131072, true],
    [131072, 65536, false],
    [196608, 262144, true],
    [458752, 53248, false],
  ]);
  const cut = async (length: number) => {
    const rest = await parseStreamOptimized(chunks(image.subarray(0, length)), 'export');
    for await (const piece of rest.pieces) assert.ok(piece.length > 0);
  };
  for (const length of [0, 511, 512, 40_000, image.length - 512, image.length - 5000]) {
    await assert.rejects(cut(length), (error) => isRouseError(error, 'corrupt-data'), `${length}`);
  }
});
